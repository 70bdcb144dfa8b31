// The kernels as torch ops, through torch's stable ABI: those for the CPU, or those for CUDA, as
// target.h says. Outputs are allocated by the caller; tensors are dense in one of the two orders of
// common/kernels.h, which gpseg/backends/compiled.py takes care of.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "target.h"

#if !defined(GPSEG_CUDA_KERNELS)
#include "cpu/pool.h"
#endif

namespace gpseg {

#if !defined(GPSEG_CUDA_KERNELS)
void parallel_ranges(int64_t count, int64_t grain, RangeBody body, void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}
#endif

namespace {

using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    default:
      STD_TORCH_CHECK(false, "gpseg: float16, bfloat16, float32 or float64 expected");
  }
}

Act act_of(const std::string& name) {
  constexpr std::string_view names[] = {"linear", "relu", "lrelu",    "tanh", "sigmoid",
                                        "elu",    "selu", "softplus", "swish"};
  for (int i = 0; i < static_cast<int>(std::size(names)); ++i) {
    if (names[i] == name) {
      return static_cast<Act>(i);
    }
  }
  STD_TORCH_CHECK(false, "gpseg: unknown activation ", name);
}

// The tensor's memory, after a check that it is what a kernel will take it for; null for none.
void* checked(const char* name, const OptionalTensor& t, DType dtype, int64_t size,
              bool initialised) {
  if (!t.has_value()) {
    return nullptr;
  }
  STD_TORCH_CHECK(dtype_of(*t) == dtype, "gpseg: ", name, " has the wrong element type");
  STD_TORCH_CHECK(t->numel() == size, "gpseg: ", name, " has ", t->numel(),
                  " elements where the kernel takes ", size);
  const int element = static_cast<int>(t->element_size());
  announce(t->data_ptr(), size * element, element, initialised, name);
  return t->data_ptr();
}

void* memory(const char* name, const OptionalTensor& t, DType dtype, int64_t size) {
  return checked(name, t, dtype, size, true);
}

// As `memory`, for a result.
void* result(const char* name, const OptionalTensor& t, DType dtype, int64_t size) {
  return checked(name, t, dtype, size, false);
}

DType accumulate(DType dtype) { return dtype == DType::float64 ? DType::float64 : DType::float32; }

DType filter_dtype(DType dtype) {
#if defined(GPSEG_CUDA_KERNELS)
  return accumulate(dtype);
#else
  (void)dtype;
  return DType::float64;
#endif
}

Images images_of(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, "gpseg: a tensor [N, C, H, W] expected");
  return {t.size(0), t.size(1), t.size(2) * t.size(3), !t.is_contiguous()};
}

// x seen as [outer, channels, inner] in memory.
Images flat_images(int64_t outer, int64_t channels, int64_t inner) {
  return inner == 1 ? Images{1, channels, outer, true} : Images{outer, channels, inner, false};
}

// The part of an Epilogue that every op has in common. Its x is not set: see `with_x`.
Epilogue epilogue_of(DType dtype, const Images& images, const OptionalTensor& scale,
                     const OptionalTensor& noise, const OptionalTensor& bias,
                     const std::string& act, double alpha, double gain, double clamp) {
  const DType sums = accumulate(dtype);
  const bool shared_noise = !noise.has_value() || noise->numel() == images.hw;
  return {dtype,
          images,
          {act_of(act), alpha, gain, clamp},
          nullptr,
          memory("scale", scale, sums, images.n * images.c),
          memory("noise", noise, sums, shared_noise ? images.hw : images.n * images.hw),
          shared_noise,
          memory("bias", bias, sums, images.c)};
}

Epilogue with_x(Epilogue epilogue, const Tensor& x) {
  epilogue.x = memory("x", x, epilogue.dtype, epilogue.images.size());
  return epilogue;
}

void bias_act_op(const Tensor& x, const OptionalTensor& bias, int64_t outer, int64_t channels,
                 int64_t inner, const std::string& act, double alpha, double gain, double clamp,
                 const Tensor& y) {
  const Images images = flat_images(outer, channels, inner);
  const Epilogue p = with_x(
      epilogue_of(dtype_of(x), images, std::nullopt, std::nullopt, bias, act, alpha, gain, clamp),
      x);
  run(&target::bias_act, {p, result("y", y, p.dtype, images.size())}, x);
}

