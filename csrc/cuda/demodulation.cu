// d = rsqrt(s^2 @ W2^T + epsilon), W2 being the weight's squares summed up over its taps, and what
// the gradient of d adds to those of styles and weight: a launch each. Both are small next to the
// convolution; of torch's operations they take thirteen.
#include <cstdint>
#include <string>

#include "cuda/kernels.h"
#include "cuda/kernels/memory.cuh"
#include "cuda/launch.h"

namespace gpseg::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kDemodulationThreads = 256;
constexpr int kDemodulationWarps = kDemodulationThreads / kWarp;

template <class T>
struct Weight {
  T* start;
  int64_t o, i, y, x;  // strides
  int in_c, kernel_h, kernel_w;

  Weight(const Taps& taps, const DemodulationSize& size)
      : start(static_cast<T*>(taps.start)),
        o(taps.o),
        i(taps.i),
        y(taps.y),
        x(taps.x),
        in_c(static_cast<int>(size.in_c)),
        kernel_h(static_cast<int>(size.kernel_h)),
        kernel_w(static_cast<int>(size.kernel_w)) {}
};

// A block has an output channel: its row of W2, and with it the channel's d of every sample.
template <class T>
__global__ void __launch_bounds__(kDemodulationThreads)
    demodulation_kernel(Weight<const T> weight, const Sum<T>* __restrict__ styles, Sum<T>* w2,
                        Sum<T>* __restrict__ d, int64_t n, double epsilon) {
  using A = Sum<T>;
  const int64_t o = blockIdx.x, out_c = gridDim.x;
  const int thread = threadIdx.x, lane = thread % kWarp;
  const int in_c = weight.in_c;
  A* const row = w2 + o * in_c;
  for (int i = thread; i < in_c; i += kDemodulationThreads) {
    const T* tap = weight.start + o * weight.o + i * weight.i;
    A sum = A(0);
    for (int y = 0; y < weight.kernel_h; ++y) {
      for (int x = 0; x < weight.kernel_w; ++x) {
        const A value = widen(tap[y * weight.y + x * weight.x]);
        sum += value * value;
      }
    }
    row[i] = sum;
  }
  __syncthreads();  // the block reads what it has written
  for (int64_t sample = thread / kWarp; sample < n; sample += kDemodulationWarps) {
    A sum = A(0);
    for (int i = lane; i < in_c; i += kWarp) {
      const A s = styles[sample * in_c + i];
      sum += s * s * row[i];
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (lane == 0) {
      d[sample * out_c + o] = rsqrt(sum + static_cast<A>(epsilon));
    }
  }
}

// What the gradient is made of; g = d^3 dd is -2 times the gradient of what is under the root.
template <class A>
struct Roots {
  const A* d;   // [N, O]
  const A* dd;  // [N, O]
  int n, out_c;

  __device__ __forceinline__ A g(int64_t sample, int64_t o) const {
    const A root = __ldg(d + sample * out_c + o);
    return root * root * root * __ldg(dd + sample * out_c + o);
  }
};

// dstyles[n, i] -= s[n, i] * sum over o of g[n, o] * W2[o, i]: a block has kWarp channels of a
// sample, its warps share the outputs.
template <class A>
__device__ __forceinline__ void add_to_styles(const Roots<A>& roots, const A* styles, const A* w2,
                                              A* dstyles, int in_c, unsigned block) {
  __shared__ A partial[kDemodulationThreads];
  const int chunks = (in_c + kWarp - 1) / kWarp;
  const int64_t sample = block / chunks;
  const int i = block % chunks * kWarp + threadIdx.x % kWarp;
  A sum = A(0);
  if (i < in_c) {
    for (int o = threadIdx.x / kWarp; o < roots.out_c; o += kDemodulationWarps) {
      sum += roots.g(sample, o) * __ldg(w2 + static_cast<int64_t>(o) * in_c + i);
    }
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < kWarp && i < in_c) {
    for (int warp = 1; warp < kDemodulationWarps; ++warp) {
      sum += partial[warp * kWarp + threadIdx.x];
    }
    const int64_t at = sample * in_c + i;
    dstyles[at] -= __ldg(styles + at) * sum;
  }
}

// dweight[o, i, tap] -= weight[o, i, tap] * sum over n of g[n, o] * s[n, i]^2: a block has an
// output.
template <class T>
__device__ __forceinline__ void add_to_weight(const Roots<Sum<T>>& roots, const Sum<T>* styles,
                                              const Weight<const T>& weight,
                                              const Weight<T>& dweight, int64_t o) {
  using A = Sum<T>;
  __shared__ A factor[kDemodulationThreads];
  const int in_c = weight.in_c, taps = weight.kernel_h * weight.kernel_w;
  for (int first = 0; first < in_c; first += kDemodulationThreads) {
    const int channels = min(in_c - first, kDemodulationThreads);
    if (static_cast<int>(threadIdx.x) < channels) {
      A sum = A(0);
      for (int sample = 0; sample < roots.n; ++sample) {
        const A s = __ldg(styles + static_cast<int64_t>(sample) * in_c + first + threadIdx.x);
        sum += roots.g(sample, o) * s * s;
      }
      factor[threadIdx.x] = sum;
    }
    __syncthreads();
    // in the order of memory: taps of a channel, or channels of a tap, lie next to each other
    const bool channels_first = dweight.i == 1;
    for (int e = threadIdx.x; e < channels * taps; e += kDemodulationThreads) {
      const int channel = channels_first ? e % channels : e / taps;
      const int tap = channels_first ? e / channels : e % taps;
      const int y = tap / weight.kernel_w, x = tap % weight.kernel_w;
      const int64_t i = first + channel;
      const T held = weight.start[o * weight.o + i * weight.i + y * weight.y + x * weight.x];
      T* const to = dweight.start + o * dweight.o + i * dweight.i + y * dweight.y + x * dweight.x;
      *to = narrow<T>(widen(*to) - widen(held) * factor[channel]);
    }
    __syncthreads();
  }
}

// The first blocks have the styles, the others the weight.
template <class T>
__global__ void __launch_bounds__(kDemodulationThreads)
    demodulation_backward_kernel(Roots<Sum<T>> roots, const Sum<T>* __restrict__ styles,
                                 const Sum<T>* __restrict__ w2, Sum<T>* __restrict__ dstyles,
                                 Weight<const T> weight, Weight<T> dweight, unsigned style_blocks) {
  if (blockIdx.x < style_blocks) {
    add_to_styles(roots, styles, w2, dstyles, weight.in_c, blockIdx.x);
  } else {
    add_to_weight<T>(roots, styles, weight, dweight, blockIdx.x - style_blocks);
  }
}

std::string shape_of(const DemodulationSize& size) {
  return std::string(kDTypeNames[static_cast<int>(size.dtype)]) + " [" +
         std::to_string(size.out_c) + ", " + std::to_string(size.in_c) + ", " +
         std::to_string(size.kernel_h) + ", " + std::to_string(size.kernel_w) + "] for " +
         std::to_string(size.n) + " samples";
}

}  // namespace

