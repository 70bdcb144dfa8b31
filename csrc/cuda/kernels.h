// Entry points of the CUDA kernels. Nothing here knows of torch, nor of CUDA's headers.
//
// Tensors are as in common/kernels.h, in device memory, the filter included (in the accumulation
// type: reading it on the host would wait for the device). Calls only enqueue; a launch that fails
// throws std::runtime_error naming kernel, shape and configuration.
#pragma once

#include <cstdint>

#include "common/kernels.h"

namespace gpseg::cuda {

// Where to launch, and where scratch memory comes from.
struct Queue {
  void* stream;                                     // cudaStream_t
  void* (*allocate)(void* context, int64_t bytes);  // aligned to 256 bytes; lives until the op ends
  void* context;

  template <class T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(allocate(context, count * static_cast<int64_t>(sizeof(T))));
  }
};

// c = conv(weight, style * x), y = epilogue(c), all channels_last, in one implicit matrix product
// on tensor cores: float16 or bfloat16, sums in float32.
struct FusedConv {
  DType dtype;
  int64_t n;
  int64_t in_h, in_w, in_c;
  int64_t out_h, out_w, out_c;
  int64_t kernel_h, kernel_w;
  int64_t stride;  // 1 or 2
  int64_t pad_y, pad_x;
  bool transposed;     // x[i] * weight[k] goes to out[i * stride - pad + k]
  const void* x;       // [N, in_h, in_w, in_c]
  const void* weight;  // [out_c, kernel_h, kernel_w, in_c]
  const float* style;  // [N, in_c] or null
  Epilogue epilogue;   // its x is not read, its images are the output's
  void* y;
  void* c;             // written too if not null
  const void* factor;  // [N, out_h, out_w, out_c] or null
  float* product;      // [N, out_c], the sum over pixels of c * factor; only with a factor
};

// What `fused_conv` needs of channels: 16-byte accesses.
constexpr int64_t kChannelMultiple = 8;

// And of styles: a block keeps a sample's in shared memory.
constexpr int64_t kMostStyles = 8192;

void bias_act(const EpilogueForward& p, const Queue& queue);
void bias_act_backward(const EpilogueBackward& p, const Queue& queue);
void bias_act_double_backward(const EpilogueDoubleBackward& p, const Queue& queue);

void demod_act(const EpilogueForward& p, const Queue& queue);
void demod_act_backward(const EpilogueBackward& p, const Queue& queue);

void upfirdn2d(const Upfirdn2d& p, const Queue& queue);

// The kernel that serves a problem: of the filters it is compiled for, and how it reaches memory.
const char* upfirdn2d_instance(const Upfirdn2d& p);

struct Upfirdn2dPlan {
  int64_t blocks;
  int threads;           // of a block
  int64_t shared_bytes;  // of a block
};

// How `upfirdn2d` cuts a problem.
Upfirdn2dPlan upfirdn2d_plan(const Upfirdn2d& p);

// Of a kernel [out_c, in_c, kernel_h, kernel_w] in any layout, and what goes with it for n samples,
// all in the accumulation type.
struct DemodulationSize {
  DType dtype;
  int64_t n, out_c, in_c;
  int64_t kernel_h, kernel_w;
};

// w2[o, i] = sum over the taps of weight^2, d[n, o] = 1 / sqrt(epsilon + sum over i of s^2 * w2).
struct Demodulation : DemodulationSize {
  Taps weight;
  const void* styles;  // [n, in_c]
  void* w2;            // [out_c, in_c]
  void* d;             // [n, out_c]
  double epsilon;
};

// Adds what the gradient of d gives to those of styles and kernel, which may be null.
struct DemodulationBackward : DemodulationSize {
  Taps weight;
  const void* styles;
  const void* w2;
  const void* d;
  const void* dd;
  void* dstyles;
  Taps dweight;  // in any layout
};

void demodulation(const Demodulation& p, const Queue& queue);
void demodulation_backward(const DemodulationBackward& p, const Queue& queue);

void fused_conv(const FusedConv& p, const Queue& queue);

// How `fused_conv` cuts a problem on a GPU of so many multiprocessors.
struct FusedConvPlan {
  int tile_pixels;
  int tile_channels;
  int64_t blocks;
  int64_t shared_bytes;  // of a block
};

FusedConvPlan fused_conv_plan(const FusedConv& p, int multiprocessors);

}  // namespace gpseg::cuda
