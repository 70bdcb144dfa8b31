// upfirdn2d in one launch: a block stages a tile of pixels in shared memory, each thread sums the
// taps of a few adjacent outputs in registers and stores them, through the epilogue if there is
// one.
//
// Along an axis, output o meets tap k (of a correlation) at o * down - pad + k on the upsampled
// grid: a pixel if `up` divides that, else an inserted zero. So the outputs of one phase, o mod up,
// are a plain FIR with every up-th tap, and no inserted zero is ever touched.
//
// Both orders of pixels are planes of [height, width, channels]: NCHW has one channel and n * c
// planes.
#pragma once

#include <cstdint>

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/memory.cuh"
#include "cuda/kernels/ptx.cuh"

namespace gpseg::cuda {

// What a vector in global memory holds: columns of a row (NCHW), channels of a pixel
// (channels_last), or a single element of either, for sizes and addresses that no vector divides.
enum class Access { columns, channels, elements };

// A filter that kernels are compiled for: up, down and taps along both axes.
struct Fir {
  int up;
  int down;
  int taps;
  bool separable;  // two passes, the first one's result in shared memory
};

enum class Finish { plain, straight, curved };

// n / divisor for n * divisor < 2^32.
struct Divisor {
  uint32_t value;
  uint32_t reciprocal;

  Divisor() = default;
  explicit Divisor(uint32_t n) : value(n), reciprocal(n == 1 ? 0 : 0xffffffffu / n + 1) {}

  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return value == 1 ? n : static_cast<uint32_t>((uint64_t{n} * reciprocal) >> 32);
  }
};

// How a block is spread over outputs, and its tile over shared memory. A thread's index reads, from
// the lowest bits on: channel lane, x, y, plane.
struct Tiling {
  int log_lanes;
  int log_x;
  int log_y;
  int planes;  // of a block
  uint32_t channel_tiles;
  uint32_t x_tiles;
  uint32_t y_tiles;
  Divisor rows;      // of pixels, of one plane
  Divisor vectors;   // loaded per row and channel lane
  int pitch;         // see Tile::place
  int row_pitch;     // in items
  int rows_at_once;  // of pixels, in shared memory, between the two passes
};

template <class T>
struct FirProblem {
  const T* input;
  T* output;
  T* filtered;  // null unless wanted beside the epilogue's result
  const Sum<T>* filter;
  Sum<T> gain;
  bool flip;
  bool one_axis;  // [fw], to be used along both axes
  int64_t planes;
  int64_t channels;        // of a plane's pixels
  int64_t image_channels;  // of the images
  int64_t in_h, in_w;
  int64_t out_h, out_w;
  int64_t pad_y, pad_x;
  Tiling tiling;
};

