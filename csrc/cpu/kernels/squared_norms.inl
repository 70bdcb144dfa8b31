// Channels that lie next to each other are summed up as vectors, which go over the weight in the
// order of memory.

// Rows of a block: neighbours in memory go into rows of w2 that are apart, a cache line of each.
constexpr int64_t kNormRows = 16;

// Elements that a thread is woken for.
constexpr int64_t kNormGrain = 65536;

template <class A>
inline A squared(A value) {
  return value * value;
}

// Input channels next to each other, or none.
template <class T>
void norms_along_inputs(const SquaredNorms& p, int64_t o) {
  using A = Accumulate<T>;
  A* to = static_cast<A*>(p.w2) + o * p.in_c;
  for (int64_t tap = 0; tap < p.kernel_h * p.kernel_w; ++tap) {
    const T* w = static_cast<const T*>(p.weight.start) + o * p.weight.o +
                 tap / p.kernel_w * p.weight.y + tap % p.kernel_w * p.weight.x;
    if (p.weight.i == 1) {
#pragma omp simd
      for (int64_t i = 0; i < p.in_c; ++i) {
        to[i] = (tap == 0 ? A(0) : to[i]) + squared(load(w[i]));
      }
    } else {
      for (int64_t i = 0; i < p.in_c; ++i) {
        to[i] = (tap == 0 ? A(0) : to[i]) + squared(load(w[i * p.weight.i]));
      }
    }
  }
}

// Output channels next to each other: input channels [first, end), at most kNormRows of them; sums
// is [kNormRows, out_c].
template <class T>
void norms_along_outputs(const SquaredNorms& p, int64_t first, int64_t end, Accumulate<T>* sums) {
  using A = Accumulate<T>;
  for (int64_t i = first; i < end; ++i) {
    A* row = sums + (i - first) * p.out_c;
    for (int64_t tap = 0; tap < p.kernel_h * p.kernel_w; ++tap) {
      const T* w = static_cast<const T*>(p.weight.start) + i * p.weight.i +
                   tap / p.kernel_w * p.weight.y + tap % p.kernel_w * p.weight.x;
#pragma omp simd
      for (int64_t o = 0; o < p.out_c; ++o) {
        row[o] = (tap == 0 ? A(0) : row[o]) + squared(load(w[o]));
      }
    }
  }
  for (int64_t o = 0; o < p.out_c; ++o) {
    A* to = static_cast<A*>(p.w2) + o * p.in_c;
    for (int64_t i = first; i < end; ++i) {
      to[i] = sums[(i - first) * p.out_c + o];
    }
  }
}

template <class T>
void norms(const SquaredNorms& p) {
  const int64_t taps = p.kernel_h * p.kernel_w;
  if (p.weight.o == 1 && p.weight.i != 1) {
    const int64_t blocks = (p.in_c + kNormRows - 1) / kNormRows;
    const int64_t grain = 1 + kNormGrain / (1 + kNormRows * taps * p.out_c);
    parallel_for(blocks, grain, [&](int64_t begin, int64_t end) {
      Scratch scratch;
      auto* sums = scratch.take<Accumulate<T>>(kNormRows * p.out_c);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kNormRows, after = first + kNormRows;
        norms_along_outputs<T>(p, first, after < p.in_c ? after : p.in_c, sums);
      }
    });
  } else {
    parallel_for(p.out_c, 1 + kNormGrain / (1 + taps * p.in_c), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        norms_along_inputs<T>(p, o);
      }
    });
  }
}

inline void squared_norms(const SquaredNorms& p) {
  switch (p.dtype) {
    case DType::float16:
      return norms<Half>(p);
    case DType::bfloat16:
      return norms<BFloat16>(p);
    case DType::float32:
      return norms<float>(p);
    case DType::float64:
      return norms<double>(p);
  }
}
