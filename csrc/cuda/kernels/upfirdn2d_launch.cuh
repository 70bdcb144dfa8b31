// How the kernels of upfirdn2d.cuh are launched.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/kernels/upfirdn2d.cuh"
#include "cuda/launch.h"

namespace gpseg::cuda {

// What every GPU since sm_80 lends to a block, and what a tile may take of it.
constexpr int kMostShared = 96 << 10;

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }

inline int log2_up(int64_t n) {
  int log = 0;
  while ((int64_t{1} << log) < n) {
    ++log;
  }
  return log;
}

struct TilePlan {
  Tiling tiling;
  int64_t blocks;
  int threads;
  int shared_bytes;
};

// Sets out the tile of a block whose threads have been shared out already.
template <class Shape>
void plan_memory(const FirProblem<typename Shape::Element>& p, TilePlan& plan) {
  constexpr Fir fir = Shape::fir;
  constexpr int kItem = sizeof(typename Shape::Item), kBanks = 128;  // bytes
  constexpr int kLoadColumns = Shape::kLoadColumns, kPixelColumns = Shape::kPixelColumns;
  Tiling& t = plan.tiling;
  const int width = 1 << (t.log_lanes + t.log_x);
  plan.threads = (width << t.log_y) * t.planes;
  const auto pixels_of = [&](int outputs) {
    return ((outputs - 1) * fir.down + fir.taps - 1) / fir.up + 1;
  };
  // tiles start at whole sectors, some columns before the first pixel that is needed
  const int outputs_x = Shape::kColumns << t.log_x;
  const bool all_alike = outputs_x * fir.down / fir.up % Shape::kAlign == 0;
  const int64_t first = -floor_div(p.pad_x, fir.up);
  const int64_t before =
      all_alike ? first - floor_div(first, Shape::kAlign) * Shape::kAlign : Shape::kAlign - 1;
  // A warp that goes on to the next row of loads starts there with a whole sector, with both halves
  // of a pair, and with a whole bank.
  constexpr bool pairs = kPixelColumns == 2 * kLoadColumns;
  constexpr int for_banks = 4 * kPixelColumns / (kItem * kLoadColumns);
  constexpr int together = std::max({Shape::kAlign / kLoadColumns, pairs ? 2 : 1,
                                     Shape::access == Access::columns ? for_banks : 1});
  const int loads = static_cast<int>(ceil_div(before + pixels_of(outputs_x), kLoadColumns));
  const int vectors = static_cast<int>(ceil_div(loads, together)) * together;
  t.vectors = Divisor(static_cast<uint32_t>(vectors));
  t.rows = Divisor(static_cast<uint32_t>(pixels_of(Shape::kRows << t.log_y)));
  // The halves of a pair go to different banks.
  t.pitch = static_cast<int>(ceil_div(vectors * kLoadColumns, kPixelColumns));
  const int apart = (kLoadColumns * kItem) << t.log_lanes;
  for (int i = 0; pairs && i < 32 && t.pitch * apart % kBanks != kBanks / 2; ++i) {
    ++t.pitch;
  }
  // So do the rows that one warp reads, and if possible those that it writes: the next one's banks
  // follow upon the last one's.
  const int written = (vectors * kLoadColumns / kPixelColumns * kItem) << t.log_lanes;
  const int least = (kPixelColumns * t.pitch) << t.log_lanes;
  const int rows_apart = fir.separable ? 1 : Shape::kRows * fir.down / fir.up;
  const auto reads_apart = [&](int row_pitch) {
    constexpr int kAtOnce = std::min(32, kBanks / kItem);  // lanes
    const int read = width * kItem + (kItem < 4 ? 4 : 0);  // which may begin inside a bank
    for (int row = 1; row < kAtOnce / width; ++row) {
      const int apart = row * row_pitch * rows_apart * kItem % kBanks;
      if (std::min(apart, kBanks - apart) < read) {
        return false;
      }
    }
    return true;
  };
  const auto gap = [&](int row_pitch) {
    return (reads_apart(row_pitch) ? 0 : kBanks) +
           (row_pitch * kItem + kBanks - written % kBanks) % kBanks;
  };
  t.row_pitch = least;
  for (int row_pitch = least + 1; row_pitch < least + kBanks / kItem; ++row_pitch) {
    if (gap(row_pitch) < gap(t.row_pitch)) {
      t.row_pitch = row_pitch;
    }
  }
  const int all_rows = t.planes * static_cast<int>(t.rows.value);
  t.rows_at_once = fir.separable ? std::min(all_rows, 2 * plan.threads / width) : all_rows;
  plan.shared_bytes = t.rows_at_once * t.row_pitch * kItem;
  if (fir.separable) {
    plan.shared_bytes +=
        all_rows * width * Shape::kColumns * static_cast<int>(sizeof(Sum<typename Shape::Element>));
  }
}