template <class T, Fir fir_, Access access_>
struct FirShape {
  using Element = T;
  static constexpr Fir fir = fir_;
  static constexpr Access access = access_;
  static constexpr int kThreads = 256;
  // blocks that a multiprocessor must have registers for, as many as leave none to be spilled
  static constexpr int kBlocks =
      fir.separable || (access == Access::channels && sizeof(T) != 4) ? 2 : 3;
  // elements of a vector in global memory
  static constexpr int kVector = access == Access::elements ? 1 : kVectorLength<T>;
  // channels of a thread
  static constexpr int kChannels = access == Access::channels ? kVector : 1;
  // adjacent outputs of a thread: as many as its registers hold sums of
  static constexpr int kColumns = access == Access::columns                     ? kVector
                                  : access == Access::channels && fir.down == 1 ? 2
                                                                                : 1;
  static constexpr int kRows = fir.separable                ? 16 / kColumns
                               : access == Access::elements ? 8 / fir.down
                               : access == Access::columns  ? 4 / fir.down
                                                            : 4;
  // columns of pixels that a load brings: as many as one thread owns where there are fewer of them
  // than a vector has, so that the banks they are put into differ; 2-byte elements differ anyway
  static constexpr int kPixelColumns =
      kColumns * fir.down / fir.up > 1 ? kColumns * fir.down / fir.up : 1;
  static constexpr int kLoad = access != Access::columns                   ? kChannels
                               : sizeof(T) == 2 || kPixelColumns > kVector ? kVector
                                                                           : kPixelColumns;
  static constexpr int kLoadColumns = access == Access::columns ? kLoad : 1;
  // columns that a tile's start is a multiple of: whole sectors of 32 bytes
  static constexpr int kAlign = access == Access::columns ? 32 / static_cast<int>(sizeof(T)) : 1;
  // phases that one thread's outputs are of
  static constexpr int kPhasesX = kColumns < fir.up ? 1 : fir.up;
  static constexpr int kPhasesY = kRows < fir.up ? 1 : fir.up;
  static constexpr int kPhaseTaps = fir.taps / fir.up;
  // pixels that the outputs of one phase are made of, and the step from one output's to the next's
  static constexpr int kStep = fir.up == 1 ? fir.down : 1;
  static constexpr int kWindowX = (kColumns / kPhasesX - 1) * kStep + kPhaseTaps;
  static constexpr int kWindowY = (kRows / kPhasesY - 1) * kStep + kPhaseTaps;

  // What the tile in shared memory is made of.
  using Item = Vector<T, kChannels>;
  // What a thread has in the accumulation type, of a vector's length, is moved 16 bytes at a time.
  static constexpr int kChunk = kVector < 16 / static_cast<int>(sizeof(Sum<T>))
                                    ? kVector
                                    : 16 / static_cast<int>(sizeof(Sum<T>));
};

template <int length, class T>
__device__ __forceinline__ Vector<T, length> load_tile(const Vector<T, length>* from) {
  using W = typename Word<static_cast<int>(sizeof(T)) * length>::Type;
  return __builtin_bit_cast(Vector<T, length>, load_shared(reinterpret_cast<const W*>(from)));
}

template <int length, class T>
__device__ __forceinline__ void store_tile(Vector<T, length>* to, const Vector<T, length>& value) {
  using W = typename Word<static_cast<int>(sizeof(T)) * length>::Type;
  store_shared(reinterpret_cast<W*>(to), __builtin_bit_cast(W, value));
}

__device__ __forceinline__ int64_t round_down(int64_t a, int multiple) {
  const int64_t remainder = a % multiple;
  return a - (remainder < 0 ? remainder + multiple : remainder);
}

// Where a block's outputs and pixels are.
template <class Shape>
struct Tile {
  using T = typename Shape::Element;
  using Item = typename Shape::Item;
  static constexpr int up = Shape::fir.up, down = Shape::fir.down;

  const Tiling& tiling;
  int64_t first_plane;
  int64_t first_channel;  // in items
  int64_t out_y, out_x;
  int64_t in_y, in_x;
  int rest_y, rest_x;  // out * down - pad - in * up: where the tile's outputs start in its pixels

  __device__ explicit Tile(const FirProblem<T>& p) : tiling(p.tiling) {
    uint32_t index = blockIdx.x;
    first_channel = int64_t{index % tiling.channel_tiles} << tiling.log_lanes;
    index /= tiling.channel_tiles;
    out_x = (int64_t{index % tiling.x_tiles} << tiling.log_x) * Shape::kColumns;
    index /= tiling.x_tiles;
    out_y = (int64_t{index % tiling.y_tiles} << tiling.log_y) * Shape::kRows;
    first_plane = int64_t{index / tiling.y_tiles} * tiling.planes;
    const int64_t x = out_x * down - p.pad_x, y = out_y * down - p.pad_y;
    in_x = round_down(round_down(x + up - 1, up) / up, Shape::kAlign);
    in_y = round_down(y + up - 1, up) / up;
    rest_x = static_cast<int>(x - in_x * up);
    rest_y = static_cast<int>(y - in_y * up);
  }

