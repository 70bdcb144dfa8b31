// y = clamp(gain * act(scale * x + noise + bias)) and its gradient: the passes around a modulated
// convolution, and bias_act.
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

template <class T, int length, Family family, Walk walk>
__global__ void __launch_bounds__(kSweepThreads)
    demod_act_kernel(const T* __restrict__ x, T* __restrict__ y, EpilogueView<Sum<T>> epilogue,
                     Sweep sweep) {
  using A = Sum<T>;
  constexpr bool along = walk == Walk::along_channel;
  constexpr int ahead = family == Family::straight ? 4 : 1;  // loads under way
  const Path path = path_of<walk, length>(sweep);
  const Affine<walk, true, A, length> affine(epilogue, sweep, path);

  RowTerms<A> row[ahead] = {};
  if (along && path.within > 0) {
    row[0] = affine.row(path.row);
  }
  int64_t at = path.first;
  for (int visit = 0; visit < path.within; visit += ahead, at += ahead * path.stride) {
    Vector<T, length> in[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (visit + k < path.within) {
        in[k] = load_vector_once<length>(x + at + k * path.stride);
        row[k] = along ? row[0] : affine.row(path.row + (visit + k) * path.row_step);
      }
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (visit + k < path.within) {
        Vector<T, length> out;
#pragma unroll
        for (int j = 0; j < length; ++j) {
          const A u = affine(widen(in[k].element[j]), j, row[k]);
          out.element[j] = narrow<T>(activated<family>(epilogue.pointwise, u));
        }
        store_vector(y + at + k * path.stride, out);
      }
    }
  }
}

// Where partial sums of g, the gradient of the preactivation, go; each may be null.
template <class A>
struct Gradients {
  A* channel_g;
  A* channel_gx;
  A* pixel_g;
};

template <class T, int length, Family family, Walk walk>
__global__ void __launch_bounds__(kSweepThreads, walk == Walk::across_pixels ? 2 : 3)
    demod_act_backward_kernel(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx,
                              EpilogueView<Sum<T>> epilogue, Gradients<Sum<T>> gradients,
                              Sweep sweep) {
  using A = Sum<T>;
  constexpr bool along = walk == Walk::along_channel;
  constexpr bool channels_in_rows = walk != Walk::across_pixels;
  constexpr int ahead = family == Family::straight ? 2 : 1;  // pairs of loads under way
  const Path path = path_of<walk, length>(sweep);
  const Affine<walk, true, A, length> affine(epilogue, sweep, path);
  A* const row_g = channels_in_rows ? gradients.channel_g : gradients.pixel_g;
  A* const column_g = channels_in_rows ? gradients.pixel_g : gradients.channel_g;

  RowTerms<A> row[ahead] = {};
  if (along && path.within > 0) {
    row[0] = affine.row(path.row);
  }
  A sum_g = A(0), sum_gx = A(0);  // of a row
  A column_sum_g[length] = {};
  A column_sum_gx[length] = {};
  int64_t at = path.first;
  for (int visit = 0; visit < path.visits; visit += ahead, at += ahead * path.stride) {
    Vector<T, length> in[ahead];
    Vector<T, length> grad[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (visit + k < path.within) {
        in[k] = load_vector_once<length>(x + at + k * path.stride);
        grad[k] = load_vector_once<length>(dy + at + k * path.stride);
        row[k] = along ? row[0] : affine.row(path.row + (visit + k) * path.row_step);
      }
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const bool inside = visit + k < path.within;
      if (inside) {
        Vector<T, length> out;
#pragma unroll
        for (int j = 0; j < length; ++j) {
          const A value = widen(in[k].element[j]);
          const Jet<A> f = jet<family>(epilogue.pointwise, affine(value, j, row[k]));
          const A g = widen(grad[k].element[j]) * slope(epilogue.pointwise, f.value) * f.first;
          out.element[j] = narrow<T>(affine.scale(j, row[k]) * g);
          sum_g += g;
          sum_gx += g * value;
          column_sum_g[j] += g;
          column_sum_gx[j] += g * value;
        }
        store_vector(dx + at + k * path.stride, out);
      }
      if constexpr (!along) {
        const int64_t here = path.row + (visit + k) * path.row_step;
        if (row_g != nullptr) {
          store_row_sum(sweep, path, here, inside, sum_g, row_g);
        }
        if (channels_in_rows && gradients.channel_gx != nullptr) {
          store_row_sum(sweep, path, here, inside, sum_gx, gradients.channel_gx);
        }
        sum_g = sum_gx = A(0);
      }
    }
  }

  if constexpr (along) {
    if (row_g != nullptr) {
      store_row_sum(sweep, path, path.row, path.row < sweep.rows, sum_g, row_g);
    }
    if (gradients.channel_gx != nullptr) {
      store_row_sum(sweep, path, path.row, path.row < sweep.rows, sum_gx, gradients.channel_gx);
    }
  } else {
    if (column_g != nullptr) {
      store_column_sums(sweep, path, column_sum_g, column_g);
    }
    if (!channels_in_rows && gradients.channel_gx != nullptr) {
      store_column_sums(sweep, path, column_sum_gx, gradients.channel_gx);
    }
  }
}

}  // namespace

