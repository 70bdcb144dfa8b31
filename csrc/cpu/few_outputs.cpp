// Gradients of ToRGB on the CPU: of 1×1 convolutions with few outputs.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "cpu/workspace.h"

#define GPSEG_KERNEL "cpu/kernels/few_outputs.inl"
#include "cpu/isa/each_level.h"

namespace gpseg {

void few_outputs_gradients(const FewOutputs& p) { GPSEG_DISPATCH(few_outputs_gradients, p); }

}  // namespace gpseg