  // A thread's columns are dealt out into rows of their own, so that neighbouring threads find
  // theirs in neighbouring banks.
  __device__ __forceinline__ int place(int column) const {
    constexpr unsigned count = Shape::kPixelColumns;
    const unsigned c = static_cast<unsigned>(column);
    return static_cast<int>(c % count * tiling.pitch + c / count) << tiling.log_lanes;
  }

  // Fills `count` rows of the tile, counted through its planes, with pixels, or zeros outside.
  __device__ void load(const FirProblem<T>& p, Item* tile, int first_row, int count) const {
    constexpr int kBatch = 4;  // loads under way at once
    constexpr int kLoad = Shape::kLoad;
    const int lanes = 1 << tiling.log_lanes;
    const int loads = count * static_cast<int>(tiling.vectors.value) << tiling.log_lanes;
    for (int start = static_cast<int>(threadIdx.x); start < loads;
         start += kBatch * static_cast<int>(blockDim.x)) {
      Vector<T, kLoad> vector[kBatch];
      int to[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = start + b * static_cast<int>(blockDim.x);
        const int lane = i & (lanes - 1);
        const uint32_t at = static_cast<uint32_t>(i) >> tiling.log_lanes;
        const uint32_t row = tiling.vectors.quotient(at);
        const int column = static_cast<int>(at - row * tiling.vectors.value) * Shape::kLoadColumns;
        const uint32_t tile_row = row + static_cast<uint32_t>(first_row);
        const uint32_t in_block = tiling.rows.quotient(tile_row);
        const int64_t plane = first_plane + in_block;
        const int64_t y = in_y + (tile_row - in_block * tiling.rows.value), x = in_x + column;
        const int64_t channel = (first_channel + lane) * Shape::kChannels;
        to[b] = i < loads ? static_cast<int>(row) * tiling.row_pitch + place(column) + lane : -1;
        const bool inside = i < loads && plane < p.planes && channel < p.channels && y >= 0 &&
                            y < p.in_h && x >= 0 && x < p.in_w;
        vector[b] = {};
        if (inside) {
          vector[b] = load_vector<kLoad>(
              p.input + ((plane * p.in_h + y) * p.in_w + x) * p.channels + channel);
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (to[b] < 0) {
          continue;
        }
        if constexpr (Shape::access == Access::columns) {
          // a load starts at a multiple of kLoadColumns, so it never runs over kPixelColumns unless
          // it holds several threads' columns
#pragma unroll
          for (int e = 0; e < kLoad; ++e) {
            constexpr int count_columns = Shape::kPixelColumns;
            store_tile(tile + to[b] + e % count_columns * tiling.pitch + e / count_columns,
                       Item{{vector[b].element[e]}});
          }
        } else {
          store_tile(tile + to[b], vector[b]);
        }
      }
    }
  }
};

// The first pixel and the first tap of an output, `offset` outputs * down after a tile's first.
struct Start {
  int pixel;
  int tap;

  __device__ Start(int rest, int offset, int up) {
    const int at = rest + offset;
    tap = at & (up - 1);  // up is 1 or 2
    pixel = (at + tap) / up;
  }
};

// One thread's place in its block.
template <class Shape>
struct Seat {
  int lane;
  int x;
  int y;
  int plane;

  __device__ explicit Seat(const Tiling& t) {
    const int i = static_cast<int>(threadIdx.x);
    lane = i & ((1 << t.log_lanes) - 1);
    x = ((i >> t.log_lanes) & ((1 << t.log_x) - 1)) * Shape::kColumns;
    y = ((i >> (t.log_lanes + t.log_x)) & ((1 << t.log_y) - 1)) * Shape::kRows;
    plane = i >> (t.log_lanes + t.log_x + t.log_y);
  }
};

// values[i] = from[at + i], or `otherwise` if there is nothing to read from.
template <int count, class A>
__device__ __forceinline__ void read_chunks(A (&values)[count], const A* from, int64_t at,
                                            A otherwise) {
  constexpr int kMost = 16 / static_cast<int>(sizeof(A));
  constexpr int kChunk = count < kMost ? count : kMost;
#pragma unroll
  for (int i = 0; i < count; i += kChunk) {
    Vector<A, kChunk> chunk;
    if (from != nullptr) {
      chunk = load_vector<kChunk>(from + at + i);
    }
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      values[i + j] = from == nullptr ? otherwise : chunk.element[j];
    }
  }
}