void demod_act(const EpilogueForward& p, const Queue& queue) {
  if (p.images.size() == 0) {
    return;
  }
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_family(p.activation.act, [&](auto family) {
      for_sweep<T, true>(
          p.images, p.noise != nullptr, are_aligned({p.x, p.y}),
          [&](auto length, auto walk, const Sweep& sweep) {
            const unsigned blocks = sweep.blocks();
            demod_act_kernel<T, length, family, walk>
                <<<blocks, kSweepThreads, 0, stream_of(queue)>>>(static_cast<const T*>(p.x),
                                                                 static_cast<T*>(p.y),
                                                                 EpilogueView<Sum<T>>(p), sweep);
            check_launch("demod_act_kernel", shape_of(p.dtype, p.images), blocks, kSweepThreads, 0);
          });
    });
  });
}

void demod_act_backward(const EpilogueBackward& p, const Queue& queue) {
  const Images& images = p.images;
  const bool noisy = p.noise != nullptr || p.dnoise != nullptr;
  const std::string shape = shape_of(p.dtype, images);
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    RowSums<A> sums;
    const auto partial_sums = [&](int64_t of_channel, int64_t of_pixel) -> Gradients<A> {
      const bool shared = p.shared_noise;
      return {sums.add(static_cast<A*>(p.dbias), of_channel * images.n, images.c, queue),
              sums.add(static_cast<A*>(p.dscale), of_channel, images.n * images.c, queue),
              sums.add(static_cast<A*>(p.dnoise), shared ? of_pixel * images.n : of_pixel,
                       shared ? images.hw : images.n * images.hw, queue)};
    };
    if (images.size() == 0) {
      partial_sums(0, 0);
      sum_rows(sums, shape, queue);
      return;
    }
    for_family(p.activation.act, [&](auto family) {
      for_sweep<T, true>(
          images, noisy, are_aligned({p.dy, p.x, p.dx}),
          [&](auto length, auto walk, const Sweep& sweep) {
            const bool in_rows = walk != Walk::across_pixels;
            const Gradients<A> gradients =
                in_rows ? partial_sums(sweep.parts_of_row(), sweep.parts_of_column())
                        : partial_sums(sweep.parts_of_column(), sweep.parts_of_row());
            const unsigned blocks = sweep.blocks();
            demod_act_backward_kernel<T, length, family, walk>
                <<<blocks, kSweepThreads, 0, stream_of(queue)>>>(
                    static_cast<const T*>(p.dy), static_cast<const T*>(p.x), static_cast<T*>(p.dx),
                    EpilogueView<A>(p), gradients, sweep);
            check_launch("demod_act_backward_kernel", shape, blocks, kSweepThreads, 0);
          });
    });
    sum_rows(sums, shape, queue);
  });
}

}  // namespace gpseg::cuda