void bias_act_backward_op(const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                          int64_t outer, int64_t channels, int64_t inner, const std::string& act,
                          double alpha, double gain, double clamp, const Tensor& dx,
                          const OptionalTensor& dbias) {
  const Images images = flat_images(outer, channels, inner);
  const Epilogue p = with_x(
      epilogue_of(dtype_of(x), images, std::nullopt, std::nullopt, bias, act, alpha, gain, clamp),
      x);
  run(&target::bias_act_backward,
      {p, memory("dy", dy, p.dtype, images.size()), result("dx", dx, p.dtype, images.size()),
       nullptr, nullptr, result("dbias", dbias, accumulate(p.dtype), channels)},
      x);
}

void bias_act_double_backward_op(const OptionalTensor& ddx, const OptionalTensor& ddbias,
                                 const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                                 int64_t outer, int64_t channels, int64_t inner,
                                 const std::string& act, double alpha, double gain, double clamp,
                                 const Tensor& ddy, const Tensor& d2x,
                                 const OptionalTensor& d2bias) {
  const Images images = flat_images(outer, channels, inner);
  const Epilogue p = with_x(
      epilogue_of(dtype_of(x), images, std::nullopt, std::nullopt, bias, act, alpha, gain, clamp),
      x);
  const DType sums = accumulate(p.dtype);
  run(&target::bias_act_double_backward,
      {p, memory("dy", dy, p.dtype, images.size()), memory("ddx", ddx, p.dtype, images.size()),
       memory("ddbias", ddbias, sums, channels), result("ddy", ddy, p.dtype, images.size()),
       result("d2x", d2x, p.dtype, images.size()), result("d2bias", d2bias, sums, channels)},
      x);
}

void demod_act_op(const Tensor& c, const OptionalTensor& d, const OptionalTensor& noise,
                  const OptionalTensor& bias, const std::string& act, double alpha, double gain,
                  double clamp, const Tensor& y) {
  const Images images = images_of(c);
  const Epilogue p =
      with_x(epilogue_of(dtype_of(c), images, d, noise, bias, act, alpha, gain, clamp), c);
  run(&target::demod_act, {p, result("y", y, p.dtype, images.size())}, c);
}

void demod_act_backward_op(const Tensor& dy, const Tensor& c, const OptionalTensor& d,
                           const OptionalTensor& noise, const OptionalTensor& bias,
                           const std::string& act, double alpha, double gain, double clamp,
                           const Tensor& dc, const OptionalTensor& dd, const OptionalTensor& dnoise,
                           const OptionalTensor& dbias) {
  const Images images = images_of(c);
  const Epilogue p =
      with_x(epilogue_of(dtype_of(c), images, d, noise, bias, act, alpha, gain, clamp), c);
  const DType sums = accumulate(p.dtype);
  run(&target::demod_act_backward,
      {p, memory("dy", dy, p.dtype, images.size()), result("dc", dc, p.dtype, images.size()),
       result("dd", dd, sums, images.n * images.c),
       result("dnoise", dnoise, sums, p.shared_noise ? images.hw : images.n * images.hw),
       result("dbias", dbias, sums, images.c)},
      c);
}

