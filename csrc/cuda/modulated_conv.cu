// The modulated layer's convolution: its geometry as phases and taps, its tiles, its launch.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>

#include "cuda/kernels/implicit_gemm.cuh"
#include "cuda/launch.h"

namespace gpseg::cuda {
namespace {

void require(bool holds, const char* what) {
  if (!holds) {
    throw std::runtime_error(std::string("gpseg: kernel fused_conv_kernel takes ") + what);
  }
}

void check(const FusedConv& p) {
  constexpr int64_t most_pixels = int64_t{1} << 30;
  require(p.dtype == DType::float16 || p.dtype == DType::bfloat16, "float16 or bfloat16");
  require(p.in_c % kChannelMultiple == 0 && p.out_c % kChannelMultiple == 0,
          "channels in multiples of 8");
  require(p.style == nullptr || p.in_c <= kMostStyles, "styles of up to 8192 channels");
  require(p.kernel_h >= 1 && p.kernel_w >= 1 && p.kernel_h <= 3 && p.kernel_w <= 3,
          "convolution kernels up to 3x3");
  require(p.stride == 1 || p.stride == 2, "stride 1 or 2");
  require(p.in_h * p.in_w <= most_pixels && p.out_h * p.out_w <= most_pixels,
          "images up to 2^30 pixels");
  require(are_aligned({p.x, p.weight, p.y, p.c, p.factor}),
          "tensors that start at a multiple of 16 bytes");
}

struct Taps {
  int phases = 0;
  int count = 0;
  Phase phase[kMostPhases];
  Tap tap[kMostTaps];
};

// Output pixels of a transposed convolution fall into stride x stride phases, each of which sees
// only the taps that meet input pixels and not the zeros between them.
Taps taps_of(const FusedConv& p) {
  const int step = p.transposed ? static_cast<int>(p.stride) : 1;
  Taps taps;
  for (int py = 0; py < step; ++py) {
    for (int px = 0; px < step; ++px) {
      Phase& phase = taps.phase[taps.phases++];
      phase = {taps.count,
               0,
               py,
               px,
               static_cast<int>(ceil_div(p.out_h - py, step)),
               static_cast<int>(ceil_div(p.out_w - px, step))};
      for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
          int64_t dy = ky - p.pad_y;
          int64_t dx = kx - p.pad_x;
          if (p.transposed) {
            dy = py + p.pad_y - ky;
            dx = px + p.pad_x - kx;
            if (dy % step != 0 || dx % step != 0) {
              continue;
            }
            dy /= step;
            dx /= step;
          }
          taps.tap[taps.count++] = {static_cast<int>(dy), static_cast<int>(dx),
                                    (dy * p.in_w + dx) * p.in_c, (ky * p.kernel_w + kx) * p.in_c};
        }
      }
      phase.end_tap = taps.count;
    }
  }
  return taps;
}

// How the product is cut.
struct Tiling {
  int rows;  // of a tile
  int columns;
  int64_t row_tiles;  // of a sample and phase
  int64_t column_tiles;
  int64_t blocks;
};

Tiling tiling_of(const FusedConv& p, int rows, int columns) {
  const int64_t step = p.transposed ? p.stride : 1;
  const int64_t pixels = ceil_div(p.out_h, step) * ceil_div(p.out_w, step);
  const int64_t row_tiles = ceil_div(pixels, rows);
  const int64_t column_tiles = ceil_div(p.out_c, columns);
  return {rows, columns, row_tiles, column_tiles, p.n * step * step * row_tiles * column_tiles};
}

// The larger a tile, the less often operands are read; but a tile half empty multiplies zeros, and
// tiles too few to give every multiprocessor one leave the GPU idle.
Tiling choose_tiling(const FusedConv& p, int multiprocessors) {
  Tiling wide = tiling_of(p, 128, p.out_c <= 32 ? 32 : p.out_c <= 64 ? 64 : 128);
  if (wide.columns == 128 && wide.blocks < multiprocessors) {
    wide = tiling_of(p, 128, 64);
  }
  return wide.blocks < multiprocessors ? tiling_of(p, 64, 64) : wide;
}

int64_t shared_bytes(const FusedConv& p, const Tiling& tiling) {
  return gemm_shared_bytes(tiling.rows, tiling.columns, p.style == nullptr ? 0 : p.in_c);
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) {
    throw std::runtime_error(std::string("gpseg: cannot query the GPU: ") +
                             cudaGetErrorString(cudaGetLastError()));
  }
  return value;
}

