// The passes around a modulated convolution on the CPU: y = clamp(gain * act(scale * x + noise +
// bias)) and its gradient, which bias_act's kernels know; with no activation it is the scaling of
// channels by styles. And what demodulation needs of the weight.
#include <cstdint>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"

#define GPSEG_KERNEL "cpu/kernels/squared_norms.inl"
#include "cpu/isa/each_level.h"

namespace gpseg {

void squared_norms(const SquaredNorms& p) { GPSEG_DISPATCH(squared_norms, p); }

void demod_act(const EpilogueForward& p) { bias_act(p); }

void demod_act_backward(const EpilogueBackward& p) { bias_act_backward(p); }

}  // namespace gpseg