Upfirdn2d upfirdn2d_of(const Tensor& x, const OptionalTensor& f, const std::vector<int64_t>& up,
                       const std::vector<int64_t>& down, const std::vector<int64_t>& padding,
                       bool flip_filter, double gain, const Tensor& y) {
  const Images images = images_of(x);
  STD_TORCH_CHECK(y.dim() == 4, "gpseg: a result [N, C, H, W] expected");
  STD_TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4,
                  "gpseg: two factors each and four paddings expected");
  STD_TORCH_CHECK(std::min({up[0], up[1], down[0], down[1]}) >= 1,
                  "gpseg: factors of at least 1 expected");
  STD_TORCH_CHECK(!f.has_value() || ((f->dim() == 1 || f->dim() == 2) && f->numel() > 0),
                  "gpseg: a filter [taps] or [fh, fw] expected");
  const Axis along_x{x.size(3), y.size(3), up[0], down[0], padding[0]};
  const Axis along_y{x.size(2), y.size(2), up[1], down[1], padding[2]};
  const DType dtype = dtype_of(x);
  Upfirdn2d p{dtype,
              images.n,
              images.c,
              images.channels_last,
              along_x,
              along_y,
              nullptr,
              1,
              1,
              flip_filter,
              gain,
              memory("x", x, dtype, images.size()),
              result("y", y, dtype, images.n * images.c * along_x.out * along_y.out),
              nullptr,
              nullptr};
  if (f.has_value()) {
    p.filter = memory("f", f, filter_dtype(dtype), f->numel());
    p.filter_h = f->dim() == 1 ? 0 : f->size(0);
    p.filter_w = f->size(f->dim() - 1);
  }
  return p;
}

void upfirdn2d_op(const Tensor& x, const OptionalTensor& f, const std::vector<int64_t>& up,
                  const std::vector<int64_t>& down, const std::vector<int64_t>& padding,
                  bool flip_filter, double gain, const Tensor& y) {
  if (y.numel() > 0) {
    run(&target::upfirdn2d, upfirdn2d_of(x, f, up, down, padding, flip_filter, gain, y), x);
  }
}

void upfirdn2d_demod_act_op(const Tensor& x, const OptionalTensor& f,
                            const std::vector<int64_t>& up, const std::vector<int64_t>& down,
                            const std::vector<int64_t>& padding, bool flip_filter, double fir_gain,
                            const OptionalTensor& d, const OptionalTensor& noise,
                            const OptionalTensor& bias, const std::string& act, double alpha,
                            double gain, double clamp, const Tensor& y, const OptionalTensor& c) {
  if (y.numel() == 0) {
    return;
  }
  Upfirdn2d p = upfirdn2d_of(x, f, up, down, padding, flip_filter, fir_gain, y);
  const Images images{p.n, p.c, p.x.out * p.y.out, p.channels_last};
  const Epilogue epilogue = epilogue_of(p.dtype, images, d, noise, bias, act, alpha, gain, clamp);
  p.epilogue = &epilogue;
  p.filtered = result("c", c, p.dtype, images.size());
  run(&target::upfirdn2d, p, x);
}

#if !defined(GPSEG_CUDA_KERNELS)

// An uninitialised tensor like `like` in memory from the pool, to which it returns when the storage
// dies. Its storage can't be resized.
Tensor empty_op(const Tensor& like, const std::vector<int64_t>& size, bool channels_last) {
  std::vector<int64_t> strides(size.size());
  int64_t count = 1;
  const auto stride = [&](size_t i) {
    strides[i] = count;
    count *= std::max<int64_t>(size[i], 1);
  };
  if (channels_last) {
    STD_TORCH_CHECK(size.size() == 4, "gpseg: a size [N, C, H, W] expected");
    for (const size_t i : {1, 3, 2, 0}) {
      stride(i);
    }
  } else {
    for (size_t i = size.size(); i-- > 0;) {
      stride(i);
    }
  }
  const int64_t bytes = count * static_cast<int64_t>(like.element_size());
  const pool::Block block = pool::take(bytes);
  return torch::stable::from_blob(block.start, size, strides, like.device(), like.scalar_type(),
                                  [block](void*) { pool::give(block); });
}

#endif

#if defined(GPSEG_CUDA_KERNELS)

