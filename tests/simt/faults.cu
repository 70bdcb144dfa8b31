// Small kernels that are right, and with -DFAULT_NAME wrong in one place: the emulator's self-test.
// A `// fault: NAME` marks the line that has to be named.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <exception>
#include <string>

#include "cuda/kernels/ptx.cuh"

namespace {

using gpseg::cuda::cp_async16;
using gpseg::cuda::cp_async_commit;
using gpseg::cuda::cp_async_wait;
using gpseg::cuda::ldmatrix_x4;
using gpseg::cuda::ldmatrix_x4_trans;
using gpseg::cuda::mma_m16n8k16;

constexpr int kTaps = 4;

// y[i, j] = sum over taps of x[i + u - 2, j + v - 2] * f[u, v], from a tile with its halo.
template <class T, int width, int height>
__global__ void __launch_bounds__(width* height)
    fir(const T* __restrict__ x, const float* __restrict__ f, T* __restrict__ y, int h, int w) {
  constexpr int tile_width = width + kTaps - 1;
  constexpr int tile_height = height + kTaps - 1;
#if defined(FAULT_STATIC_OVERRUN)
  __shared__ float tile[tile_height][tile_width - 1];
#else
  __shared__ float tile[tile_height][tile_width];
#endif
  const int thread = threadIdx.y * width + threadIdx.x;
  const int left = blockIdx.x * width;
  const int top = blockIdx.y * height;
#if defined(FAULT_OUTSIDE)
  const int past = w + 1;
#else
  const int past = w;
#endif
  for (int i = thread; i < tile_width * tile_height; i += width * height) {
    const int row = top + i / tile_width - 2;
    const int column = left + i % tile_width - 2;
    float value = 0;
    if (row >= 0 && row < h && column >= 0 && column < past) {
      value = static_cast<float>(x[row * w + column]);  // fault: OUTSIDE
    }
    tile[i / tile_width][i % tile_width] = value;  // fault: STATIC_OVERRUN
  }
  const int column = left + threadIdx.x;
  const int row = top + threadIdx.y;
#if defined(FAULT_EARLY_RETURN)
  if (row >= h || column >= w) {
    return;
  }
#endif
#if !defined(FAULT_NO_BARRIER)
  __syncthreads();  // fault: EARLY_RETURN
#endif
  if (row < h && column < w) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kTaps * kTaps; ++i) {
      const int u = i / kTaps;
      const int v = i % kTaps;
      sum += tile[threadIdx.y + u][threadIdx.x + v] * f[i];  // fault: NO_BARRIER
    }
    y[row * w + column] = static_cast<T>(sum);
  }
}

// y = gain * leaky_relu(x + b), four elements of one channel at a time.
__global__ void bias_act(const float* __restrict__ x, const float* __restrict__ b,
                         float* __restrict__ y, int count, int inner, int channels) {
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
#if defined(FAULT_MISALIGNED)
  i += 1;
#endif
  if (i + 4 > count) {
    return;
  }
  float4 v = __ldg(reinterpret_cast<const float4*>(x + i));  // fault: MISALIGNED
  const float bias = __ldg(b + i / inner % channels);
  float* elements[] = {&v.x, &v.y, &v.z, &v.w};
  for (float* e : elements) {
    *e = 1.5f * ((*e + bias > 0 ? 1.0f : 0.2f) * (*e + bias));
  }
#if defined(FAULT_UNINITIALISED)
  v.x += y[i];  // fault: UNINITIALISED
#endif
  __stcs(reinterpret_cast<float4*>(y + i), v);
}

// sums[row] += the squares of the row, several blocks to a row.
__global__ void sum_squares(const __half2* __restrict__ x, float* __restrict__ sums, int length) {
  extern __shared__ float part[];
  const int warp = threadIdx.x / warpSize;
  const int lane = threadIdx.x % warpSize;
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < length; i += gridDim.x * blockDim.x) {
    const float2 v = __half22float2(x[static_cast<int64_t>(blockIdx.y) * length + i]);
    sum += v.x * v.x + v.y * v.y;
  }
#if defined(FAULT_WRONG_MASK)
  const unsigned mask = 0x7fffffff;
#else
  const unsigned mask = 0xffffffff;
#endif
  for (int delta = warpSize / 2; delta > 0; delta /= 2) {
    sum += __shfl_down_sync(mask, sum, delta);  // fault: WRONG_MASK
  }
#if defined(FAULT_DYNAMIC_OVERRUN)
  const int slot = warp + 1;
#else
  const int slot = warp;
