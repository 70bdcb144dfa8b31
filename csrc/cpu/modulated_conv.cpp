// The passes around a modulated convolution on the CPU: y = clamp(gain * act(scale * x + noise +
// bias)) and its gradient. With no activation it is the scaling of channels by styles.
//
// bias_act's kernels know scale and noise.
#include "common/kernels.h"

namespace gpseg {

void demod_act(const EpilogueForward& p) { bias_act(p); }

void demod_act_backward(const EpilogueBackward& p) { bias_act_backward(p); }

}  // namespace gpseg
