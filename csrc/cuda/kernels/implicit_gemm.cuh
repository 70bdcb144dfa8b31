// Convolution as a product of matrices on tensor cores: a row for each output pixel of one sample,
// a column for each output channel, the sum over kernel taps times input channels.
//
// A block of four warps makes one tile of the product. The sum goes in chunks of 32 channels of one
// tap, copied to shared memory three chunks ahead. Rows gather their own pixels, so no unfolded
// image is made, and what lies outside the image arrives as zeros. Taps run inside channels: the
// nine reads of a pixel's chunk then follow each other, and all but the first are left to the L1
// cache: all nine would ask the L2 cache for several TB/s.
#pragma once

#include <cstdint>

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/memory.cuh"
#include "cuda/kernels/ptx.cuh"

namespace gpseg::cuda {

constexpr int kGemmThreads = 128;  // 2 x 2 warps
constexpr int kChunk = 32;         // channels
constexpr int kPiece = 8;          // channels in 16 bytes
constexpr int kPieces = kChunk / kPiece;
constexpr int kStages = 4;
constexpr int kCopyRows = kGemmThreads / kPieces;  // rows that the block copies at a time
constexpr int kMostTaps = 9;
constexpr int kMostPhases = 4;

// One position of the kernel window.
struct Tap {
  int dy;  // input pixel = in_step * grid position + (dy, dx)
  int dx;
  int64_t x;       // the same in elements
  int64_t weight;  // elements from the start of an output channel's weights
};

// Output pixels origin + out_step * (i, j), i < rows, j < columns, which see the same taps.
struct Phase {
  int first_tap;
  int end_tap;
  int origin_y;
  int origin_x;
  int rows;
  int columns;
};

template <class T>
struct ConvView {
  const T* x;
  const T* weight;
  const float* style;  // [N, in_c] or null
  T* y;
  T* c;             // or null
  const T* factor;  // or null
  float* partial;   // [N, row_tiles * phases, out_c]: sums of c * factor over tiles
  EpilogueView<float> epilogue;
  int in_h;
  int in_w;
  int in_c;
  int out_w;
  int out_c;
  int64_t out_pixels;
  int64_t weight_row;  // elements from one output channel's weights to the next
  int in_step;
  int out_step;
  unsigned phases;
  unsigned row_tiles;  // of the largest phase
  unsigned column_tiles;
  Phase phase[kMostPhases];
  Tap tap[kMostTaps];
};

// What a block makes.
struct Place {
  int64_t sample;
  unsigned row_tile;
  unsigned phase_index;
  Phase phase;
  int first_row;
  int first_column;
};

// Neighbouring blocks run at the same time: first come those that share rows, hence input pixels
// (columns of one tile, then phases), while all of them walk through the same weights.
template <class T>
__device__ __forceinline__ Place place_of(const ConvView<T>& p, unsigned block, int tile_m,
                                          int tile_n) {
  const unsigned column_tile = block % p.column_tiles;
  block /= p.column_tiles;
  const unsigned phase = block % p.phases;
  block /= p.phases;
  const unsigned row_tile = block % p.row_tiles;
  return {block / p.row_tiles,
          row_tile,
          phase,
          p.phase[phase],
          static_cast<int>(row_tile) * tile_m,
          static_cast<int>(column_tile) * tile_n};
}

template <class T, int tile_m, int tile_n>
struct Stage {
  T x[tile_m * kChunk];
  T weight[tile_n * kChunk];
};

// Where a piece of a row stands in a stage. Two rows fill the 32 banks; exchanging pieces by the
// row's pair lets ldmatrix read a column of 8 pieces, and cp.async write rows, without conflicts.
__device__ __forceinline__ int swizzled(int row, int piece) {
  return row * kChunk + (piece ^ (row >> 1 & (kPieces - 1))) * kPiece;
}

// A thread's share of the copies: one piece of a few rows of either operand.
template <class T, int tile_m, int tile_n>
class Loader {
 public:
  __device__ __forceinline__ Loader(const ConvView<T>& p, const Place& at)
      : tap_(at.phase.first_tap), chunk_(0) {
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    to_ = swizzled(row, piece);
    channels_ = p.in_c - piece * kPiece;
    columns_ = p.out_c - at.first_column - row;
    weight_ = p.weight + (at.first_column + row) * p.weight_row + piece * kPiece;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int m = at.first_row + row + j * kCopyRows;
      inside_[j] = 0;
      x_[j] = p.x;
      if (m < at.phase.rows * at.phase.columns) {
        const int y = m / at.phase.columns * p.in_step;
        const int x = m % at.phase.columns * p.in_step;
        x_[j] += ((at.sample * p.in_h + y) * p.in_w + x) * p.in_c + piece * kPiece;
        for (int tap = at.phase.first_tap; tap < at.phase.end_tap; ++tap) {
          const bool inside = static_cast<unsigned>(y + p.tap[tap].dy) < unsigned(p.in_h) &&
                              static_cast<unsigned>(x + p.tap[tap].dx) < unsigned(p.in_w);
          inside_[j] |= unsigned{inside} << tap;
        }
      }
    }
  }

