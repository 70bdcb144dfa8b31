// The passes around a modulated convolution on the CPU: y = clamp(gain * act(scale * x + noise +
// bias)) and its gradient. With no activation it is the scaling of channels by styles.
#include <cstdint>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"

#define GPSEG_KERNEL "cpu/kernels/modulated_conv.inl"
#include "cpu/isa/each_level.h"

namespace gpseg {

void demod_act(const EpilogueForward& p) { GPSEG_DISPATCH(demod_act, p); }

void demod_act_backward(const EpilogueBackward& p) { GPSEG_DISPATCH(demod_act_backward, p); }

}  // namespace gpseg
