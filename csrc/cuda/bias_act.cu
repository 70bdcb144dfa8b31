// y = clamp(gain * act(x + bias)), its gradient and its second derivative. The first two are those
// of demod_act without scale and noise.
#include <cstdint>
#include <string>

#include "cuda/kernels.h"
#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/affine.cuh"
#include "cuda/kernels/memory.cuh"
#include "cuda/kernels/sum_rows.cuh"
#include "cuda/kernels/sweep.cuh"
#include "cuda/launch.h"

namespace gpseg::cuda {
namespace {

// epilogue: with bias; direction: with ddbias in its place.
template <class T, int length, Family family, Walk walk>
__global__ void __launch_bounds__(kSweepThreads)
    bias_act_double_backward_kernel(const T* __restrict__ dy, const T* __restrict__ x,
                                    const T* __restrict__ ddx, T* __restrict__ ddy,
                                    T* __restrict__ d2x, EpilogueView<Sum<T>> epilogue,
                                    EpilogueView<Sum<T>> direction, Sum<T>* __restrict__ d2bias,
                                    Sweep sweep) {
  using A = Sum<T>;
  constexpr bool along = walk == Walk::along_channel;
  const Path path = path_of<walk, length>(sweep);
  const Affine<walk, false, A, length> shifted(epilogue, sweep, path);
  const Affine<walk, false, A, length> moved(direction, sweep, path);

  RowTerms<A> bias = {};
  RowTerms<A> ddbias = {};
  if (along && path.within > 0) {
    bias = shifted.row(path.row);
    ddbias = moved.row(path.row);
  }
  A row_sum = A(0);
  A column_sum[length] = {};
  int64_t at = path.first;
  for (int visit = 0; visit < path.within; ++visit, at += path.stride) {
    const Vector<T, length> in = load_vector_once<length>(x + at);
    Vector<T, length> grad = {};
    Vector<T, length> move = {};
    if constexpr (family == Family::curved) {
      grad = load_vector_once<length>(dy + at);  // where the activation is straight, d2x is 0
    }
    if (ddx != nullptr) {
      move = load_vector_once<length>(ddx + at);
    }
    Vector<T, length> to_dy;
    Vector<T, length> to_x;
#pragma unroll
    for (int j = 0; j < length; ++j) {
      const Jet<A> f = jet<family>(epilogue.pointwise, shifted(widen(in.element[j]), j, bias));
      const A t = moved(widen(move.element[j]), j, ddbias) * slope(epilogue.pointwise, f.value);
      const A second = family == Family::straight ? A(0) : t * widen(grad.element[j]) * f.second;
      to_dy.element[j] = narrow<T>(t * f.first);
      to_x.element[j] = narrow<T>(second);
      row_sum += second;
      column_sum[j] += second;
    }
    store_vector(ddy + at, to_dy);
    store_vector(d2x + at, to_x);
  }
  if (d2bias != nullptr) {
    if constexpr (along) {
      store_row_sum(sweep, path, path.row, path.row < sweep.rows, row_sum, d2bias);
    } else {
      store_column_sums(sweep, path, column_sum, d2bias);
    }
  }
}

}  // namespace

void bias_act(const EpilogueForward& p, const Queue& queue) { demod_act(p, queue); }

void bias_act_backward(const EpilogueBackward& p, const Queue& queue) {
  demod_act_backward(p, queue);
}

void bias_act_double_backward(const EpilogueDoubleBackward& p, const Queue& queue) {
  const Images& images = p.images;
  const std::string shape = shape_of(p.dtype, images);
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    RowSums<A> sums;
    const auto partial_sums = [&](int64_t parts) {
      return sums.add(static_cast<A*>(p.d2bias), parts * images.n, images.c, queue);
    };
    if (images.size() == 0) {
      partial_sums(0);
      sum_rows(sums, shape, queue);
      return;
    }
    Epilogue direction = p;
    direction.bias = p.ddbias;
    for_family(p.activation.act, [&](auto family) {
      for_sweep<T, false>(
          images, false, are_aligned({p.dy, p.x, p.ddx, p.ddy, p.d2x}),
          [&](auto length, auto walk, const Sweep& sweep) {
            A* const d2bias = partial_sums(walk == Walk::across_pixels ? sweep.parts_of_column()
                                                                       : sweep.parts_of_row());
            bias_act_double_backward_kernel<T, length, family, walk>
                <<<sweep.blocks(), kSweepThreads, 0, stream_of(queue)>>>(
                    static_cast<const T*>(p.dy), static_cast<const T*>(p.x),
                    static_cast<const T*>(p.ddx), static_cast<T*>(p.ddy), static_cast<T*>(p.d2x),
                    EpilogueView<A>(p), EpilogueView<A>(direction), d2bias, sweep);
            check_launch("bias_act_double_backward_kernel", shape, sweep.blocks(), kSweepThreads,
                         0);
          });
    });
    sum_rows(sums, shape, queue);
  });
}

}  // namespace gpseg::cuda
