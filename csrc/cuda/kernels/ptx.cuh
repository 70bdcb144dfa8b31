// Instructions that CUDA C++ has no name for. The only file that knows that kernels can also run on
// the CPU (GPSEG_SIMT, see tests/simt): there, the emulator carries the instruction out.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace gpseg::cuda {

#if defined(GPSEG_SIMT)

using simt::cp_async16;
using simt::cp_async_commit;
using simt::ldmatrix_x4;
using simt::ldmatrix_x4_trans;
using simt::mma_m16n8k16;

// What the caches do is not emulated. A macro, so that a fault is the calling line's.
#define cp_async16_through_l1 ::simt::cp_async16

template <int pending>
inline void cp_async_wait() {
  simt::cp_async_wait(pending);
}

template <class W>
SIMT_INLINE W load_shared(const W* from, simt::Where at = simt::Where::current()) {
  return simt::load(from, at);
}

template <class W>
SIMT_INLINE void store_shared(W* to, W value, simt::Where at = simt::Where::current()) {
  simt::store(to, value, at);
}

#else

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// One access of the full width of a vector type (float2, float4, uint4, ...) in shared memory.
template <class W>
__device__ __forceinline__ W load_shared(const W* from) {
  return *from;
}

template <class W>
__device__ __forceinline__ void store_shared(W* to, W value) {
  *to = value;
}

// Copies 16 bytes to shared memory behind the thread's back, or zeroes them if not valid.
__device__ __forceinline__ void cp_async16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// The same for what this multiprocessor will soon copy again: it stays in its L1 cache.
__device__ __forceinline__ void cp_async16_through_l1(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's latest groups are still under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a * b for a [16, 16] (row-major fragments), b [16, 8] (column-major), d in float32.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2 && __is_same(T, __half)) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(__is_same(T, __nv_bfloat16));
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

#endif

}  // namespace gpseg::cuda