template <class Shape>
using Sums = Sum<typename Shape::Element>[Shape::kRows][Shape::kColumns][Shape::kChannels];

// Writes a thread's outputs, finished.
template <Finish finish, class Shape>
__device__ __forceinline__ void finish_outputs(const FirProblem<typename Shape::Element>& p,
                                               const EpilogueView<Sum<typename Shape::Element>>& e,
                                               const Tile<Shape>& tile, const Seat<Shape>& seat,
                                               const Sums<Shape>& sums) {
  using T = typename Shape::Element;
  using A = Sum<T>;
  constexpr int kColumns = Shape::kColumns, kChannels = Shape::kChannels;
  constexpr bool kOfColumns = Shape::access == Access::columns;
  constexpr int kStores = kOfColumns ? 1 : kColumns;
  const int64_t plane = tile.first_plane + seat.plane;
  const int64_t channel = (tile.first_channel + seat.lane) * kChannels;
  const int64_t x = tile.out_x + seat.x;
  if (plane >= p.planes || channel >= p.channels || x >= p.out_w) {
    return;
  }
  A scale[kChannels], bias[kChannels];
  int64_t sample = plane;
  if constexpr (finish != Finish::plain) {
    const int64_t c = p.image_channels;
    sample = plane * p.channels / c;
    const int64_t at = plane * p.channels + channel;
    read_chunks(scale, e.scale, at, A(1));
    read_chunks(bias, e.bias, at - sample * c, A(0));
  }
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
    const int64_t y = tile.out_y + seat.y + r;
    if (y >= p.out_h) {
      return;
    }
    const int64_t pixel = y * p.out_w + x;
#pragma unroll
    for (int s = 0; s < kStores; ++s) {
      if (x + s >= p.out_w) {
        break;
      }
      const int64_t to = (plane * p.out_h * p.out_w + pixel + s) * p.channels + channel;
      Vector<T, Shape::kVector> vector;
      if constexpr (finish == Finish::plain) {
#pragma unroll
        for (int i = 0; i < Shape::kVector; ++i) {
          vector.element[i] = narrow<T>(kOfColumns ? sums[r][i][0] : sums[r][s][i]);
        }
      } else {
        if (p.filtered != nullptr) {
#pragma unroll
          for (int i = 0; i < Shape::kVector; ++i) {
            vector.element[i] = narrow<T>(kOfColumns ? sums[r][i][0] : sums[r][s][i]);
          }
          store_vector(p.filtered + to, vector);
        }
        A noise[kOfColumns ? kColumns : 1];
        read_chunks(noise, e.noise, sample * e.noise_stride + pixel + s, A(0));
        constexpr Family family = finish == Finish::straight ? Family::straight : Family::curved;
#pragma unroll
        for (int i = 0; i < Shape::kVector; ++i) {
          const int c = kOfColumns ? 0 : i;
          const A v = kOfColumns ? sums[r][i][0] : sums[r][s][i];
          const A u = scale[c] * v + noise[kOfColumns ? i : 0] + bias[c];
          vector.element[i] = narrow<T>(activated<family>(e.pointwise, u));
        }
      }
      store_vector(p.output + to, vector);
    }
  }
}