template <class T, int tile_m, int tile_n, bool scaled>
void launch(const ConvView<T>& view, const FusedConv& p, const Tiling& tiling,
            cudaStream_t stream) {
  constexpr int static_bytes = (tile_m + 2 * tile_n) * 4;
  static_assert(gemm_shared_bytes(tile_m, tile_n, kMostStyles) + static_bytes <= 99 << 10,
                "every GPU since sm_80 lends a block 99 KiB, some no more");
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  lend_shared(fused_conv_kernel<T, tile_m, tile_n, scaled>, "fused_conv_kernel",
              most - static_bytes);
  const dim3 grid(static_cast<unsigned>(tiling.blocks));
  const size_t bytes = shared_bytes(p, tiling);
  fused_conv_kernel<T, tile_m, tile_n, scaled><<<grid, kGemmThreads, bytes, stream>>>(view);
  check_launch("fused_conv_kernel", shape_of(p.dtype, p.epilogue.images), grid, kGemmThreads,
               bytes);
}

template <class T, int tile_m, int tile_n>
void launch(const ConvView<T>& view, const FusedConv& p, const Tiling& tiling,
            cudaStream_t stream) {
  if (p.style != nullptr) {
    launch<T, tile_m, tile_n, true>(view, p, tiling, stream);
  } else {
    launch<T, tile_m, tile_n, false>(view, p, tiling, stream);
  }
}

void add_partial_products(const FusedConv& p, const float* partial, int64_t tiles,
                          cudaStream_t stream) {
  const int64_t column_blocks = ceil_div(p.out_c, 32);
  const dim3 grid(static_cast<unsigned>(p.n * column_blocks));
  const dim3 block(32 * kProductWarps);
  fused_conv_product_kernel<<<grid, block, 0, stream>>>(
      partial, p.product, tiles, static_cast<int>(p.out_c), static_cast<unsigned>(column_blocks));
  check_launch("fused_conv_product_kernel", shape_of(p.dtype, p.epilogue.images), grid, block, 0);
}

template <class T>
void convolve(const FusedConv& p, const Tiling& tiling, const Queue& queue) {
  const cudaStream_t stream = stream_of(queue);
  const Taps taps = taps_of(p);
  const int64_t tiles = tiling.row_tiles * taps.phases;
  float* const partial =
      p.factor == nullptr ? nullptr : queue.scratch<float>(p.n * tiles * p.out_c);
  ConvView<T> view{.x = static_cast<const T*>(p.x),
                   .weight = static_cast<const T*>(p.weight),
                   .style = p.style,
                   .y = static_cast<T*>(p.y),
                   .c = static_cast<T*>(p.c),
                   .factor = static_cast<const T*>(p.factor),
                   .partial = partial,
                   .epilogue = EpilogueView<float>(p.epilogue),
                   .in_h = static_cast<int>(p.in_h),
                   .in_w = static_cast<int>(p.in_w),
                   .in_c = static_cast<int>(p.in_c),
                   .out_w = static_cast<int>(p.out_w),
                   .out_c = static_cast<int>(p.out_c),
                   .out_pixels = p.out_h * p.out_w,
                   .weight_row = p.kernel_h * p.kernel_w * p.in_c,
                   .in_step = p.transposed ? 1 : static_cast<int>(p.stride),
                   .out_step = p.transposed ? static_cast<int>(p.stride) : 1,
                   .phases = static_cast<unsigned>(taps.phases),
                   .row_tiles = static_cast<unsigned>(tiling.row_tiles),
                   .column_tiles = static_cast<unsigned>(tiling.column_tiles)};
  std::copy(std::begin(taps.phase), std::end(taps.phase), view.phase);
  std::copy(std::begin(taps.tap), std::end(taps.tap), view.tap);
  if (tiling.rows == 64) {
    launch<T, 64, 64>(view, p, tiling, stream);
  } else if (tiling.columns == 32) {
    launch<T, 128, 32>(view, p, tiling, stream);
  } else if (tiling.columns == 64) {
    launch<T, 128, 64>(view, p, tiling, stream);
  } else {
    launch<T, 128, 128>(view, p, tiling, stream);
  }
  if (p.factor != nullptr) {
    add_partial_products(p, partial, tiles, stream);
  }
}

void convolve(const FusedConv& p, const Tiling& tiling, const Queue& queue) {
  require(tiling.blocks <= kMostBlocks, "outputs of up to 2^31 tiles");
  if (p.dtype == DType::float16) {
    convolve<__half>(p, tiling, queue);
  } else {
    convolve<__nv_bfloat16>(p, tiling, queue);
  }
}

}  // namespace

void fused_conv(const FusedConv& p, const Queue& queue) {
  check(p);
  if (p.n * p.out_c == 0) {
    return;
  }
  if (p.out_h * p.out_w == 0) {
    if (p.product != nullptr) {  // a factor without elements is null
      add_partial_products(p, nullptr, 0, stream_of(queue));
    }
    return;
  }
  convolve(p, choose_tiling(p, device_attribute(cudaDevAttrMultiProcessorCount)), queue);
}

FusedConvPlan fused_conv_plan(const FusedConv& p, int multiprocessors) {
  check(p);
  const Tiling tiling = choose_tiling(p, multiprocessors);
  return {tiling.rows, tiling.columns, tiling.blocks, shared_bytes(p, tiling)};
}

}  // namespace gpseg::cuda