// A dense kernel [O, I, kh, kw] in any order of memory.
Taps taps_of(void* start, const Tensor& weight) {
  return {start, weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

cuda::DemodulationSize demodulation_size(const Tensor& weight, const Tensor& styles) {
  STD_TORCH_CHECK(weight.dim() == 4 && styles.dim() == 2,
                  "gpseg: a kernel [O, I, kh, kw] and styles [N, I] expected");
  return {dtype_of(weight), styles.size(0), weight.size(0),
          weight.size(1),   weight.size(2), weight.size(3)};
}

void demodulation_op(const Tensor& weight, const Tensor& styles, double epsilon, const Tensor& w2,
                     const Tensor& d) {
  const cuda::DemodulationSize size = demodulation_size(weight, styles);
  const DType sums = accumulate(size.dtype);
  run(&target::demodulation,
      {size, taps_of(memory("weight", weight, size.dtype, weight.numel()), weight),
       memory("styles", styles, sums, size.n * size.in_c),
       result("w2", w2, sums, size.out_c * size.in_c), result("d", d, sums, size.n * size.out_c),
       epsilon},
      weight);
}

void demodulation_backward_op(const Tensor& weight, const Tensor& styles, const Tensor& w2,
                              const Tensor& d, const Tensor& dd, const OptionalTensor& dstyles,
                              const OptionalTensor& dweight) {
  const cuda::DemodulationSize size = demodulation_size(weight, styles);
  const DType sums = accumulate(size.dtype);
  run(&target::demodulation_backward,
      {size, taps_of(memory("weight", weight, size.dtype, weight.numel()), weight),
       memory("styles", styles, sums, size.n * size.in_c),
       memory("w2", w2, sums, size.out_c * size.in_c), memory("d", d, sums, size.n * size.out_c),
       memory("dd", dd, sums, size.n * size.out_c),
       memory("dstyles", dstyles, sums, size.n * size.in_c),
       dweight.has_value()
           ? taps_of(memory("dweight", dweight, size.dtype, weight.numel()), *dweight)
           : Taps{}},
      weight);
}

void fused_conv_op(const Tensor& x, const Tensor& weight, const OptionalTensor& style,
                   int64_t stride, const std::vector<int64_t>& padding, bool transposed,
                   const OptionalTensor& d, const OptionalTensor& noise, const OptionalTensor& bias,
                   const std::string& act, double alpha, double gain, double clamp, const Tensor& y,
                   const OptionalTensor& c, const OptionalTensor& factor,
                   const OptionalTensor& product) {
  const DType dtype = dtype_of(x);
  STD_TORCH_CHECK(dtype == DType::float16 || dtype == DType::bfloat16,
                  "gpseg: fused_conv serves float16 and bfloat16");
  const Images images{y.size(0), y.size(1), y.size(2) * y.size(3), true};
  const int64_t n = x.size(0), in_c = x.size(1);
  run(&target::fused_conv,
      {dtype,
       n,
       x.size(2),
       x.size(3),
       in_c,
       y.size(2),
       y.size(3),
       y.size(1),
       weight.size(2),
       weight.size(3),
       stride,
       padding[0],
       padding[1],
       transposed,
       memory("x", x, dtype, x.numel()),
       memory("weight", weight, dtype, images.c * in_c * weight.size(2) * weight.size(3)),
       static_cast<const float*>(memory("style", style, DType::float32, n * in_c)),
       epilogue_of(dtype, images, d, noise, bias, act, alpha, gain, clamp),
       result("y", y, dtype, images.size()),
       result("c", c, dtype, images.size()),
       memory("factor", factor, dtype, images.size()),
       static_cast<float*>(result("product", product, DType::float32, images.n * images.c))},
      x);
}

#else

// What a convolution of x with a kernel of 3 x 3 taps takes; y has its result's size.
WinogradInput winograd_input(const Tensor& x, const OptionalTensor& style, const Tensor& y,
                             int64_t stride, const std::vector<int64_t>& padding, bool transposed) {
  const DType dtype = dtype_of(x);
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && y.size(0) == x.size(0),
                  "gpseg: winograd serves as many results [N, C, H, W] as images");
  STD_TORCH_CHECK(padding.size() == 2, "gpseg: two paddings expected");
  const int64_t n = x.size(0), in_c = x.size(1), out_c = y.size(1);
  const Resampling resampling = stride == 1  ? Resampling::none
                                : transposed ? Resampling::up
                                             : Resampling::down;
  STD_TORCH_CHECK(dtype == DType::float32 || (dtype == DType::bfloat16 && stride == 1),
                  "gpseg: winograd serves float32, and bfloat16 with stride 1");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "gpseg: winograd serves strides 1 and 2");
  STD_TORCH_CHECK(in_c % kWinogradChannels == 0 && out_c % kWinogradChannels == 0,
                  "gpseg: winograd serves channels in multiples of ", kWinogradChannels);
  STD_TORCH_CHECK(resampling != Resampling::up ||
                      (padding[0] == 0 && padding[1] == 0 && y.size(2) == 2 * x.size(2) + 1 &&
                       y.size(3) == 2 * x.size(3) + 1),
                  "gpseg: winograd serves transposed convolutions without padding");
  for (int i = 0; i < 2 && resampling != Resampling::up; ++i) {
    const int64_t beyond = 2 * padding[i] - 2;  // how much larger the result is than the image
    const int64_t size = x.size(2 + i) + (transposed ? -beyond : beyond);
    STD_TORCH_CHECK(y.size(2 + i) == (size - 1) / stride + 1,
                    "gpseg: the result's size is not that of this convolution");
  }
  // transposed, at stride 1, is the mirrored kernel, which reaches beyond the edge by what the
  // other one leaves out
  const bool mirrored = transposed && stride == 1;
  return {dtype,
          resampling,
          n,
          x.size(2),
          x.size(3),
          in_c,
          y.size(2),
          y.size(3),
          out_c,
          mirrored ? 2 - padding[0] : padding[0],
          mirrored ? 2 - padding[1] : padding[1],
          memory("x", x, dtype, x.numel()),
          static_cast<const float*>(memory("style", style, DType::float32, n * in_c))};
}

