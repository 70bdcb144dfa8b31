// One pass over dense images that keeps what several elements share in registers: a channel's scale
// and bias, a pixel's noise, and the sums that go back into them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>

#include "common/kernels.h"
#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/memory.cuh"
#include "cuda/launch.h"

namespace gpseg::cuda {

// Images are rows of vectors, and a thread goes from vector to vector in the direction in which it
// meets what it holds again. The lanes of a warp always lie along memory.
enum class Walk {
  along_channel,    // [N, C, HW]: rows are channels; along one, whose scale and bias it holds
  across_channels,  // [N, C, HW]: rows are channels; down them, the pixels' noise at hand
  across_pixels,    // [N, HW, C]: rows are pixels; down them, the channels' scale and bias at hand
};

constexpr int kSweepThreads = 256;
constexpr int kSweepWarps = kSweepThreads / 32;

struct Sweep {
  int64_t samples;  // 1 along channels, where samples are but more rows
  int64_t rows;     // of a sample
  int64_t columns;  // of a row, in vectors
  int64_t channels;
  int repeats;          // pixels in a row across pixels, else 1
  int width_bits;       // 2^width_bits threads of a block share a row
  int visits;           // vectors that a thread goes through
  unsigned row_blocks;  // of a sample
  unsigned column_blocks;

  GPSEG_INLINE int width() const { return 1 << width_bits; }
  GPSEG_INLINE int lanes() const { return width_bits < 5 ? 1 << width_bits : 32; }  // of a warp
  GPSEG_INLINE int height() const { return kSweepThreads >> width_bits; }

  unsigned blocks() const { return static_cast<unsigned>(samples) * row_blocks * column_blocks; }

  // How many sums are left of what each row, or each column, adds up to.
  int64_t parts_of_row() const { return int64_t{column_blocks} * (width() / lanes()); }
  int64_t parts_of_column() const { return int64_t{row_blocks} * repeats; }
};

inline int bits_from(int64_t least, int most) {
  int bits = 0;
  while (bits < most && (int64_t{1} << bits) < least) {
    ++bits;
  }
  return bits;
}

// Work is cut by sizes alone, so that sums come out the same on every GPU.
inline Sweep plan_sweep(Walk walk, const Images& images, int length) {
  const bool along = walk == Walk::along_channel;
  Sweep s{};
  s.channels = images.c;
  s.repeats = 1;
  if (walk == Walk::across_pixels) {
    // several pixels make a row where the channels of one don't fill whole vectors
    s.repeats = length / static_cast<int>(std::gcd(images.c, int64_t{length}));
    s.samples = images.n;
    s.rows = images.hw / s.repeats;
    s.columns = images.c * s.repeats / length;
  } else {
    s.samples = along ? 1 : images.n;
    s.rows = along ? images.n * images.c : images.c;
    s.columns = images.hw / length;
  }
  s.width_bits = bits_from(s.columns, along ? 8 : 5);

  // Long walks leave few partial sums and seldom fetch what is shared; but that 8192 warps have
  // work, as many as the largest GPUs hold at once, comes first.
  const int64_t warp_vectors =
      s.samples * ceil_div(s.rows, 32 / s.lanes()) * ceil_div(s.columns, s.lanes());
  const int balanced = bits_from(warp_vectors / 8192, along ? 6 : 5);
  const int64_t walked = along ? ceil_div(s.columns, s.width()) : ceil_div(s.rows, s.height());
  s.visits = 1 << std::min(std::max(balanced, along ? 2 : 3), bits_from(walked, 6));
  s.row_blocks = static_cast<unsigned>(ceil_div(s.rows, s.height() * (along ? 1 : s.visits)));
  s.column_blocks = static_cast<unsigned>(ceil_div(s.columns, s.width() * (along ? s.visits : 1)));
  return s;
}

// A thread's way through a sweep.
struct Path {
  int64_t sample;
  int64_t row;    // of the first visit; it changes by `row_step` from visit to visit
  int64_t first;  // element of the first visit, and `stride` from visit to visit
  int64_t stride;
  int64_t element;   // of the row, where the block's columns start
  int64_t row_part;  // which of the row's sums this warp adds to
  unsigned row_block;
  int row_step;
  int visits;  // the most that a thread of the block has
  int within;  // this thread's visits, at most `visits`
};

template <Walk walk, int length>
__device__ __forceinline__ Path path_of(const Sweep& s) {
  constexpr bool along = walk == Walk::along_channel;
  const int thread_row = threadIdx.x >> s.width_bits;
  const int thread_column = threadIdx.x & (s.width() - 1);
  const unsigned column_block = blockIdx.x % s.column_blocks;
  const unsigned rest = blockIdx.x / s.column_blocks;

  Path path;
  path.row_block = rest % s.row_blocks;
  path.sample = rest / s.row_blocks;
  const int64_t block_row =
      static_cast<int64_t>(path.row_block) * s.height() * (along ? 1 : s.visits);
  const int64_t block_column =
      static_cast<int64_t>(column_block) * s.width() * (along ? s.visits : 1);
  const int64_t column = block_column + thread_column;
  path.row = block_row + thread_row;
  path.row_step = along ? 0 : s.height();
  path.first = ((path.sample * s.rows + path.row) * s.columns + column) * length;
  path.stride = (along ? s.width() : s.height() * s.columns) * length;
  path.element = block_column * length;
  path.row_part = static_cast<int64_t>(column_block) * (s.width() / s.lanes()) + thread_column / 32;

  const int step_bits = along ? s.width_bits : 8 - s.width_bits;
  const auto visits_within = [&](int64_t left) {
    const int64_t most = static_cast<int64_t>(s.visits) << step_bits;
    const int steps = static_cast<int>(left < most ? left : most);
    return (steps + (1 << step_bits) - 1) >> step_bits;
  };
  path.visits = visits_within(along ? s.columns - block_column : s.rows - block_row);
  path.within = visits_within(along ? s.columns - column : s.rows - path.row);
  if (along ? path.row >= s.rows : column >= s.columns) {
    path.within = 0;
  }
  return path;
}

// One value for each element of a block's columns, in shared memory. Lanes lie next to each other
// and a vector's elements a pitch apart, so that neither threads with an element each nor lanes
// with a vector each meet in a bank.
template <class A, int length>
struct Strip {
  static constexpr int pitch = length == 1 ? 32 : 32 + 128 / static_cast<int>(sizeof(A)) / length;
  static constexpr int size = length * pitch;