// A tile wide enough that its margins, which its neighbours load too, are a small part of it; for
// small images, several channels or planes to a block; for tall, narrow ones no more rows than fit.
template <class Shape>
TilePlan plan_tiles(const FirProblem<typename Shape::Element>& p) {
  constexpr int kLogThreads = 8;
  static_assert(1 << kLogThreads == Shape::kThreads);
  const int64_t items = p.channels / Shape::kChannels;  // per pixel
  const int log_items = log2_up(items);
  TilePlan plan = {};
  Tiling& t = plan.tiling;
  t.log_lanes = std::min(log_items, Shape::access == Access::channels ? 2 : 3);
  const int log_widest = Shape::access == Access::channels || t.log_lanes > 0
                             ? log2_up(32 / Shape::kColumns)
                         : Shape::access == Access::elements ? log2_up(64 / Shape::kColumns)
                         : Shape::fir.separable ? std::min(5, log2_up(128 / Shape::kColumns))
                                                : 5;
  t.log_x = std::min(log_widest, log2_up(ceil_div(p.out_w, Shape::kColumns)));
  t.log_y = std::min(kLogThreads - t.log_lanes - t.log_x, log2_up(ceil_div(p.out_h, Shape::kRows)));
  t.planes = 1;
  plan_memory<Shape>(p, plan);
  while (plan.shared_bytes > kMostShared && t.log_y > 0) {
    --t.log_y;
    plan_memory<Shape>(p, plan);
  }
  while (2 * plan.threads <= Shape::kThreads) {
    TilePlan larger = plan;
    if (t.log_lanes < log_items) {
      ++larger.tiling.log_lanes;
    } else if (t.planes < p.planes) {
      larger.tiling.planes *= 2;
    } else {
      break;
    }
    plan_memory<Shape>(p, larger);
    if (larger.shared_bytes > kMostShared) {
      break;
    }
    plan = larger;
  }
  t.channel_tiles = static_cast<uint32_t>(ceil_div(items, int64_t{1} << t.log_lanes));
  t.x_tiles = static_cast<uint32_t>(ceil_div(p.out_w, int64_t{Shape::kColumns} << t.log_x));
  t.y_tiles = static_cast<uint32_t>(ceil_div(p.out_h, int64_t{Shape::kRows} << t.log_y));
  plan.blocks = int64_t{t.channel_tiles} * t.x_tiles * t.y_tiles * ceil_div(p.planes, t.planes);
  return plan;
}

template <class T>
FirProblem<T> problem_of(const Upfirdn2d& p) {
  return {static_cast<const T*>(p.input),
          static_cast<T*>(p.output),
          static_cast<T*>(p.epilogue == nullptr ? nullptr : p.filtered),
          static_cast<const Sum<T>*>(p.filter),
          static_cast<Sum<T>>(p.gain),
          p.flip_filter,
          p.filter_h == 0,
          p.channels_last ? p.n : p.n * p.c,
          p.channels_last ? p.c : 1,
          p.c,
          p.y.in,
          p.x.in,
          p.y.out,
          p.x.out,
          p.y.pad,
          p.x.pad,
          {}};
}

template <class T>
EpilogueView<Sum<T>> epilogue_of(const Upfirdn2d& p) {
  return EpilogueView<Sum<T>>(p.epilogue == nullptr ? Epilogue{} : *p.epilogue);
}

inline std::string shape_of(const Upfirdn2d& p) {
  return shape_of(p.dtype, {p.n, p.c, p.y.out * p.x.out, p.channels_last});
}

template <class Shape, Finish finish>
void launch_tiled(const Upfirdn2d& p, const Queue& queue) {
  using T = typename Shape::Element;
  FirProblem<T> problem = problem_of<T>(p);
  const TilePlan plan = plan_tiles<Shape>(problem);
  problem.tiling = plan.tiling;
  const auto launch = [&](auto* kernel, const char* name) {
    lend_shared(kernel, name, kMostShared);
    const dim3 grid(static_cast<unsigned>(plan.blocks)), block(static_cast<unsigned>(plan.threads));
    const size_t bytes = static_cast<size_t>(plan.shared_bytes);
    kernel<<<grid, block, bytes, stream_of(queue)>>>(problem, epilogue_of<T>(p));
    check_launch(name, shape_of(p), grid, block, bytes);
  };
  if constexpr (Shape::fir.separable) {
    static_assert(finish == Finish::plain);
    launch(upfirdn2d_separable_kernel<Shape>, "upfirdn2d_separable_kernel");
  } else {
    launch(upfirdn2d_kernel<Shape, finish>, "upfirdn2d_kernel");
  }
}

}  // namespace gpseg::cuda
