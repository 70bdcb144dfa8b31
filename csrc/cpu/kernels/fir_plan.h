// A polyphase FIR: which taps meet which pixels.
#pragma once

#include <cstdint>
#include <vector>

#include "common/kernels.h"

namespace gpseg {

// Along an axis, output j * period + r is the sum over t in [first[r], first[r + 1]) of tap[t]
// times input j * step + index[t]. Inserted zeros are met by no t; pixels outside of the image
// count as zero.
struct Phases {
  int64_t period;
  int64_t step;
  std::vector<int64_t> first;
  std::vector<int64_t> tap;
  std::vector<int64_t> index;
  int64_t lowest_index;
  int64_t highest_index;
  int64_t most_taps;  // of any phase
};

struct FirPlan {
  Phases x;
  Phases y;
  bool separable;
  int64_t width;               // of `taps`
  std::vector<double> taps_x;  // separable: one filter per axis
  std::vector<double> taps_y;
  std::vector<double> taps;  // otherwise [height, width]
};

// The plan's arrays as plain pointers, which is all that code compiled for one instruction set may
// touch.
struct PhasesView {
  int64_t period;
  int64_t step;
  const int64_t* first;
  const int64_t* tap;
  const int64_t* index;
  int64_t lowest_index;
  int64_t highest_index;
  int64_t most_taps;
};

struct FirView {
  PhasesView x;
  PhasesView y;
  bool separable;
  int64_t width;
  const double* taps_x;
  const double* taps_y;
  const double* taps;
};

}  // namespace gpseg