  // Begins the copies of the next chunk.
  __device__ __forceinline__ void copy(const ConvView<T>& p, const Phase& phase,
                                       Stage<T, tile_m, tile_n>& to) {
    const bool channel = chunk_ < channels_;
    const unsigned tap = channel ? 1u << tap_ : 0u;
    const int64_t x = p.tap[tap_].x + chunk_;
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      cp_async16_through_l1(to.x + to_ + j * kCopyRows * kChunk, x_[j] + x,
                            (inside_[j] & tap) != 0);
    }
    const T* weight = weight_ + p.tap[tap_].weight + chunk_;
#pragma unroll
    for (int j = 0; j < tile_n / kCopyRows; ++j) {
      cp_async16(to.weight + to_ + j * kCopyRows * kChunk, weight,
                 channel && j * kCopyRows < columns_);
      weight += kCopyRows * p.weight_row;
    }
    if (++tap_ == phase.end_tap) {
      tap_ = phase.first_tap;
      chunk_ += kChunk;
    }
  }

 private:
  static constexpr int kRows = tile_m / kCopyRows;

  const T* x_[kRows];
  unsigned inside_[kRows];  // a bit for each tap: whether the pixel it reads exists
  const T* weight_;
  int channels_;  // of the input from the thread's piece on
  int columns_;   // of the output from the thread's first row of weights on
  int to_;
  int tap_;
  int chunk_;  // first channel
};

// Two elements times their factors, rounded as a pass of its own would round them.
template <class T>
__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, float2 by) {
  auto values = __builtin_bit_cast(Vector<T, 2>, pair);
  values.element[0] = narrow<T>(widen(values.element[0]) * by.x);
  values.element[1] = narrow<T>(widen(values.element[1]) * by.y);
  return __builtin_bit_cast(uint32_t, values);
}

// Operands of one step of 16 channels: a warp's share of a tile.
template <class T, int warp_m, int warp_n>
struct Fragments {
  static constexpr int kRows = warp_m / 16;
  static constexpr int kColumns = warp_n / 8;

  uint32_t x[kRows][4];
  uint32_t weight[kColumns][2];
  float2 style[2];

  template <int tile_m, int tile_n>
  __device__ __forceinline__ void load(const Stage<T, tile_m, tile_n>& stage, int x_at,
                                       int weight_at) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      ldmatrix_x4(x[i], stage.x + x_at + i * 16 * kChunk);
    }
#pragma unroll
    for (int j = 0; j < kColumns; j += 2) {
      uint32_t both[4];
      ldmatrix_x4(both, stage.weight + weight_at + j * 8 * kChunk);
      weight[j][0] = both[0];
      weight[j][1] = both[1];
      weight[j + 1][0] = both[2];
      weight[j + 1][1] = both[3];
    }
  }

  __device__ __forceinline__ void load_style(const float* from) {
    style[0] = load_shared(reinterpret_cast<const float2*>(from));
    style[1] = load_shared(reinterpret_cast<const float2*>(from + 8));
  }

  template <bool scaled>
  __device__ __forceinline__ void multiply(float (&sums)[kRows][kColumns][4]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if constexpr (scaled) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          x[i][e] = scale_pair<T>(x[i][e], style[e / 2]);
        }
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        mma_m16n8k16<T>(sums[i][j], x[i], weight[j]);
      }
    }
  }
};

