// Each sample is a matrix [C, HW] or [HW, C], which is transposed in squares that fill whole cache
// lines on either side.

constexpr int64_t kSide = 16;
// Elements that a thread is woken for.
constexpr int64_t kLayoutGrain = 65536;

// to[j][i] = from[i][j] for a square.
template <class T>
inline void transpose_square(T* to, int64_t to_step, const T* from, int64_t from_step) {
  T square[kSide * kSide];
  for (int64_t i = 0; i < kSide; ++i) {
    std::memcpy(square + i * kSide, from + i * from_step, kSide * sizeof(T));
  }
  for (int64_t j = 0; j < kSide; ++j) {
#pragma omp simd
    for (int64_t i = 0; i < kSide; ++i) {
      to[j * to_step + i] = square[i * kSide + j];
    }
  }
}

// to [columns, rows] of from [rows, columns], both matrices' rows from `begin` to `end` of to.
template <class T>
void transpose_rows(T* to, const T* from, int64_t rows, int64_t columns, int64_t begin,
                    int64_t end) {
  for (int64_t j = begin; j < end; j += kSide) {
    for (int64_t i = 0; i < rows; i += kSide) {
      T* corner = to + j * rows + i;
      const T* source = from + i * columns + j;
      if (j + kSide <= end && i + kSide <= rows) {
        transpose_square(corner, rows, source, columns);
        continue;
      }
      for (int64_t b = 0; b < kSide && j + b < end; ++b) {
        for (int64_t a = 0; a < kSide && i + a < rows; ++a) {
          corner[b * rows + a] = source[a * columns + b];
        }
      }
    }
  }
}

template <class T>
void change_layout_of(const LayoutChange& p) {
  const int64_t rows = p.to_channels_last ? p.c : p.hw, columns = p.to_channels_last ? p.hw : p.c;
  const int64_t strips = (columns + kSide - 1) / kSide;
  const int64_t grain = 1 + kLayoutGrain / (1 + kSide * rows);
  parallel_for(p.n * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t n = strip / strips, first = strip % strips * kSide;
      const int64_t last = first + kSide < columns ? first + kSide : columns;
      const int64_t at = n * rows * columns;
      transpose_rows(static_cast<T*>(p.to) + at, static_cast<const T*>(p.from) + at, rows, columns,
                     first, last);
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