// taps[y, x] of the correlation, gain included.
template <int taps, class T>
__device__ __forceinline__ void read_taps(const FirProblem<T>& p, Sum<T>* to) {
  const int i = static_cast<int>(threadIdx.x);
  for (int at = i; at < taps * taps; at += static_cast<int>(blockDim.x)) {
    const int from = p.flip ? at : taps * taps - 1 - at;
    const Sum<T> tap = p.one_axis ? __ldg(p.filter + from / taps) * __ldg(p.filter + from % taps)
                                  : __ldg(p.filter + from);
    to[at] = tap * p.gain;
  }
}

// taps[k] for either axis; gain is for the caller.
template <int taps, class T>
__device__ __forceinline__ void read_taps_of_axis(const FirProblem<T>& p, Sum<T>* to) {
  for (int at = static_cast<int>(threadIdx.x); at < taps; at += static_cast<int>(blockDim.x)) {
    to[at] = __ldg(p.filter + (p.flip ? at : taps - 1 - at));
  }
}

// All taps of both axes at once: 4 x 4 of them cost less than a second pass through shared memory.
template <class Shape, Finish finish>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    upfirdn2d_kernel(FirProblem<typename Shape::Element> p,
                     EpilogueView<Sum<typename Shape::Element>> epilogue) {
  using A = Sum<typename Shape::Element>;
  using Item = typename Shape::Item;
  constexpr Fir fir = Shape::fir;
  constexpr int kTaps = Shape::kPhaseTaps;
  extern __shared__ __align__(16) unsigned short memory[];
  __shared__ A taps[fir.taps * fir.taps];

  const Tile<Shape> tile(p);
  const Seat<Shape> seat(p.tiling);
  Item* const items = reinterpret_cast<Item*>(memory);
  read_taps<fir.taps>(p, taps);
  tile.load(p, items, 0, p.tiling.planes * static_cast<int>(p.tiling.rows.value));
  __syncthreads();

  Sums<Shape> sums = {};
#pragma unroll
  for (int phase_y = 0; phase_y < Shape::kPhasesY; ++phase_y) {
    const Start y(tile.rest_y, (seat.y + phase_y) * fir.down, fir.up);
    const Item* const rows =
        items + seat.lane +
        (seat.plane * static_cast<int>(p.tiling.rows.value) + y.pixel) * p.tiling.row_pitch;
#pragma unroll
    for (int phase_x = 0; phase_x < Shape::kPhasesX; ++phase_x) {
      const Start x(tile.rest_x, (seat.x + phase_x) * fir.down, fir.up);
      A tap[kTaps][kTaps];
#pragma unroll
      for (int i = 0; i < kTaps * kTaps; ++i) {
        tap[i / kTaps][i % kTaps] =
            taps[(y.tap + i / kTaps * fir.up) * fir.taps + x.tap + i % kTaps * fir.up];
      }
      // every pixel is read once and added to all of the thread's outputs that it touches
#pragma unroll
      for (int wx = 0; wx < Shape::kWindowX; ++wx) {
        const Item* const column = rows + tile.place(x.pixel + wx);
#pragma unroll
        for (int wy = 0; wy < Shape::kWindowY; ++wy) {
          const Item item = load_tile(column + wy * p.tiling.row_pitch);
#pragma unroll
          for (int c = 0; c < Shape::kChannels; ++c) {
            const A value = widen(item.element[c]);
#pragma unroll
            for (int r = 0; r < Shape::kRows / Shape::kPhasesY; ++r) {
#pragma unroll
              for (int q = 0; q < Shape::kColumns / Shape::kPhasesX; ++q) {
                const int ky = wy - r * Shape::kStep, kx = wx - q * Shape::kStep;
                if (ky >= 0 && ky < kTaps && kx >= 0 && kx < kTaps) {
                  sums[r * Shape::kPhasesY + phase_y][q * Shape::kPhasesX + phase_x][c] +=
                      tap[ky][kx] * value;
                }
              }
            }
          }
        }
      }
    }
  }
  finish_outputs<finish>(p, epilogue, tile, seat, sums);
}

