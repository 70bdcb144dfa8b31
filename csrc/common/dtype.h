// Element types, and conversions between storage and accumulation types.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace gpseg {

enum class DType { float16, bfloat16, float32, float64 };

// In the order of DType.
constexpr const char* kDTypeNames[] = {"float16", "bfloat16", "float32", "float64"};

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

// The type sums are taken in.
template <class T>
struct AccumulateOf {
  using Type = float;
};
template <>
struct AccumulateOf<double> {
  using Type = double;
};
template <class T>
using Accumulate = typename AccumulateOf<T>::Type;

GPSEG_INLINE float load(float value) { return value; }
GPSEG_INLINE double load(double value) { return value; }

GPSEG_INLINE float load(BFloat16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}

// Branchless, so that it vectorises; never touches float32 denormals, which a caller may flush.
GPSEG_INLINE float load(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t rebias = (127u - 15u) << 23;
  const uint32_t one_more = 1u << 23;
  const float subnormal = __builtin_bit_cast(float, magnitude + rebias + one_more) -
                          __builtin_bit_cast(float, rebias + one_more);
  const uint32_t infinite = magnitude + 2 * rebias;
  uint32_t bits = magnitude + rebias;
  bits = magnitude < (1u << 23) ? __builtin_bit_cast(uint32_t, subnormal) : bits;
  bits = magnitude >= (31u << 23) ? infinite : bits;
  return __builtin_bit_cast(float, bits | sign);
}

GPSEG_INLINE void store(float* to, float value) { *to = value; }
GPSEG_INLINE void store(double* to, double value) { *to = value; }

// Rounds to nearest even; NaN stays NaN.
GPSEG_INLINE void store(BFloat16* to, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Rounds to nearest even; NaN stays NaN, and what exceeds the largest half becomes infinite.
GPSEG_INLINE void store(Half* to, float value) {
  const uint32_t all = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = (all >> 16) & 0x8000u;
  const uint32_t bits = all & 0x7fffffffu;
  const uint32_t odd = (bits >> 13) & 1u;
  uint32_t half = (bits - ((127u - 15u) << 23) + 0xfffu + odd) >> 13;
  // adding 0.5 leaves a subnormal's bits, rounded by the hardware, at the bottom of the mantissa
  const float shifted = __builtin_bit_cast(float, bits) + 0.5f;
  const uint32_t subnormal = __builtin_bit_cast(uint32_t, shifted) - 0x3f000000u;
  half = bits < (113u << 23) ? subnormal : half;
  half = bits >= (143u << 23) ? 0x7c00u : half;
  half = bits > 0x7f800000u ? 0x7e00u : half;
  to->bits = static_cast<uint16_t>(half | sign);
}

}  // namespace gpseg