// Where a sum waits in shared memory for its store. Units of four columns are exchanged so that
// neither the fragments' rows, written as pairs, nor eight columns a thread, read as two units,
// meet in a bank.
template <int tile_n>
__device__ __forceinline__ int staged(int row, int column) {
  const int unit = column >> 2;
  return row * tile_n + ((unit ^ (row & 3) << 1 ^ ((unit >> 3 ^ row) & 1)) << 2) + (column & 3);
}

// Side inputs of a tile's store.
template <int tile_m, int tile_n>
struct Sides {
  int (&pixel)[tile_m];    // output pixel of a row, or -1
  float (&scale)[tile_n];  // in the order of staged(0, .)
  float (&bias)[tile_n];

  template <class T>
  __device__ __forceinline__ void fill(const ConvView<T>& p, const Place& at) const {
    const Phase& phase = at.phase;
    const EpilogueView<float>& epilogue = p.epilogue;
    const int i = threadIdx.x;
    if (i < tile_m) {
      const int m = at.first_row + i;
      pixel[i] = -1;
      if (m < phase.rows * phase.columns) {
        const int y = phase.origin_y + p.out_step * (m / phase.columns);
        const int x = phase.origin_x + p.out_step * (m % phase.columns);
        pixel[i] = y * p.out_w + x;
      }
    }
    if (i < tile_n) {
      const int column = at.first_column + i;
      const bool used = column < p.out_c;
      const int to = staged<tile_n>(0, i);
      scale[to] = used && epilogue.scale != nullptr
                      ? __ldg(epilogue.scale + at.sample * p.out_c + column)
                      : 1.0f;
      bias[to] = used && epilogue.bias != nullptr ? __ldg(epilogue.bias + column) : 0.0f;
    }
  }
};