// Along x first, into shared memory in the accumulation type, then along y. Pixels pass through
// shared memory a few rows at a time, so that a tall tile, with little to be read twice, fits.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    upfirdn2d_separable_kernel(FirProblem<typename Shape::Element> p,
                               EpilogueView<Sum<typename Shape::Element>> epilogue) {
  using A = Sum<typename Shape::Element>;
  using Item = typename Shape::Item;
  using Chunk = Vector<A, Shape::kChunk>;
  constexpr Fir fir = Shape::fir;
  constexpr int kTaps = Shape::kPhaseTaps, kColumns = Shape::kColumns;
  constexpr int kChunks = kColumns / Shape::kChunk;
  static_assert(Shape::kChannels == 1);
  extern __shared__ __align__(16) unsigned short memory[];
  __shared__ A taps[fir.taps];

  const Tile<Shape> tile(p);
  const Seat<Shape> seat(p.tiling);
  const int log_width = p.tiling.log_lanes + p.tiling.log_x;
  const int at_x = static_cast<int>(threadIdx.x) & ((1 << log_width) - 1);
  const int in_rows = static_cast<int>(p.tiling.rows.value), all_rows = p.tiling.planes * in_rows;
  const int rows_at_once = p.tiling.rows_at_once;
  Chunk* const filtered = reinterpret_cast<Chunk*>(memory);  // [all_rows, kChunks, width]
  Item* const items = reinterpret_cast<Item*>(filtered + (all_rows * kChunks << log_width));
  read_taps_of_axis<fir.taps>(p, taps);

  for (int first = 0; first < all_rows; first += rows_at_once) {
    const int count = all_rows - first < rows_at_once ? all_rows - first : rows_at_once;
    tile.load(p, items, first, count);
    __syncthreads();
    for (int row = static_cast<int>(threadIdx.x) >> log_width; row < count;
         row += static_cast<int>(blockDim.x) >> log_width) {
      A sums[kColumns] = {};
#pragma unroll
      for (int phase = 0; phase < Shape::kPhasesX; ++phase) {
        const Start x(tile.rest_x, (seat.x + phase) * fir.down, fir.up);
        A tap[kTaps];
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
          tap[k] = taps[x.tap + k * fir.up] * p.gain;
        }
#pragma unroll
        for (int wx = 0; wx < Shape::kWindowX; ++wx) {
          const A value = widen(
              load_tile(items + seat.lane + row * p.tiling.row_pitch + tile.place(x.pixel + wx))
                  .element[0]);
#pragma unroll
          for (int q = 0; q < kColumns / Shape::kPhasesX; ++q) {
            const int k = wx - q * Shape::kStep;
            if (k >= 0 && k < kTaps) {
              sums[q * Shape::kPhasesX + phase] += tap[k] * value;
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        Chunk chunk;
#pragma unroll
        for (int j = 0; j < Shape::kChunk; ++j) {
          chunk.element[j] = sums[i * Shape::kChunk + j];
        }
        store_tile(filtered + (((first + row) * kChunks + i) << log_width) + at_x, chunk);
      }
    }
    __syncthreads();
  }

  Sums<Shape> sums = {};
#pragma unroll
  for (int phase = 0; phase < Shape::kPhasesY; ++phase) {
    const Start y(tile.rest_y, (seat.y + phase) * fir.down, fir.up);
    A tap[kTaps];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      tap[k] = taps[y.tap + k * fir.up];
    }
#pragma unroll
    for (int wy = 0; wy < Shape::kWindowY; ++wy) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int row = seat.plane * in_rows + y.pixel + wy;
        const Chunk chunk = load_tile(filtered + ((row * kChunks + i) << log_width) + at_x);
#pragma unroll
        for (int r = 0; r < Shape::kRows / Shape::kPhasesY; ++r) {
          const int k = wy - r * Shape::kStep;
          if (k >= 0 && k < kTaps) {
#pragma unroll
            for (int j = 0; j < Shape::kChunk; ++j) {
              sums[r * Shape::kPhasesY + phase][i * Shape::kChunk + j][0] +=
                  tap[k] * chunk.element[j];
            }
          }
        }
      }
    }
  }
  finish_outputs<Finish::plain>(p, epilogue, tile, seat, sums);
}

