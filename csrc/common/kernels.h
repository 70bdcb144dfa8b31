// What each op is given, and its entry point. Nothing here knows of torch.
//
// Images are dense, in one of two orders: [N, C, H*W], or [N, H*W, C] (channels_last).
// "Accumulation type" is float64 for float64 images and float32 for all others.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/dtype.h"

namespace gpseg {

struct Images {
  int64_t n;
  int64_t c;
  int64_t hw;
  bool channels_last;

  int64_t size() const { return n * c * hw; }
};

// y = clamp(gain * act(scale * x + noise + bias)); scale, noise and bias are optional (null).
struct Epilogue {
  DType dtype;
  Images images;
  Activation activation;
  const void* x;
  const void* scale;  // [N, C], accumulation type
  const void* noise;  // [N, HW] or, if shared_noise, [HW]; accumulation type
  bool shared_noise;
  const void* bias;  // [C], accumulation type
};

struct EpilogueForward : Epilogue {
  void* y;
};

// dx, and the reductions that are not null, in the accumulation type.
struct EpilogueBackward : Epilogue {
  const void* dy;
  void* dx;
  void* dscale;
  void* dnoise;
  void* dbias;
};

// Gradients of <dx, ddx> + <dbias, ddbias>, without scale and noise. ddx, ddbias and d2bias may be
// null.
struct EpilogueDoubleBackward : Epilogue {
  const void* dy;
  const void* ddx;
  const void* ddbias;  // [C], accumulation type
  void* ddy;
  void* d2x;
  void* d2bias;
};

struct Axis {
  int64_t in;
  int64_t out;
  int64_t up;
  int64_t down;
  int64_t pad;  // zeros before the first pixel, on the upsampled grid
};

struct Upfirdn2d {
  DType dtype;
  int64_t n;
  int64_t c;
  bool channels_last;
  Axis x;
  Axis y;
  // [filter_h, filter_w], or [filter_w] for both axes if filter_h is 0; null for one tap of 1. On
  // the CPU in float64, on a GPU in device memory and the accumulation type.
  const void* filter;
  int64_t filter_h;
  int64_t filter_w;
  bool flip_filter;
  double gain;
  const void* input;
  void* output;

  // If not null, output = epilogue(filtered), whose images are the filtered ones, and x is not
  // read.
  const Epilogue* epilogue;
  void* filtered;  // written too if not null
};

// Of a convolution: stride 1, stride 2, or transposed with stride 2.
enum class Resampling { none, down, up };

// Where a kernel's numbers lie: the top left tap from input channel 0 to output channel 0, and how
// far apart, in elements, output and input channels, rows and columns are.
struct Taps {
  void* start;
  int64_t o, i, y, x;
};

// Images [N, C, HW] from one memory order to the other.
struct LayoutChange {
  int64_t n, c, hw;
  int64_t element_bytes;  // 2, 4 or 8
  bool to_channels_last;
  const void* from;
  void* to;
};

// w2[o, i] = sum over the taps of weight^2, [out_c, in_c] in the accumulation type.
struct SquaredNorms {
  DType dtype;
  int64_t out_c, in_c;
  int64_t kernel_h, kernel_w;
  Taps weight;
  void* w2;
};

// At most so many outputs of a 1 x 1 convolution are few.
constexpr int64_t kFewOutputs = 4;

// Gradients of c[n, o] = sum over i of weights[n, o, i] * x[n, i], pixel by pixel: dx, and
// products[n, o, i] = sum over the pixels of dc[n, o] * x[n, i].
struct FewOutputs {
  DType dtype;  // of dc, x and dx; weights and products are in the accumulation type
  int64_t n, out_c, in_c, hw;
  bool channels_last;
  const void* dc;
  const void* x;
  const void* weights;
  void* dx;
  void* products;
};

// What a convolution with 3 x 3 taps takes: style * x. Float32, or bfloat16 without resampling;
// channels last, their numbers multiples of kWinogradChannels.
struct WinogradInput {
  DType dtype;
  Resampling resampling;
  int64_t n;
  int64_t in_h, in_w, in_c;
  int64_t out_h, out_w, out_c;
  int64_t pad_y, pad_x;  // zeros before the first row and column; none for `up`, whose output is
                         // 2 in_h + 1 by 2 in_w + 1
  const void* x;
  const float* style;  // [N, in_c] or null
};

// c = conv(weight, style * x) and y = epilogue(c).
struct WinogradConv : WinogradInput {
  Taps weight;
  Epilogue epilogue;  // its x is not read, its images are the output's
  void* y;
  void* c;             // written too if not null
  const void* factor;  // as y, or null
  float* product;      // [N, out_c], the sum over pixels of c * factor; only with a factor
};

// Gradient of <c, dc_style * dc> with respect to weight; not for `up`, which is `down` with its
// input and output swapped.
struct WinogradWeightGrad : WinogradInput {
  const void* dc;
  const float* dc_style;  // [N, out_c] or null
  Taps dweight;
};

constexpr int64_t kWinogradChannels = 16;

void bias_act(const EpilogueForward& p);
void bias_act_backward(const EpilogueBackward& p);
void bias_act_double_backward(const EpilogueDoubleBackward& p);

void demod_act(const EpilogueForward& p);
void demod_act_backward(const EpilogueBackward& p);

void upfirdn2d(const Upfirdn2d& p);

void change_layout(const LayoutChange& p);

void squared_norms(const SquaredNorms& p);

void few_outputs_gradients(const FewOutputs& p);

void winograd_conv(const WinogradConv& p);
void winograd_weight_grad(const WinogradWeightGrad& p);

}  // namespace gpseg
