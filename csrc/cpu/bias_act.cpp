// bias_act on the CPU: y = clamp(gain * act(x + bias)), its gradient and its second derivative; and
// demod_act, which also has scale and noise.
#include <cstdint>
#include <type_traits>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"

#define GPSEG_KERNEL "cpu/kernels/bias_act.inl"
#include "cpu/isa/each_level.h"

namespace gpseg {

void bias_act(const EpilogueForward& p) { GPSEG_DISPATCH(bias_act, p); }

void bias_act_backward(const EpilogueBackward& p) { GPSEG_DISPATCH(bias_act_backward, p); }

void bias_act_double_backward(const EpilogueDoubleBackward& p) {
  GPSEG_DISPATCH(bias_act_double_backward, p);
}

}  // namespace gpseg