void demodulation(const Demodulation& p, const Queue& queue) {
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    const unsigned blocks = static_cast<unsigned>(p.out_c);
    demodulation_kernel<T><<<blocks, kDemodulationThreads, 0, stream_of(queue)>>>(
        Weight<const T>(p.weight, p), static_cast<const A*>(p.styles), static_cast<A*>(p.w2),
        static_cast<A*>(p.d), p.n, p.epsilon);
    check_launch("demodulation_kernel", shape_of(p), blocks, kDemodulationThreads, 0);
  });
}

void demodulation_backward(const DemodulationBackward& p, const Queue& queue) {
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    const int64_t of_styles = p.dstyles == nullptr ? 0 : p.n * ceil_div(p.in_c, kWarp);
    const int64_t of_weight = p.dweight.start == nullptr ? 0 : p.out_c;
    const unsigned blocks = static_cast<unsigned>(of_styles + of_weight);
    if (blocks == 0) {
      return;
    }
    const Roots<A> roots{static_cast<const A*>(p.d), static_cast<const A*>(p.dd),
                         static_cast<int>(p.n), static_cast<int>(p.out_c)};
    demodulation_backward_kernel<T><<<blocks, kDemodulationThreads, 0, stream_of(queue)>>>(
        roots, static_cast<const A*>(p.styles), static_cast<const A*>(p.w2),
        static_cast<A*>(p.dstyles), Weight<const T>(p.weight, p), Weight<T>(p.dweight, p),
        static_cast<unsigned>(of_styles));
    check_launch("demodulation_backward_kernel", shape_of(p), blocks, kDemodulationThreads, 0);
  });
}

}  // namespace gpseg::cuda