// The taps of a kernel as torch's (transposed) convolution holds it, in any layout.
Taps taps_of(const Tensor& weight, bool transposed, const WinogradInput& p) {
  STD_TORCH_CHECK(dtype_of(weight) == p.dtype && weight.dim() == 4 && weight.size(2) == 3 &&
                      weight.size(3) == 3 && weight.size(transposed ? 1 : 0) == p.out_c &&
                      weight.size(transposed ? 0 : 1) == p.in_c,
                  "gpseg: winograd serves kernels of 3 x 3");
  const int64_t o = weight.stride(transposed ? 1 : 0), i = weight.stride(transposed ? 0 : 1);
  const int64_t y = weight.stride(2), x = weight.stride(3);
  auto* start = static_cast<char*>(weight.data_ptr());
  const bool mirrored = transposed && p.resampling == Resampling::none;
  const int64_t last = 2 * (y + x) * static_cast<int64_t>(weight.element_size());
  return mirrored ? Taps{start + last, o, i, -y, -x} : Taps{start, o, i, y, x};
}

// Both dense, one in each order.
void change_layout_op(const Tensor& x, const Tensor& y) {
  const Images from = images_of(x), to = images_of(y);
  STD_TORCH_CHECK(from.channels_last != to.channels_last,
                  "gpseg: change_layout takes images of one order to the other");
  const DType dtype = dtype_of(x);
  change_layout({from.n, from.c, from.hw, static_cast<int64_t>(x.element_size()), to.channels_last,
                 memory("x", x, dtype, from.size()), result("y", y, dtype, from.size())});
}

void squared_norms_op(const Tensor& weight, const Tensor& w2) {
  STD_TORCH_CHECK(weight.dim() == 4, "gpseg: a kernel [O, I, kh, kw] expected");
  const DType dtype = dtype_of(weight);
  const int64_t out_c = weight.size(0), in_c = weight.size(1);
  squared_norms(
      {dtype,
       out_c,
       in_c,
       weight.size(2),
       weight.size(3),
       {weight.data_ptr(), weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)},
       result("w2", w2, accumulate(dtype), out_c * in_c)});
}

void few_outputs_gradients_op(const Tensor& dc, const Tensor& x, const Tensor& weights,
                              const Tensor& dx, const Tensor& products) {
  const DType dtype = dtype_of(x);
  const Images in = images_of(x), out = images_of(dc);
  STD_TORCH_CHECK(in.channels_last == out.channels_last || out.c == 1 || in.hw == 1,
                  "gpseg: dc and x in one memory order expected");
  STD_TORCH_CHECK(in.n == out.n && in.hw == out.hw && out.c >= 1 && out.c <= kFewOutputs,
                  "gpseg: dc [N, 1 to 4, H, W] expected, of x's samples and pixels");
  const int64_t sums = in.n * out.c * in.c;
  few_outputs_gradients(
      {dtype, in.n, out.c, in.c, in.hw, in.channels_last, memory("dc", dc, dtype, out.size()),
       memory("x", x, dtype, in.size()), memory("weights", weights, accumulate(dtype), sums),
       result("dx", dx, dtype, in.size()), result("products", products, accumulate(dtype), sums)});
}

