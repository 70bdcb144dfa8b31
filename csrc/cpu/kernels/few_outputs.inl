// Both gradients of a 1×1 convolution with few outputs and a weight for each sample, in one sweep:
// x and dc are read once, dx is written once. Sums over pixels are taken in vectors over a run of
// them, then in float64 over the runs, in order: they do not depend on the number of threads.
#include "cpu/kernels/rows.inl"

// Pixels of a run: a few channels of it stay in the first-level cache.
constexpr int64_t kFewPixelsRun = 1024;
// Elements that a thread is woken for.
constexpr int64_t kFewGrain = 65536;

// A vector of accumulators: GPSEG_VECTOR_BYTES of them.
template <class A>
struct Lanes {
  static constexpr int64_t count = GPSEG_VECTOR_BYTES / sizeof(A);
  typedef A Vector __attribute__((vector_size(GPSEG_VECTOR_BYTES)));

  static Vector read(const A* from) {
    Vector v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void write(A* to, Vector v) { std::memcpy(to, &v, sizeof(v)); }
};

// A run of pixels of one sample: dc, weights and sums of `outputs` rows, x and dx of in_c.
template <class A>
struct FewRun {
  const A* dc;
  const A* x;
  const A* weights;  // [outputs, in_c]
  A* dx;
  A* sums;  // [outputs, in_c], written
  int64_t in_c;
  int64_t pixels;
};

// Rows of channels: dc [pixels, outputs], x and dx [pixels, in_c].
template <int outputs, class A>
void few_rows(const FewRun<A>& run) {
  using L = Lanes<A>;
  int64_t c = 0;
  for (; c + L::count <= run.in_c; c += L::count) {
    typename L::Vector weight[outputs], sum[outputs];
    for (int o = 0; o < outputs; ++o) {
      weight[o] = L::read(run.weights + o * run.in_c + c);
      sum[o] = weight[o] - weight[o];
    }
    for (int64_t p = 0; p < run.pixels; ++p) {
      const auto x = L::read(run.x + p * run.in_c + c);
      auto dx = weight[0] * run.dc[p * outputs];
      sum[0] += x * run.dc[p * outputs];
      for (int o = 1; o < outputs; ++o) {
        dx += weight[o] * run.dc[p * outputs + o];
        sum[o] += x * run.dc[p * outputs + o];
      }
      L::write(run.dx + p * run.in_c + c, dx);
    }
    for (int o = 0; o < outputs; ++o) {
      L::write(run.sums + o * run.in_c + c, sum[o]);
    }
  }
  for (; c < run.in_c; ++c) {
    A sum[outputs] = {};
    for (int64_t p = 0; p < run.pixels; ++p) {
      A dx = 0;
      for (int o = 0; o < outputs; ++o) {
        dx += run.weights[o * run.in_c + c] * run.dc[p * outputs + o];
        sum[o] += run.x[p * run.in_c + c] * run.dc[p * outputs + o];
      }
      run.dx[p * run.in_c + c] = dx;
    }
    for (int o = 0; o < outputs; ++o) {
      run.sums[o * run.in_c + c] = sum[o];
    }
  }
}

// One plane: dc is [outputs, kFewPixelsRun], x and dx `pixels` of channel c.
template <int outputs, class A>
void few_plane(const FewRun<A>& run, int64_t c) {
  using L = Lanes<A>;
  typename L::Vector sum[outputs] = {};
  A weight[outputs], rest[outputs] = {};
  for (int o = 0; o < outputs; ++o) {
    weight[o] = run.weights[o * run.in_c + c];
  }
  int64_t p = 0;
  for (; p + L::count <= run.pixels; p += L::count) {
    const auto x = L::read(run.x + p);
    auto dc = L::read(run.dc + p);
    auto dx = dc * weight[0];
    sum[0] += dc * x;
    for (int o = 1; o < outputs; ++o) {
      dc = L::read(run.dc + o * kFewPixelsRun + p);
      dx += dc * weight[o];
      sum[o] += dc * x;
    }
    L::write(run.dx + p, dx);
  }
  for (; p < run.pixels; ++p) {
    A dx = 0;
    for (int o = 0; o < outputs; ++o) {
      const A dc = run.dc[o * kFewPixelsRun + p];
      dx += dc * weight[o];
      rest[o] += dc * run.x[p];
    }
    run.dx[p] = dx;
  }
  for (int o = 0; o < outputs; ++o) {
    A total = rest[o];
    for (int64_t lane = 0; lane < L::count; ++lane) {
      total += sum[o][lane];
    }
    run.sums[o * run.in_c + c] = total;
  }
}

template <int outputs, class T>
void few_gradients(const FewOutputs& p) {
  using A = Accumulate<T>;
  const int64_t runs = (p.hw + kFewPixelsRun - 1) / kFewPixelsRun, sums = outputs * p.in_c;
  const Workspace memory(p.n * runs * sums * static_cast<int64_t>(sizeof(A) / sizeof(float)));
  A* const partial = reinterpret_cast<A*>(memory.data());
  parallel_for(
      p.n * runs, 1 + kFewGrain / (1 + kFewPixelsRun * p.in_c), [&](int64_t begin, int64_t end) {
        Scratch scratch;
        const int64_t held = p.channels_last ? p.in_c : 1;
        A* const dc_row = scratch.take<A>(kFewPixelsRun * outputs);
        A* const x_row = scratch.take<A>(kFewPixelsRun * held);
        A* const dx_row = scratch.take<A>(kFewPixelsRun * held);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / runs, first = i % runs * kFewPixelsRun;
          const int64_t pixels = first + kFewPixelsRun < p.hw ? kFewPixelsRun : p.hw - first;
          const T* const dc = static_cast<const T*>(p.dc) + n * outputs * p.hw;
          const T* const x = static_cast<const T*>(p.x) + n * p.in_c * p.hw;
          T* const dx = static_cast<T*>(p.dx) + n * p.in_c * p.hw;
          FewRun<A> run{nullptr,
                        nullptr,
                        static_cast<const A*>(p.weights) + n * sums,
                        nullptr,
                        partial + i * sums,
                        p.in_c,
                        pixels};
          if (p.channels_last) {
            const int64_t elements = pixels * p.in_c, at = first * p.in_c;
            run.dc = Row<T>::template read<A>(dc + first * outputs, dc_row, pixels * outputs);
            run.x = Row<T>::template read<A>(x + at, x_row, elements);
            run.dx = Row<T>::target(dx + at, dx_row);
            few_rows<outputs>(run);
            Row<T>::write(dx + at, run.dx, elements);
            continue;
          }
          for (int o = 0; o < outputs; ++o) {
            widen<T, A>({dc_row + o * kFewPixelsRun, 0}, {dc + o * p.hw + first, 0}, 1, pixels);
          }
          run.dc = dc_row;
          for (int64_t c = 0; c < p.in_c; ++c) {
            const int64_t at = c * p.hw + first;
            run.x = Row<T>::template read<A>(x + at, x_row, pixels);
            run.dx = Row<T>::target(dx + at, dx_row);
            few_plane<outputs>(run, c);
            Row<T>::write(dx + at, run.dx, pixels);
          }
        }
      });
  A* const products = static_cast<A*>(p.products);
  for (int64_t n = 0; n < p.n; ++n) {
    for (int64_t i = 0; i < sums; ++i) {
      double total = 0;
      for (int64_t run = 0; run < runs; ++run) {
        total += static_cast<double>(partial[(n * runs + run) * sums + i]);
      }
      products[n * sums + i] = static_cast<A>(total);
    }
  }
}

template <class T>
void few_gradients_of(const FewOutputs& p) {
  switch (p.out_c) {
    case 1:
      return few_gradients<1, T>(p);
    case 2:
      return few_gradients<2, T>(p);
    case 3:
      return few_gradients<3, T>(p);
    default:
      return few_gradients<kFewOutputs, T>(p);
  }
}

inline void few_outputs_gradients(const FewOutputs& p) {
  switch (p.dtype) {
    case DType::float16:
      return few_gradients_of<Half>(p);
    case DType::bfloat16:
      return few_gradients_of<BFloat16>(p);
    case DType::float32:
      return few_gradients_of<float>(p);
    case DType::float64:
      return few_gradients_of<double>(p);
  }
}
