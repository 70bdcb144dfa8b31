// Images from one memory order to the other.
#include <cstdint>
#include <cstring>

#include "common/kernels.h"
#include "common/parallel.h"

#define GPSEG_KERNEL "cpu/kernels/layout.inl"
#include "cpu/isa/each_level.h"

namespace gpseg {

void change_layout(const LayoutChange& p) { GPSEG_DISPATCH(change_layout, p); }

}  // namespace gpseg