#endif
  if (lane == 0) {
    part[slot] = sum;  // fault: DYNAMIC_OVERRUN
  }
  __syncthreads();
  if (warp == 0) {
#if defined(FAULT_UNWRITTEN)
    const int warps = blockDim.x / warpSize + 1;
#else
    const int warps = blockDim.x / warpSize;
#endif
    sum = lane < warps ? part[lane] : 0.0f;  // fault: UNWRITTEN
    for (int bits = warpSize / 2; bits > 0; bits /= 2) {
      sum += __shfl_xor_sync(0xffffffff, sum, bits);
    }
    if (lane == 0) {
#if defined(FAULT_NO_ATOMIC)
      sums[blockIdx.y] += sum;  // fault: NO_ATOMIC
#else
      atomicAdd(sums + blockIdx.y, sum);
#endif
    }
  }
}

// The sum of x by one launch: the block that finishes last adds up what all have left.
__global__ void sum_all(const float* __restrict__ x, float* partial, unsigned* finished, float* sum,
                        int length) {
  __shared__ bool is_last;
  float mine = 0;
  for (int i = blockIdx.x * warpSize + threadIdx.x; i < length; i += gridDim.x * warpSize) {
    mine += x[i];
  }
  for (int bits = warpSize / 2; bits > 0; bits /= 2) {
    mine += __shfl_xor_sync(0xffffffff, mine, bits);
  }
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = mine;
#if !defined(FAULT_NO_FENCE)
    __threadfence();
#endif
    is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) {
    float all = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) {
      all += partial[i];  // fault: NO_FENCE
    }
    *sum = all;
  }
}

constexpr int kRows = 64;
constexpr int kColumns = 64;
constexpr int kDepth = 32;
constexpr int kPad = 8;  // keeps the rows that ldmatrix reads at once in different banks

// c = a [m, k] * b [k, n], sums in float32; a stage is copied while the one before is multiplied.
template <class T>
__global__ void __launch_bounds__(128) gemm(const T* __restrict__ a, const T* __restrict__ b,
                                            float* __restrict__ c, int m, int n, int k) {
  __shared__ alignas(16) T tile_a[2][kRows][kDepth + kPad];
#if defined(FAULT_UNALIGNED)
  __shared__ T tile_b[2][kDepth][kColumns + kPad];
#else
  __shared__ alignas(16) T tile_b[2][kDepth][kColumns + kPad];
#endif
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp_row = thread / 32 % 2 * 32;
  const int warp_column = thread / 64 * 32;
  const int top = blockIdx.y * kRows;
  const int left = blockIdx.x * kColumns;

  const auto fetch = [&](int stage, int depth) {
    for (int i = thread; i < kRows * kDepth / 8; i += 128) {
      const int row = i / (kDepth / 8);
      const int column = i % (kDepth / 8) * 8;
      const bool valid = top + row < m && depth + column < k;
      const T* from = a + static_cast<int64_t>(top + row) * k + depth + column;
      cp_async16(&tile_a[stage][row][column], from, valid);  // fault: NO_WAIT, WAIT_TOO_FEW, REFILL
    }
    for (int i = thread; i < kDepth * kColumns / 8; i += 128) {
      const int row = i / (kColumns / 8);
      const int column = i % (kColumns / 8) * 8;
      const bool valid = depth + row < k && left + column < n;
      const T* from = b + static_cast<int64_t>(depth + row) * n + left + column;
      cp_async16(&tile_b[stage][row][column], from, valid);  // fault: UNALIGNED
    }
    cp_async_commit();
  };

  float sums[2][4][4] = {};
  fetch(0, 0);
  for (int depth = 0, stage = 0; depth < k; depth += kDepth, stage ^= 1) {
    if (depth + kDepth < k) {
      fetch(stage ^ 1, depth + kDepth);
    } else {
      cp_async_commit();
    }
#if defined(FAULT_WAIT_TOO_FEW)
    cp_async_wait<2>();
#elif !defined(FAULT_NO_WAIT)
    cp_async_wait<1>();
#endif
    __syncthreads();
    for (int step = 0; step < kDepth; step += 16) {
      uint32_t fragment_a[2][4];
      uint32_t fragment_b[2][4];
      for (int i = 0; i < 2; ++i) {
        const int row = warp_row + i * 16 + lane % 16;
        ldmatrix_x4(fragment_a[i], &tile_a[stage][row][step + lane / 16 * 8]);
        const int column = warp_column + i * 16 + lane / 16 * 8;
        ldmatrix_x4_trans(fragment_b[i], &tile_b[stage][step + lane % 16][column]);
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          const uint32_t* pair = &fragment_b[j / 2][j % 2 * 2];
          const uint32_t operand[2] = {pair[0], pair[1]};
          mma_m16n8k16<T>(sums[i][j], fragment_a[i], operand);
        }
      }
    }
#if !defined(FAULT_REFILL)
    __syncthreads();
#endif
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int e = 0; e < 4; ++e) {
        const int row = top + warp_row + i * 16 + lane / 4 + e / 2 * 8;
        const int column = left + warp_column + j * 8 + lane % 4 * 2 + e % 2;
        if (row < m && column < n) {
          c[static_cast<int64_t>(row) * n + column] = sums[i][j][e];
        }
      }
    }
  }
}

