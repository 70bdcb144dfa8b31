// 3 x 3 convolutions on the CPU by Winograd's minimal filtering, with the passes around them,
// and the gradient of their kernels.
#include <cstdint>
#include <type_traits>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "cpu/workspace.h"

#define GPSEG_KERNEL "cpu/kernels/winograd.inl"
#include "cpu/isa/each_level.h"

namespace gpseg {

void winograd_conv(const WinogradConv& p) { GPSEG_DISPATCH(winograd_conv, p); }

void winograd_weight_grad(const WinogradWeightGrad& p) { GPSEG_DISPATCH(winograd_weight_grad, p); }

}  // namespace gpseg