  static __device__ __forceinline__ int slot(int lane, int element) {
    return element * pitch + lane;
  }
  static __device__ __forceinline__ int slot(int i) { return slot(i / length, i % length); }
};

// Fetches a term for each element of a thread's columns; `otherwise` if there are none.
template <class A, int length>
__device__ __forceinline__ void fetch_column_terms(const Sweep& s, const Path& path, const A* from,
                                                   A otherwise, A (&to)[length]) {
  using Columns = Strip<A, length>;
  __shared__ A terms[Columns::size];
  const int thread = threadIdx.x;
  if (from != nullptr) {
    __syncthreads();  // where terms before these have been read
    const int64_t element = path.element + thread;
    if (thread < s.lanes() * length && element < s.columns * length) {
      terms[Columns::slot(thread)] =
          __ldg(from + (s.repeats == 1 ? element : element % s.channels));
    }
    __syncthreads();
  }
  const int lane = thread & (s.lanes() - 1);
  const bool inside = from != nullptr && path.within > 0;
#pragma unroll
  for (int j = 0; j < length; ++j) {
    to[j] = inside ? terms[Columns::slot(lane, j)] : otherwise;
  }
}

// Adds a value up over the lanes that share a row and stores the sum, one for each part of each
// row: [parts_of_row, samples, rows].
template <class A>
__device__ __forceinline__ void store_row_sum(const Sweep& s, const Path& path, int64_t row,
                                              bool inside, A value, A* to) {
  for (int offset = s.lanes() / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  if (inside && (threadIdx.x & (s.lanes() - 1)) == 0) {
    to[(path.row_part * s.samples + path.sample) * s.rows + row] = value;
  }
}

// Adds values up over a block's rows and stores one sum for each element of its columns:
// [row_blocks, repeats, samples, elements of a row / repeats].
template <class A, int length>
__device__ __forceinline__ void store_column_sums(const Sweep& s, const Path& path,
                                                  A (&value)[length], A* to) {
  using Columns = Strip<A, length>;
  __shared__ A sums[kSweepWarps][Columns::size];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  for (int offset = s.lanes(); offset < 32; offset *= 2) {
#pragma unroll
    for (int j = 0; j < length; ++j) {
      value[j] += __shfl_xor_sync(0xffffffffu, value[j], offset);
    }
  }
  __syncthreads();  // where sums before these have been read
  if (lane < s.lanes()) {
#pragma unroll
    for (int j = 0; j < length; ++j) {
      sums[warp][Columns::slot(lane, j)] = value[j];
    }
  }
  __syncthreads();
  const int64_t element = path.element + thread;
  if (thread < s.lanes() * length && element < s.columns * length) {
    A sum = A(0);
#pragma unroll
    for (int w = 0; w < kSweepWarps; ++w) {
      sum += sums[w][Columns::slot(thread)];
    }
    const int64_t period = s.columns * length / s.repeats;
    const int64_t repeat = s.repeats == 1 ? 0 : element / period;
    to[((path.row_block * int64_t{s.repeats} + repeat) * s.samples + path.sample) * period +
       (element - repeat * period)] = sum;
  }
}

// Calls body(length, walk, sweep) with a vector's length and the way through the images as
// constants. `noisy`: something belongs to pixels. `aligned`: tensors start at 16-byte boundaries.
template <class T, bool maybe_noisy, class Body>
void for_sweep(const Images& images, bool noisy, bool aligned, const Body& body) {
  constexpr int most = kVectorLength<T>;
  const auto with_walk = [&](auto walk, int64_t elements) {  // that stay together
    if (aligned && elements % most == 0) {
      body(std::integral_constant<int, most>(), walk, plan_sweep(walk, images, most));
    } else {
      body(std::integral_constant<int, 1>(), walk, plan_sweep(walk, images, 1));
    }
  };
  if (images.channels_last) {
    with_walk(std::integral_constant<Walk, Walk::across_pixels>(),
              noisy ? images.c : images.c * images.hw);
  } else if (maybe_noisy && noisy) {
    if constexpr (maybe_noisy) {
      with_walk(std::integral_constant<Walk, Walk::across_channels>(), images.hw);
    }
  } else {
    with_walk(std::integral_constant<Walk, Walk::along_channel>(), images.hw);
  }
}

}  // namespace gpseg::cuda
