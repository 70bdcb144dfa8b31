// exp and log1p from truncated Taylor series, branchless and free of calls so that loops over them
// vectorise; relative error below 3 units in the last place.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace gpseg {

template <class A>
struct Exponential {
  A exp;
  A expm1;
};

#if defined(__CUDACC__)

// Sum of r^k / (first * (first + 1) * ... ), the product of k factors, over k = 0..terms-1. Two
// operations a term more than below, but fewer registers for constants, which count for more on a
// GPU.
template <int first, int terms, class A>
GPSEG_INLINE A factorial_series(A r) {
  if constexpr (terms == 1) {
    return A(1);
  } else {
    return A(1) + r * (A(1) / A(first)) * factorial_series<first + 1, terms - 1>(r);
  }
}

#else

// 1 / (first * (first + 1) * ... ), of so many factors.
constexpr double inverse_product(int first, int factors) {
  double product = 1;
  for (int i = 0; i < factors; ++i) {
    product *= first + i;
  }
  return 1 / product;
}

// Sum of r^k / (first * (first + 1) * ... ), the product of k factors, over k = from..terms-1, over
// r^from: one multiply-add a term.
template <int first, int terms, int from = 0, class A>
GPSEG_INLINE A factorial_series(A r) {
  constexpr auto factor = static_cast<A>(inverse_product(first, from));
  if constexpr (from == terms - 1) {
    return factor;
  } else {
    return factor + r * factorial_series<first, terms, from + 1>(r);
  }
}

#endif

// Sum of s^k / (2k + 1) over k = first..first+terms-1, over s^first.
template <int first, int terms, class A>
GPSEG_INLINE A odd_series(A s) {
  if constexpr (terms == 1) {
    return A(1) / A(2 * first + 1);
  } else {
    return A(1) / A(2 * first + 1) + s * odd_series<first + 1, terms - 1>(s);
  }
}

// exp(x) and exp(x) - 1 for x <= 0, as 2^n * exp(r) with |r| <= ln(2) / 2.
GPSEG_INLINE Exponential<float> exp_nonpositive(float x) {
  constexpr float lowest = -87.0f;           // exp of it is just above the smallest normal number
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float z = x < lowest ? lowest : x;
  const float shifted = z * 1.44269504088896341f + to_integer;
  const float n = shifted - to_integer;
  const float r = (z - n * 0.693359375f) + n * 2.12194440e-4f;
  const float p = r * factorial_series<2, 7>(r);
  const int32_t exponent =
      __builtin_bit_cast(int32_t, shifted) - __builtin_bit_cast(int32_t, to_integer);
  const float scale = __builtin_bit_cast(float, static_cast<uint32_t>(exponent + 127) << 23);
  return {x < lowest ? 0.0f : scale * p + scale, scale * p + (scale - 1.0f)};
}

GPSEG_INLINE Exponential<double> exp_nonpositive(double x) {
  constexpr double lowest = -708.0;
  constexpr double to_integer = 6755399441055744.0;  // 1.5 * 2^52
  const double z = x < lowest ? lowest : x;
  const double shifted = z * 1.4426950408889634074 + to_integer;
  const double n = shifted - to_integer;
  const double r = (z - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  const double p = r * factorial_series<2, 14>(r);
  const int64_t exponent =
      __builtin_bit_cast(int64_t, shifted) - __builtin_bit_cast(int64_t, to_integer);
  const double scale = __builtin_bit_cast(double, static_cast<uint64_t>(exponent + 1023) << 52);
  return {x < lowest ? 0.0 : scale * p + scale, scale * p + (scale - 1.0)};
}

// log(1 + e) for 0 <= e <= 1, as 2 artanh(e / (2 + e)).
template <class A>
GPSEG_INLINE A log1p_unit(A e) {
  const A s = e / (A(2) + e);
  constexpr int terms = sizeof(A) == 8 ? 17 : 8;
  return A(2) * s * odd_series<0, terms>(s * s);
}

}  // namespace gpseg