// Eight columns of a row.
__device__ __forceinline__ void read_columns(float (&to)[kPiece], const float* row_of, int first,
                                             int second) {
  const float4 low = load_shared(reinterpret_cast<const float4*>(row_of + first));
  const float4 high = load_shared(reinterpret_cast<const float4*>(row_of + second));
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// Stores c and y of a tile from its sums; where there is a factor, the sums over the tile's rows of
// c * factor too. What c is rounded to is what y is made of, whether or not it is stored: the
// backward pass, which starts from the stored c, then clamps the same pixels.
template <Family family, class T, int tile_m, int tile_n>
__device__ __forceinline__ void store_tile(const ConvView<T>& p, const Place& at, float* sums,
                                           const Sides<tile_m, tile_n>& sides) {
  constexpr int columns = tile_n / kPiece;  // threads along a row
  constexpr int rows = kGemmThreads / columns;
  constexpr int unrolled = family == Family::straight ? 4 : 1;
  const EpilogueView<float>& epilogue = p.epilogue;
  const int column = static_cast<int>(threadIdx.x) % columns * kPiece;
  const int first = static_cast<int>(threadIdx.x) / columns;
  const bool used = at.first_column + column < p.out_c;
  float scale[kPiece];
  float bias[kPiece];
  read_columns(scale, sides.scale, staged<tile_n>(0, column), staged<tile_n>(0, column + 4));
  read_columns(bias, sides.bias, staged<tile_n>(0, column), staged<tile_n>(0, column + 4));
  float product[kPiece] = {};
#pragma unroll unrolled
  for (int row = first; row < tile_m; row += rows) {
    const int pixel = sides.pixel[row];
    if (pixel < 0 || !used) {
      continue;
    }
    const int64_t to = (at.sample * p.out_pixels + pixel) * p.out_c + at.first_column + column;
    const float noise = epilogue.noise == nullptr
                            ? 0.0f
                            : __ldg(epilogue.noise + at.sample * epilogue.noise_stride + pixel);
    float sum[kPiece];
    read_columns(sum, sums, staged<tile_n>(row, column), staged<tile_n>(row, column + 4));
    if (p.factor != nullptr) {
      const auto factor = load_vector_once<kPiece>(p.factor + to);
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        product[e] += sum[e] * widen(factor.element[e]);
      }
    }
    Vector<T, kPiece> c;
    Vector<T, kPiece> y;
#pragma unroll
    for (int e = 0; e < kPiece; ++e) {
      c.element[e] = narrow<T>(sum[e]);
      const float u = widen(c.element[e]) * scale[e] + noise + bias[e];
      y.element[e] = narrow<T>(activated<family>(epilogue.pointwise, u));
    }
    if (p.c != nullptr) {
      store_vector<kPiece>(p.c + to, c);
    }
    store_vector<kPiece>(p.y + to, y);
  }

  if (p.factor == nullptr) {
    return;
  }
  // over sums that this thread alone has read
  store_shared(reinterpret_cast<float4*>(sums + staged<tile_n>(first, column)),
               float4{product[0], product[1], product[2], product[3]});
  store_shared(reinterpret_cast<float4*>(sums + staged<tile_n>(first, column + 4)),
               float4{product[4], product[5], product[6], product[7]});
  __syncthreads();
  const int mine = threadIdx.x;
  if (mine < tile_n && at.first_column + mine < p.out_c) {
    float sum = 0;
    for (int row = 0; row < rows; ++row) {
      sum += sums[staged<tile_n>(row, mine)];
    }
    const int64_t tile = (at.sample * p.row_tiles + at.row_tile) * p.phases + at.phase_index;
    p.partial[tile * p.out_c + at.first_column + mine] = sum;
  }
}

// Blocks on a multiprocessor that registers must leave room for.
constexpr int resident_blocks(int tile_m, int tile_n) {
  return tile_m * tile_n >= 128 * 128 ? 2 : tile_m >= 128 ? 3 : 4;
}

GPSEG_INLINE constexpr int64_t gemm_shared_bytes(int tile_m, int tile_n, int64_t style_channels) {
  const int64_t stages = kStages * (tile_m + tile_n) * kChunk * 2;
  const int64_t sums = int64_t{tile_m} * tile_n * 4;
  return (stages > sums ? stages : sums) + (style_channels + kChunk - 1) / kChunk * kChunk * 4;
}

template <class T, int tile_m, int tile_n, bool scaled>
__global__ void __launch_bounds__(kGemmThreads, resident_blocks(tile_m, tile_n))
    fused_conv_kernel(const ConvView<T> p) {
  constexpr int warp_m = tile_m / 2;
  constexpr int warp_n = tile_n / 2;
  using Tile = Stage<T, tile_m, tile_n>;
  using Operands = Fragments<T, warp_m, warp_n>;
  extern __shared__ uint4 dynamic[];
  __shared__ int pixel[tile_m];
  __shared__ __align__(16) float scale[tile_n];  // read as float4
  __shared__ __align__(16) float bias[tile_n];
  Tile* const stages = reinterpret_cast<Tile*>(dynamic);
  constexpr int64_t style_from = gemm_shared_bytes(tile_m, tile_n, 0) / sizeof(float);
  float* const style = reinterpret_cast<float*>(dynamic) + style_from;

  const Place at = place_of(p, blockIdx.x, tile_m, tile_n);
  const Sides<tile_m, tile_n> sides{pixel, scale, bias};
  sides.fill(p, at);
  const int chunks_of_tap = (p.in_c + kChunk - 1) / kChunk;
  if constexpr (scaled) {
    for (int i = threadIdx.x; i < chunks_of_tap * kChunk; i += kGemmThreads) {
      style[i] = i < p.in_c ? __ldg(p.style + at.sample * p.in_c + i) : 0.0f;
    }
  }

  const int taps = at.phase.end_tap - at.phase.first_tap;
  const int chunks = taps * chunks_of_tap;
  Loader<T, tile_m, tile_n> loader(p, at);
#pragma unroll
  for (int k = 0; k < kStages - 1; ++k) {
    if (k < chunks) {
      loader.copy(p, at.phase, stages[k]);
    }
    cp_async_commit();
  }

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp % 2 * warp_m;
  const int warp_column = warp / 2 * warp_n;
  // rows and pieces that the lane addresses for ldmatrix, in either step of a chunk
  int x_at[2];
  int weight_at[2];
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    x_at[step] = swizzled(warp_row + lane % 16, 2 * step + lane / 16);
    weight_at[step] = swizzled(warp_column + lane % 8 + lane / 16 * 8, 2 * step + (lane / 8) % 2);
  }
  const float* style_at = style + lane % 4 * 2;
  int taps_left = taps;

  Operands operands[2];
  float sums[Operands::kRows][Operands::kColumns][4] = {};
  cp_async_wait<kStages - 2>();
  __syncthreads();
  if (chunks > 0) {
    operands[0].load(stages[0], x_at[0], weight_at[0]);
  }
