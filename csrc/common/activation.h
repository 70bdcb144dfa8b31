// The activations, each with its first and second derivative, in closed form.
#pragma once

#include "common/elementary.h"
#include "common/macros.h"

namespace gpseg {

enum class Act { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// clamp(gain * act(.; alpha), -clamp, clamp); a negative clamp means none.
struct Activation {
  Act act;
  double alpha;
  double gain;
  double clamp;
};

template <class A>
struct Jet {
  A value;
  A first;
  A second;
};

// The exponential that a curved activation is made of; it is never above 0, so nothing overflows.
template <class A>
struct CurveBase {
  Exponential<A> e;
  A r;  // 1 / (1 + e.exp)
};

template <class A>
GPSEG_INLINE CurveBase<A> curve_base(Act act, A u) {
  const A below = u < A(0) ? u : -u;
  const A bend = act == Act::elu || act == Act::selu ? (u > A(0) ? A(0) : u) : below;
  const auto e = exp_nonpositive(act == Act::tanh ? A(2) * below : bend);
  return {e, A(1) / (A(1) + e.exp)};
}

// A curved activation of u and its derivatives.
template <Act act, class A>
GPSEG_INLINE Jet<A> curve(A u, const CurveBase<A>& base) {
  const auto e = base.e;
  const A r = base.r;
  if constexpr (act == Act::tanh) {
    const A magnitude = -e.expm1 * r;
    const A value = u < A(0) ? -magnitude : magnitude;
    const A first = A(4) * e.exp * r * r;
    return {value, first, A(-2) * value * first};
  } else if constexpr (act == Act::elu || act == Act::selu) {
    constexpr A scale = act == Act::selu ? A(1.0507009873554804934193349852946) : A(1);
    constexpr A outer = act == Act::selu ? A(1.6732632423543772848170429916717) * scale : A(1);
    const bool positive = u > A(0);
    const A exponential = outer * e.exp;
    return {positive ? scale * u : outer * e.expm1, positive ? scale : exponential,
            positive ? A(0) : exponential};
  } else {
    const bool negative = u < A(0);
    const A s = negative ? e.exp * r : r;
    const A s1 = e.exp * r * r;
    const A s2 = s1 * (negative ? -e.expm1 * r : e.expm1 * r);
    if constexpr (act == Act::sigmoid) {
      return {s, s1, s2};
    } else if constexpr (act == Act::softplus) {
      return {(u > A(0) ? u : A(0)) + log1p_unit(e.exp), s, s1};
    } else {
      static_assert(act == Act::swish);
      return {u * s, s + u * s1, A(2) * s1 + u * s2};
    }
  }
}

// act(u) and its derivatives; what the caller does not use is not computed once this is inlined.
// NaN comes out as NaN.
template <Act act, class A>
GPSEG_INLINE Jet<A> activate(A u, A alpha) {
  if constexpr (act == Act::linear) {
    return {u, A(1), A(0)};
  } else if constexpr (act == Act::relu) {
    return {u < A(0) ? A(0) : u, u > A(0) ? A(1) : A(0), A(0)};
  } else if constexpr (act == Act::lrelu) {
    const A slope = u > A(0) ? A(1) : alpha;
    return {u * slope, slope, A(0)};
  } else {
    return curve<act>(u, curve_base(act, u));
  }
}

}  // namespace gpseg