// Any factors and any filter: one output a thread, its phase worked out at run time.
struct AnyFir {
  int64_t up_y, up_x;
  int64_t down_y, down_x;
  int64_t taps_y, taps_x;
};

// The first pixel of an output that may be inside, its tap, and the number of them.
struct Span {
  int64_t pixel;
  int64_t tap;
  int64_t count;

  __device__ Span(int64_t out, int64_t in, int64_t up, int64_t down, int64_t pad, int64_t taps) {
    const int64_t at = out * down - pad;
    const int64_t first = at <= 0 ? 0 : (at + up - 1) / up;
    tap = first * up - at;
    pixel = first;
    const int64_t met = tap < taps ? (taps - 1 - tap) / up + 1 : 0;
    const int64_t left = in > first ? in - first : 0;
    count = met < left ? met : left;
  }
};

template <Finish finish, class T>
__global__ void __launch_bounds__(256)
    upfirdn2d_generic_kernel(FirProblem<T> p, AnyFir fir, EpilogueView<Sum<T>> e) {
  using A = Sum<T>;
  const int64_t count = p.planes * p.out_h * p.out_w * p.channels;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t channel = i % p.channels;
    const int64_t at = i / p.channels;
    const int64_t out_x = at % p.out_w, out_y = at / p.out_w % p.out_h;
    const int64_t plane = at / p.out_w / p.out_h;
    const Span x(out_x, p.in_w, fir.up_x, fir.down_x, p.pad_x, fir.taps_x);
    const Span y(out_y, p.in_h, fir.up_y, fir.down_y, p.pad_y, fir.taps_y);
    const T* const from = p.input + plane * p.in_h * p.in_w * p.channels + channel;
    A sum = 0;
    for (int64_t j = 0; j < y.count; ++j) {
      const T* const row = from + (y.pixel + j) * p.in_w * p.channels;
      const int64_t ky = y.tap + j * fir.up_y, tap_y = p.flip ? ky : fir.taps_y - 1 - ky;
      A of_row = 0;
      for (int64_t k = 0; k < x.count; ++k) {
        const int64_t kx = x.tap + k * fir.up_x, tap_x = p.flip ? kx : fir.taps_x - 1 - kx;
        const A tap = p.filter == nullptr
                          ? A(1)
                          : __ldg(p.filter + (p.one_axis ? 0 : tap_y * fir.taps_x) + tap_x);
        of_row += tap * widen(load_vector<1>(row + (x.pixel + k) * p.channels).element[0]);
      }
      sum += p.one_axis ? __ldg(p.filter + tap_y) * of_row : of_row;
    }
    sum *= p.gain;
    if constexpr (finish != Finish::plain) {
      if (p.filtered != nullptr) {
        store_vector(p.filtered + i, Vector<T, 1>{{narrow<T>(sum)}});
      }
      const int64_t scale_at = plane * p.channels + channel, c = scale_at % p.image_channels;
      const int64_t sample = scale_at / p.image_channels;
      sum = (e.scale == nullptr ? sum : __ldg(e.scale + scale_at) * sum) +
            (e.noise == nullptr
                 ? A(0)
                 : __ldg(e.noise + sample * e.noise_stride + out_y * p.out_w + out_x)) +
            (e.bias == nullptr ? A(0) : __ldg(e.bias + c));
      sum = activated<finish == Finish::straight ? Family::straight : Family::curved>(e.pointwise,
                                                                                      sum);
    }
    store_vector(p.output + i, Vector<T, 1>{{narrow<T>(sum)}});
  }
}

}  // namespace gpseg::cuda