void winograd_conv_op(const Tensor& x, const Tensor& weight, const OptionalTensor& style,
                      int64_t stride, const std::vector<int64_t>& padding, bool transposed,
                      const OptionalTensor& d, const OptionalTensor& noise,
                      const OptionalTensor& bias, const std::string& act, double alpha, double gain,
                      double clamp, const Tensor& y, const OptionalTensor& c,
                      const OptionalTensor& factor, const OptionalTensor& product) {
  const DType dtype = dtype_of(x);
  const Images images{y.size(0), y.size(1), y.size(2) * y.size(3), true};
  const WinogradInput input = winograd_input(x, style, y, stride, padding, transposed);
  winograd_conv(
      {input, taps_of(weight, transposed, input),
       epilogue_of(dtype, images, d, noise, bias, act, alpha, gain, clamp),
       result("y", y, dtype, images.size()), result("c", c, dtype, images.size()),
       memory("factor", factor, dtype, images.size()),
       static_cast<float*>(result("product", product, DType::float32, images.n * images.c))});
}

void winograd_weight_grad_op(const Tensor& x, const OptionalTensor& style, const Tensor& dc,
                             const OptionalTensor& dc_style, int64_t stride,
                             const std::vector<int64_t>& padding, const Tensor& dweight) {
  const WinogradInput input = winograd_input(x, style, dc, stride, padding, false);
  const int64_t styles = input.n * input.out_c;
  winograd_weight_grad(
      {input, memory("dc", dc, input.dtype, dc.numel()),
       static_cast<const float*>(memory("dc_style", dc_style, DType::float32, styles)),
       taps_of(dweight, false, input)});
}

#endif

}  // namespace
}  // namespace gpseg

#define GPSEG_ACTIVATION "str act, float alpha, float gain, float clamp"
#define GPSEG_FLAT "int outer, int channels, int inner"
#define GPSEG_FIR "Tensor? f, int[] up, int[] down, int[] padding, bool flip_filter"

// One more expansion, so that the macros' names are the library's and not GPSEG_LIBRARY.
#define GPSEG_DEFINE(library, m) STABLE_TORCH_LIBRARY(library, m)
#define GPSEG_IMPLEMENT(library, key, m) STABLE_TORCH_LIBRARY_IMPL(library, key, m)