#pragma unroll 1
  for (int k = 0; k < chunks; ++k) {
    operands[1].load(stages[k % kStages], x_at[1], weight_at[1]);
    if (k + kStages - 1 < chunks) {
      loader.copy(p, at.phase, stages[(k + kStages - 1) % kStages]);
    }
    cp_async_commit();
    if constexpr (scaled) {
      operands[0].load_style(style_at);
      operands[1].load_style(style_at + 16);
      if (--taps_left == 0) {
        taps_left = taps;
        style_at += kChunk;
      }
    }
    operands[0].template multiply<scaled>(sums);
    // all warps have read chunk k by now, and chunk k + 1 has come: its first operands are on their
    // way while the last of chunk k are multiplied
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (k + 1 < chunks) {
      operands[0].load(stages[(k + 1) % kStages], x_at[0], weight_at[0]);
    }
    operands[1].template multiply<scaled>(sums);
  }

  float* const tile = reinterpret_cast<float*>(dynamic);
#pragma unroll
  for (int i = 0; i < Operands::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Operands::kColumns; ++j) {
      const int row = warp_row + i * 16 + lane / 4;
      const int column = warp_column + j * 8 + lane % 4 * 2;
      const float (&sum)[4] = sums[i][j];
      store_shared(reinterpret_cast<float2*>(tile + staged<tile_n>(row, column)),
                   float2{sum[0], sum[1]});
      store_shared(reinterpret_cast<float2*>(tile + staged<tile_n>(row + 8, column)),
                   float2{sum[2], sum[3]});
    }
  }
  __syncthreads();
  if (family_of(p.epilogue.pointwise.act) == Family::straight) {
    store_tile<Family::straight>(p, at, tile, sides);
  } else {
    store_tile<Family::curved>(p, at, tile, sides);
  }
}

// product[n, o] = sum of partial[n, tile, o] over tiles, in an order that only their number sets. A
// block adds 32 channels of a sample, its warps every 32nd tile.
constexpr int kProductWarps = 32;

__global__ void __launch_bounds__(32 * kProductWarps)
    fused_conv_product_kernel(const float* partial, float* product, int64_t tiles, int out_c,
                              unsigned column_blocks) {
  __shared__ float sums[kProductWarps][32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t sample = blockIdx.x / column_blocks;
  const int column = static_cast<int>(blockIdx.x % column_blocks) * 32 + lane;
  float sum = 0;
  if (column < out_c) {
#pragma unroll 4
    for (int64_t tile = warp; tile < tiles; tile += kProductWarps) {
      sum += __ldg(partial + (sample * tiles + tile) * out_c + column);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && column < out_c) {
    float total = 0;
    for (int i = 0; i < kProductWarps; ++i) {
      total += sums[i][lane];
    }
    product[sample * out_c + column] = total;
  }
}

}  // namespace gpseg::cuda