// y[i] = x[i * stride]: how many sectors a warp asks for, and how many it needs.
__global__ void copy(const float* __restrict__ x, float* __restrict__ y, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = __ldg(x + i * stride);  // count: load
  __stcs(y + i, value);                       // count: store
}

// The transpose of a [32, 32] matrix; with rows of 32 words a column is in one bank.
template <int pitch>
__global__ void transpose(const float* __restrict__ x, float* __restrict__ y) {
  __shared__ float tile[32][pitch];
  tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];  // count: row
  __syncthreads();
  y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];  // count: column
}

// Every thread's own bytes of dynamic shared memory.
__global__ void fill(float* __restrict__ y, int each) {
  extern __shared__ float storage[];
  for (int i = 0; i < each; ++i) {
    storage[threadIdx.x * each + i] = static_cast<float>(i);
  }
  y[threadIdx.x] = storage[threadIdx.x * each + each - 1];
}

// What a launch threw, or "".
template <class Body>
const char* caught(const Body& body) {
  static std::string message;
  message.clear();
  try {
    body();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

template <class T>
const char* launch_fir(const T* x, const float* f, T* y, int h, int w) {
  return caught([&] {
    const dim3 grid((w + 31) / 32, (h + 7) / 8);
    fir<T, 32, 8><<<grid, dim3(32, 8)>>>(x, f, y, h, w);
  });
}

template <class T>
const char* launch_gemm(const T* a, const T* b, float* c, int m, int n, int k) {
  return caught([&] {
    const dim3 grid((n + kColumns - 1) / kColumns, (m + kRows - 1) / kRows);
    gemm<<<grid, 128, 0, nullptr>>>(a, b, c, m, n, k);
  });
}

}  // namespace

extern "C" {

const char* fir_float32(const float* x, const float* f, float* y, int h, int w) {
  return launch_fir(x, f, y, h, w);
}

const char* fir_float16(const __half* x, const float* f, __half* y, int h, int w) {
  return launch_fir(x, f, y, h, w);
}

const char* fir_bfloat16(const __nv_bfloat16* x, const float* f, __nv_bfloat16* y, int h, int w) {
  return launch_fir(x, f, y, h, w);
}

const char* bias_act_float32(const float* x, const float* b, float* y, int count, int inner,
                             int channels) {
#if defined(FAULT_BLOCK_LIMIT)
  const int threads = 2048;
#else
  const int threads = 128;
#endif
  return caught([&] {
    const int blocks = (count / 4 + threads - 1) / threads;
    bias_act<<<blocks, threads>>>(x, b, y, count, inner, channels);  // fault: BLOCK_LIMIT
  });
}

const char* sum_squares_float16(const __half2* x, float* sums, int rows, int length) {
  const int threads = 128;
#if defined(FAULT_UNWRITTEN)
  const size_t shared_bytes = (threads / 32 + 1) * sizeof(float);
#else
  const size_t shared_bytes = threads / 32 * sizeof(float);
#endif
  return caught([&] { sum_squares<<<dim3(3, rows), threads, shared_bytes>>>(x, sums, length); });
}

const char* sum_all_float32(const float* x, float* partial, unsigned* finished, float* sum,
                            int length, int blocks) {
  return caught([&] { sum_all<<<blocks, 32>>>(x, partial, finished, sum, length); });
}

const char* gemm_float16(const __half* a, const __half* b, float* c, int m, int n, int k) {
  return launch_gemm(a, b, c, m, n, k);
}

const char* gemm_bfloat16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int m, int n,
                          int k) {
  return launch_gemm(a, b, c, m, n, k);
}

const char* copy_float32(const float* x, float* y, int count, int stride) {
  return caught([&] { copy<<<count / 128, 128>>>(x, y, stride); });
}

const char* transpose_float32(const float* x, float* y, int padded) {
  return caught([&] {
    auto* kernel = padded ? transpose<33> : transpose<32>;
    kernel<<<1, dim3(32, 32)>>>(x, y);
  });
}

const char* fill_float32(float* y, int each) {
  return caught([&] {
    const int bytes = 128 * each * static_cast<int>(sizeof(float));
#if !defined(FAULT_NO_OPT_IN)
    cudaFuncSetAttribute(fill, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
#endif
    fill<<<1, 128, bytes>>>(y, each);  // fault: NO_OPT_IN
  });
}
}