GPSEG_DEFINE(GPSEG_LIBRARY, m) {
  m.def("bias_act(Tensor x, Tensor? bias, " GPSEG_FLAT ", " GPSEG_ACTIVATION
        ", Tensor(a!) y) -> ()");
  m.def("bias_act_backward(Tensor dy, Tensor x, Tensor? bias, " GPSEG_FLAT ", " GPSEG_ACTIVATION
        ", Tensor(a!) dx, Tensor(b!)? dbias) -> ()");
  m.def(
      "bias_act_double_backward(Tensor? ddx, Tensor? ddbias, Tensor dy, Tensor x, Tensor? "
      "bias, " GPSEG_FLAT ", " GPSEG_ACTIVATION
      ", Tensor(a!) ddy, Tensor(b!) d2x, Tensor(c!)? d2bias) -> ()");
  m.def("demod_act(Tensor c, Tensor? d, Tensor? noise, Tensor? bias, " GPSEG_ACTIVATION
        ", Tensor(a!) y) -> ()");
  m.def(
      "demod_act_backward(Tensor dy, Tensor c, Tensor? d, Tensor? noise, Tensor? "
      "bias, " GPSEG_ACTIVATION
      ", Tensor(a!) dc, Tensor(b!)? dd, Tensor(c!)? dnoise, Tensor(d!)? dbias) -> ()");
  m.def("upfirdn2d(Tensor x, " GPSEG_FIR ", float gain, Tensor(a!) y) -> ()");
  m.def("upfirdn2d_demod_act(Tensor x, " GPSEG_FIR
        ", float fir_gain, Tensor? d, Tensor? noise, Tensor? bias, " GPSEG_ACTIVATION
        ", Tensor(a!) y, Tensor(b!)? c) -> ()");
#if !defined(GPSEG_CUDA_KERNELS)
  m.def("empty(Tensor like, int[] size, bool channels_last) -> Tensor");
#endif
#if defined(GPSEG_CUDA_KERNELS)
  m.def(
      "demodulation(Tensor weight, Tensor styles, float epsilon, Tensor(a!) w2, Tensor(b!) d) -> "
      "()");
  m.def(
      "demodulation_backward(Tensor weight, Tensor styles, Tensor w2, Tensor d, Tensor dd, "
      "Tensor(a!)? dstyles, Tensor(b!)? dweight) -> ()");
  m.def(
      "fused_conv(Tensor x, Tensor weight, Tensor? style, int stride, int[] padding, bool "
      "transposed, Tensor? d, Tensor? noise, Tensor? bias, " GPSEG_ACTIVATION
      ", Tensor(a!) y, Tensor(b!)? c, Tensor? factor, Tensor(c!)? product) -> ()");
#else
  m.def("change_layout(Tensor x, Tensor(a!) y) -> ()");
  m.def("squared_norms(Tensor weight, Tensor(a!) w2) -> ()");
  m.def(
      "few_outputs_gradients(Tensor dc, Tensor x, Tensor weights, Tensor(a!) dx, Tensor(b!) "
      "products) "
      "-> ()");
  m.def(
      "winograd_conv(Tensor x, Tensor weight, Tensor? style, int stride, int[] padding, bool "
      "transposed, Tensor? d, Tensor? noise, Tensor? bias, " GPSEG_ACTIVATION
      ", Tensor(a!) y, Tensor(b!)? c, Tensor? factor, Tensor(c!)? product) -> ()");
  m.def(
      "winograd_weight_grad(Tensor x, Tensor? style, Tensor dc, Tensor? dc_style, int stride, "
      "int[] "
      "padding, Tensor(a!) dweight) -> ()");
#endif
}

GPSEG_IMPLEMENT(GPSEG_LIBRARY, GPSEG_DISPATCH_KEY, m) {
  m.impl("bias_act", TORCH_BOX(&gpseg::bias_act_op));
  m.impl("bias_act_backward", TORCH_BOX(&gpseg::bias_act_backward_op));
  m.impl("bias_act_double_backward", TORCH_BOX(&gpseg::bias_act_double_backward_op));
  m.impl("demod_act", TORCH_BOX(&gpseg::demod_act_op));
  m.impl("demod_act_backward", TORCH_BOX(&gpseg::demod_act_backward_op));
  m.impl("upfirdn2d", TORCH_BOX(&gpseg::upfirdn2d_op));
  m.impl("upfirdn2d_demod_act", TORCH_BOX(&gpseg::upfirdn2d_demod_act_op));
#if !defined(GPSEG_CUDA_KERNELS)
  m.impl("empty", TORCH_BOX(&gpseg::empty_op));
#endif
#if defined(GPSEG_CUDA_KERNELS)
  m.impl("demodulation", TORCH_BOX(&gpseg::demodulation_op));
  m.impl("demodulation_backward", TORCH_BOX(&gpseg::demodulation_backward_op));
  m.impl("fused_conv", TORCH_BOX(&gpseg::fused_conv_op));
#else
  m.impl("change_layout", TORCH_BOX(&gpseg::change_layout_op));
  m.impl("squared_norms", TORCH_BOX(&gpseg::squared_norms_op));
  m.impl("few_outputs_gradients", TORCH_BOX(&gpseg::few_outputs_gradients_op));
  m.impl("winograd_conv", TORCH_BOX(&gpseg::winograd_conv_op));
  m.impl("winograd_weight_grad", TORCH_BOX(&gpseg::winograd_weight_grad_op));
#endif
}
