// Elements and vectors of them in device memory.
//
// Every access of more than one element goes through `load_vector` and `store_vector`: one
// instruction each on the device, and one access to count when the kernels run on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "common/dtype.h"

namespace gpseg::cuda {

template <class T>
using Sum = gpseg::Accumulate<T>;

__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }

template <class T>
__device__ __forceinline__ T narrow(Sum<T> value) {
  if constexpr (sizeof(T) == sizeof(Sum<T>)) {
    return value;
  } else if constexpr (__is_same(T, __half)) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

// What one thread moves at once.
constexpr int kVectorBytes = 16;

// Whether all of these start where a vector may; null does.
inline bool are_aligned(std::initializer_list<const void*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const void* tensor) {
    return reinterpret_cast<uintptr_t>(tensor) % kVectorBytes == 0;
  });
}

// `length` elements, moved together; length * sizeof(T) is 2, 4, 8 or 16.
template <class T, int length>
struct alignas(sizeof(T) * length) Vector {
  T element[length];
};

template <class T>
constexpr int kVectorLength = kVectorBytes / static_cast<int>(sizeof(T));

template <int bytes>
struct Word;
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned int;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

// Memory that no thread of the launch writes.
template <int length, class T>
__device__ __forceinline__ Vector<T, length> load_vector(const T* from) {
  using W = typename Word<static_cast<int>(sizeof(T)) * length>::Type;
  return __builtin_bit_cast(Vector<T, length>, __ldg(reinterpret_cast<const W*>(from)));
}

// The same for what is read once: it is the first to leave the caches.
template <int length, class T>
__device__ __forceinline__ Vector<T, length> load_vector_once(const T* from) {
  using W = typename Word<static_cast<int>(sizeof(T)) * length>::Type;
  return __builtin_bit_cast(Vector<T, length>, __ldcs(reinterpret_cast<const W*>(from)));
}

template <int length, class T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, length>& value) {
  using W = typename Word<static_cast<int>(sizeof(T)) * length>::Type;
  __stcg(reinterpret_cast<W*>(to), __builtin_bit_cast(W, value));
}

}  // namespace gpseg::cuda
