// Each sample is a matrix [C, HW] or [HW, C], which is transposed in squares that fill whole cache
// lines on either side. Squares follow each other along the pixels, up to kRun of them, before the
// next channels': planes lie far apart, and what is fetched ahead of need is what follows in one.

constexpr int64_t kSide = 16;
constexpr int64_t kRun = 128;
// Elements that a thread is woken for.
constexpr int64_t kLayoutGrain = 65536;

// to[j][i] = from[i][j] for a square.
template <class T>
inline void transpose_square(T* to, int64_t to_step, const T* from, int64_t from_step) {
#if __has_builtin(__builtin_shufflevector)
  typedef T Row __attribute__((vector_size(kSide * sizeof(T))));
  Row a[kSide], b[kSide];
  for (int64_t i = 0; i < kSide; ++i) {
    std::memcpy(&a[i], from + i * from_step, sizeof(Row));
  }
  // each round brings one bit of a row's number to that of the column
  const auto round = [](Row* out, const Row* in) {
    for (int64_t i = 0; i < kSide / 2; ++i) {
      const Row low = in[i], high = in[i + kSide / 2];
      out[2 * i] = __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                           22, 7, 23);
      out[2 * i + 1] = __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                               29, 14, 30, 15, 31);
    }
  };
  round(b, a);
  round(a, b);
  round(b, a);
  round(a, b);
  for (int64_t j = 0; j < kSide; ++j) {
    std::memcpy(to + j * to_step, &a[j], sizeof(Row));
  }
#else
  for (int64_t j = 0; j < kSide; ++j) {
    for (int64_t i = 0; i < kSide; ++i) {
      to[j * to_step + i] = from[i * from_step + j];
    }
  }
#endif
}

// to[j][i] = from[i][j], by at most kSide each way.
template <class T>
inline void transpose_part(T* to, int64_t to_step, int64_t to_rows, const T* from,
                           int64_t from_step, int64_t from_rows) {
  if (to_rows >= kSide && from_rows >= kSide) {
    return transpose_square(to, to_step, from, from_step);
  }
  for (int64_t j = 0; j < to_rows && j < kSide; ++j) {
    for (int64_t i = 0; i < from_rows && i < kSide; ++i) {
      to[j * to_step + i] = from[i * from_step + j];
    }
  }
}

template <class T>
void change_layout_of(const LayoutChange& p) {
  const int64_t runs = (p.hw + kRun - 1) / kRun;
  parallel_for(p.n * runs, 1 + kLayoutGrain / (1 + kRun * p.c), [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) {
      const int64_t at = run / runs * p.c * p.hw, first = run % runs * kRun;
      const int64_t last = first + kRun < p.hw ? first + kRun : p.hw;
      T* const to = static_cast<T*>(p.to) + at;
      const T* const from = static_cast<const T*>(p.from) + at;
      for (int64_t c = 0; c < p.c; c += kSide) {
        for (int64_t pixel = first; pixel < last; pixel += kSide) {
          const int64_t in_planes = c * p.hw + pixel, in_pixels = pixel * p.c + c;
          if (p.to_channels_last) {
            transpose_part(to + in_pixels, p.c, last - pixel, from + in_planes, p.hw, p.c - c);
          } else {
            transpose_part(to + in_planes, p.hw, p.c - c, from + in_pixels, p.c, last - pixel);
          }
        }
      }
    }
  });
}

inline void change_layout(const LayoutChange& p) {
  switch (p.element_bytes) {
    case 2:
      return change_layout_of<uint16_t>(p);
    case 4:
      return change_layout_of<uint32_t>(p);
    default:
      return change_layout_of<uint64_t>(p);
  }
}
