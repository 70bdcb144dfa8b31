// clamp(gain * act(u)) and its derivatives, the activation chosen at run time within a family.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/activation.h"
#include "common/kernels.h"
#include "cuda/kernels/memory.cuh"

namespace gpseg::cuda {

// Two instances of a kernel serve nine activations: the straight ones (linear, relu, lrelu), which
// StyleGAN uses and which cost next to nothing, and the curved ones, which take more registers.
enum class Family { straight, curved };

GPSEG_INLINE constexpr Family family_of(Act act) {
  return act == Act::linear || act == Act::relu || act == Act::lrelu ? Family::straight
                                                                     : Family::curved;
}

// Calls body with the family as a constant.
template <class Body>
void for_family(Act act, const Body& body) {
  if (family_of(act) == Family::straight) {
    body(std::integral_constant<Family, Family::straight>());
  } else {
    body(std::integral_constant<Family, Family::curved>());
  }
}

template <class A>
struct Pointwise {
  Act act;
  A alpha;  // the slope below 0 of the straight ones
  A gain;
  A clamp;  // infinite for none

  explicit Pointwise(const Activation& a)
      : act(a.act),
        alpha(a.act == Act::linear ? A(1)
              : a.act == Act::relu ? A(0)
                                   : static_cast<A>(a.alpha)),
        gain(static_cast<A>(a.gain)),
        clamp(a.clamp < 0 ? A(__builtin_inf()) : static_cast<A>(a.clamp)) {}
};

template <Family family, class A>
__device__ __forceinline__ Jet<A> jet(const Pointwise<A>& p, A u) {
  if constexpr (family == Family::straight) {
    const A slope = u > A(0) ? A(1) : p.alpha;
    const A value = p.act == Act::relu && u < A(0) ? A(0) : u * slope;  // relu(-inf) is not NaN
    return {value, slope, A(0)};
  } else {
    const CurveBase<A> base = curve_base(p.act, u);
    switch (p.act) {
      case Act::tanh:
        return curve<Act::tanh>(u, base);
      case Act::elu:
        return curve<Act::elu>(u, base);
      case Act::selu:
        return curve<Act::selu>(u, base);
      case Act::sigmoid:
        return curve<Act::sigmoid>(u, base);
      case Act::softplus:
        return curve<Act::softplus>(u, base);
      default:
        return curve<Act::swish>(u, base);
    }
  }
}

// clamp(gain * act(u)); NaN stays NaN.
template <Family family, class A>
__device__ __forceinline__ A activated(const Pointwise<A>& p, A u) {
  const A value = p.gain * jet<family>(p, u).value;
  const A high = value > p.clamp ? p.clamp : value;
  return high < -p.clamp ? -p.clamp : high;
}

// gain, or 0 where gain * value was clamped.
template <class A>
__device__ __forceinline__ A slope(const Pointwise<A>& p, A value) {
  const A y = p.gain * value;
  return y > p.clamp || y < -p.clamp ? A(0) : p.gain;
}

// What an Epilogue adds to a kernel's result; passed to kernels by value.
template <class A>
struct EpilogueView {
  Pointwise<A> pointwise;
  const A* scale;        // [N, C] or null
  const A* noise;        // [N, HW] or null
  const A* bias;         // [C] or null
  int64_t noise_stride;  // from one sample's noise to the next; 0 where they share it

  explicit EpilogueView(const Epilogue& p)
      : pointwise(p.activation),
        scale(static_cast<const A*>(p.scale)),
        noise(static_cast<const A*>(p.noise)),
        bias(static_cast<const A*>(p.bias)),
        noise_stride(p.shared_noise ? 0 : p.images.hw) {}
};

}  // namespace gpseg::cuda
