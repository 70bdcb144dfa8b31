// upfirdn2d on the CPU: insert zeros, pad, filter, decimate, in one polyphase pass.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "common/kernels.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "cpu/kernels/fir_plan.h"

#define GPSEG_KERNEL "cpu/kernels/upfirdn2d.inl"
#include "cpu/isa/each_level.h"

namespace gpseg {
namespace {

int64_t floor_mod(int64_t a, int64_t b) { return ((a % b) + b) % b; }

// With correlation, output o meets tap k at o * down - pad + k on the upsampled grid: a pixel if
// `up` divides that, else an inserted zero.
Phases phases_of(const Axis& axis, int64_t taps) {
  const int64_t common = std::gcd(axis.up, axis.down);
  Phases phases{axis.up / common, axis.down / common, {0}, {}, {}, 0, 0, 0};
  for (int64_t r = 0; r < phases.period; ++r) {
    const int64_t start = r * axis.down - axis.pad;
    for (int64_t k = floor_mod(-start, axis.up); k < taps; k += axis.up) {
      phases.tap.push_back(k);
      phases.index.push_back((start + k) / axis.up);
    }
    phases.first.push_back(static_cast<int64_t>(phases.tap.size()));
    phases.most_taps = std::max(phases.most_taps, phases.first[r + 1] - phases.first[r]);
  }
  if (!phases.index.empty()) {
    const auto [low, high] = std::minmax_element(phases.index.begin(), phases.index.end());
    phases.lowest_index = *low;
    phases.highest_index = *high;
  }
  return phases;
}

// Splits a filter into a column times a row, if it is their product up to the accuracy of the sums.
bool factorise(FirPlan& plan, DType dtype) {
  const int64_t width = plan.width, height = static_cast<int64_t>(plan.taps.size()) / width;
  const auto largest = std::max_element(plan.taps.begin(), plan.taps.end(), [](double a, double b) {
    return std::abs(a) < std::abs(b);
  });
  const int64_t at = largest - plan.taps.begin(), x0 = at % width, y0 = at / width;
  const double pivot = *largest == 0 ? 1 : *largest;
  for (int64_t x = 0; x < width; ++x) {
    plan.taps_x.push_back(plan.taps[y0 * width + x]);
  }
  for (int64_t y = 0; y < height; ++y) {
    plan.taps_y.push_back(plan.taps[y * width + x0] / pivot);
  }
  const double tolerance = (dtype == DType::float64 ? 1e-12 : 1e-7) * std::abs(pivot);
  for (int64_t i = 0; i < width * height; ++i) {
    if (!(std::abs(plan.taps[i] - plan.taps_y[i / width] * plan.taps_x[i % width]) <= tolerance)) {
      return false;
    }
  }
  return true;
}

FirPlan plan_of(const Upfirdn2d& p) {
  const int64_t height = p.filter_h == 0 ? p.filter_w : p.filter_h;
  FirPlan plan{phases_of(p.x, p.filter_w), phases_of(p.y, height), true, p.filter_w, {}, {}, {}};
  const int64_t count = p.filter_w * std::max<int64_t>(p.filter_h, 1);
  static const double identity = 1;
  const auto* taps = p.filter == nullptr ? &identity : static_cast<const double*>(p.filter);
  plan.taps.assign(taps, taps + count);
  if (!p.flip_filter) {
    std::reverse(plan.taps.begin(), plan.taps.end());
  }
  if (p.filter_h == 0) {
    plan.taps_x = plan.taps_y = plan.taps;
  } else {
    plan.separable = factorise(plan, p.dtype);
  }
  for (double& tap : plan.separable ? plan.taps_x : plan.taps) {
    tap *= p.gain;
  }
  return plan;
}

PhasesView view_of(const Phases& p) {
  return {p.period,       p.step,         p.first.data(),  p.tap.data(),
          p.index.data(), p.lowest_index, p.highest_index, p.most_taps};
}

void dispatch(const Upfirdn2d& p, const FirView& plan) { GPSEG_DISPATCH(upfirdn2d, p, plan); }

}  // namespace

void upfirdn2d(const Upfirdn2d& p) {
  const FirPlan plan = plan_of(p);
  dispatch(p, {view_of(plan.x), view_of(plan.y), plan.separable, plan.width, plan.taps_x.data(),
               plan.taps_y.data(), plan.taps.data()});
}

}  // namespace gpseg
