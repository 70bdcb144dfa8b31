#include "cpu/kernels/rows.inl"

#include "cpu/kernels/epilogue.inl"

// Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, CVPR 2016): an output tile of 4 x 4 from
// 6 x 6 inputs by 36 products of matrices over the channels, a quarter of the multiplications.
//
//   y = At [ (G w Gt) * (Bt x B) ] A
//
// by interpolation at 0, +-2/3, +-3/2 and infinity, which lose 0.8 bits to rounding where the
// customary 0, +-1, +-2 lose 2. Vectors run along the channels, which come last in memory.

constexpr int kLanes = GPSEG_VECTOR_BYTES / 4;
typedef float Vec __attribute__((vector_size(GPSEG_VECTOR_BYTES), aligned(4), may_alias));

constexpr int kTile = 4;
constexpr int kPatch = 6;
constexpr int kProducts = kPatch * kPatch;

constexpr float kNear = 2.0f / 3;
constexpr float kFar = 3.0f / 2;
constexpr float kNear2 = kNear * kNear;
constexpr float kFar2 = kFar * kFar;

// Rows that go through a product together; vectors of a panel of columns, so that both fit in the
// registers.
constexpr int kRows = 6;
constexpr int kPanel = GPSEG_VECTOR_BYTES == 64 ? 4 : 2;

GPSEG_INLINE Vec at(const float* p) { return *reinterpret_cast<const Vec*>(p); }
GPSEG_INLINE void put(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

// Bt d.
GPSEG_INLINE void transform_patch(Vec d0, Vec d1, Vec d2, Vec d3, Vec d4, Vec d5, Vec* v,
                                  int64_t step) {
  v[0 * step] = d0 - (kNear2 + kFar2) * d2 + d4;
  const Vec even_near = d4 - kFar2 * d2, odd_near = kNear * (d3 - kFar2 * d1);
  v[1 * step] = even_near + odd_near;
  v[2 * step] = even_near - odd_near;
  const Vec even_far = d4 - kNear2 * d2, odd_far = kFar * (d3 - kNear2 * d1);
  v[3 * step] = even_far + odd_far;
  v[4 * step] = even_far - odd_far;
  v[5 * step] = d1 - (kNear2 + kFar2) * d3 + d5;
}

// At m.
GPSEG_INLINE void transform_products(Vec m0, Vec m1, Vec m2, Vec m3, Vec m4, Vec m5, Vec* y,
                                     int64_t step) {
  const Vec even_near = m1 + m2, odd_near = m1 - m2;
  const Vec even_far = m3 + m4, odd_far = m3 - m4;
  y[0 * step] = m0 + even_near + even_far;
  y[1 * step] = kNear * odd_near + kFar * odd_far;
  y[2 * step] = kNear2 * even_near + kFar2 * even_far;
  y[3 * step] = kNear * kNear2 * odd_near + kFar * kFar2 * odd_far + m5;
}

// G w.
GPSEG_INLINE void transform_taps(Vec w0, Vec w1, Vec w2, Vec* u, int64_t step) {
  constexpr float near = 1 / (2 * kNear2 * (kNear2 - kFar2));
  constexpr float far = 1 / (2 * kFar2 * (kFar2 - kNear2));
  u[0 * step] = w0;
  const Vec even_near = near * (w0 + kNear2 * w2), odd_near = (near * kNear) * w1;
  u[1 * step] = even_near + odd_near;
  u[2 * step] = even_near - odd_near;
  const Vec even_far = far * (w0 + kFar2 * w2), odd_far = (far * kFar) * w1;
  u[3 * step] = even_far + odd_far;
  u[4 * step] = even_far - odd_far;
  u[5 * step] = w2;
}

// Images cut into tiles, in the order of the images, rows and columns.
struct TileGrid {
  int64_t across;
  int64_t down;

  explicit TileGrid(const WinogradInput& p)
      : across(ceil_div(p.out_w, kTile)), down(ceil_div(p.out_h, kTile)) {}

  int64_t per_image() const { return across * down; }
  int64_t image(int64_t tile) const { return tile / per_image(); }
  int64_t y(int64_t tile) const { return tile / across % down * kTile; }
  int64_t x(int64_t tile) const { return tile % across * kTile; }
};

// Pixels [y, y + side) x [x, x + side) of an image [h, w, channels]: zeros where they are outside.
template <int side>
void find_pixels(const float** pixels, const float* image, int64_t h, int64_t w, int64_t channels,
                 int64_t y, int64_t x, const float* zeros) {
  for (int64_t i = 0; i < side; ++i) {
    const bool row_inside = y + i >= 0 && y + i < h;
    const float* row = image + ((y + i) * w + x) * channels;
    for (int64_t j = 0; j < side; ++j) {
      const bool inside = row_inside && x + j >= 0 && x + j < w;
      pixels[i * side + j] = inside ? row + j * channels : zeros;
    }
  }
}

// U: for each of the products, panels of [in_c, columns] of the transformed kernel.
struct Kernels {
  float* start;
  int64_t plane;
  int64_t depth;
  int64_t columns;

  // As with Matrices, a cache line more.
  Kernels(float* memory, const WinogradConv& p)
      : start(memory), plane(p.in_c * p.out_c + 16), depth(p.in_c), columns(p.out_c) {}

  static int64_t size(const WinogradConv& p) { return kProducts * (p.in_c * p.out_c + 16); }

  // Vectors in a panel: the last one may have fewer.
  int64_t width(int64_t panel) const { return least(kPanel, columns / kLanes - panel * kPanel); }

  float* panel(int64_t product, int64_t number) const {
    return start + product * plane + number * kPanel * kLanes * depth;
  }
};

// Vector number `vector` of U's columns, all input channels of it.
inline void transform_weight(const WinogradConv& p, const Kernels& u, int64_t vector) {
  const int64_t panel = vector / kPanel;
  const int64_t width = u.width(panel) * kLanes;
  float* to = u.panel(0, panel) + vector % kPanel * kLanes;
  const float* from = p.weight.start + vector * kLanes * p.weight.o;
  // a few input channels at a time, brought into the vectors' order where they are not
  constexpr int64_t kAtOnce = 16;
  float taps[9 * kAtOnce * kLanes];
  for (int64_t first = 0; first < p.in_c; first += kAtOnce) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      const float* w = from + first * p.weight.i + tap / 3 * p.weight.y + tap % 3 * p.weight.x;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        for (int64_t i = 0; i < kAtOnce; ++i) {
          taps[(tap * kAtOnce + i) * kLanes + lane] = w[lane * p.weight.o + i * p.weight.i];
        }
      }
    }
    for (int64_t i = 0; i < kAtOnce; ++i) {
      Vec half[3 * kPatch];
      for (int x = 0; x < 3; ++x) {
        const float* w = taps + (x * kAtOnce + i) * kLanes;
        constexpr int64_t row = 3 * kAtOnce * kLanes;
        transform_taps(at(w), at(w + row), at(w + 2 * row), half + x, 3);
      }
      for (int y = 0; y < kPatch; ++y) {
        Vec row[kPatch];
        transform_taps(half[3 * y], half[3 * y + 1], half[3 * y + 2], row, 1);
        for (int x = 0; x < kPatch; ++x) {
          put(to + (y * kPatch + x) * u.plane + (first + i) * width, row[x]);
        }
      }
    }
  }
}

// Where the matrices of a number of tiles lie: [products][tiles][channels].
struct Matrices {
  float* start;
  int64_t row;
  int64_t plane;

  Matrices(float* memory, int64_t rows, int64_t columns)
      : start(memory), row(columns), plane(plane_of(rows, columns)) {}

  // A cache line more, or the planes would meet in few sets of the first-level cache.
  static int64_t plane_of(int64_t rows, int64_t columns) { return rows * columns + 16; }
  static int64_t size(int64_t rows, int64_t columns) { return kProducts * plane_of(rows, columns); }

  float* operator()(int64_t product, int64_t tile) const {
    return start + product * plane + tile * row;
  }
};

// V: the transformed input of tile number `tile`, times the style, as row `to` of the matrices.
inline void transform_input(const WinogradInput& p, const TileGrid& grid, int64_t tile,
                            const Matrices& v, int64_t to, const float* zeros) {
  const int64_t n = grid.image(tile);
  const float* pixels[kProducts];
  find_pixels<kPatch>(pixels, p.x + n * p.in_h * p.in_w * p.in_c, p.in_h, p.in_w, p.in_c,
                      grid.y(tile) - p.pad_y, grid.x(tile) - p.pad_x, zeros);
  for (int64_t c = 0; c < p.in_c; c += kLanes) {
    Vec half[kProducts];
    for (int x = 0; x < kPatch; ++x) {
      const float* const* column = pixels + x;
      transform_patch(at(column[0] + c), at(column[6] + c), at(column[12] + c), at(column[18] + c),
                      at(column[24] + c), at(column[30] + c), half + x, kPatch);
    }
    float* row = v(0, to) + c;
    const Vec one = Vec{} + 1.0f;
    const Vec style = p.style == nullptr ? one : at(p.style + n * p.in_c + c);
    for (int y = 0; y < kPatch; ++y) {
      const Vec* h = half + y * kPatch;
      Vec out[kPatch];
      transform_patch(h[0], h[1], h[2], h[3], h[4], h[5], out, 1);
      for (int x = 0; x < kPatch; ++x) {
        put(row + (y * kPatch + x) * v.plane, style * out[x]);
      }
    }
  }
}

// m = v u, or m += v u, for `rows` rows of v and `vectors` vectors of u's columns; v(r, k) lies at
// r * v_row + k * v_column.
template <int rows, int vectors, bool adds>
GPSEG_INLINE void multiply(float* m, int64_t m_row, const float* v, int64_t v_row, int64_t v_column,
                           const float* u, int64_t u_row, int64_t depth) {
  Vec sums[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      sums[r][j] = Vec{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec columns[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      columns[j] = at(u + k * u_row + j * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec value = Vec{} + v[r * v_row + k * v_column];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) {
        sums[r][j] += value * columns[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      float* to = m + r * m_row + j * kLanes;
      put(to, adds ? at(to) + sums[r][j] : sums[r][j]);
    }
  }
}

// A panel of m = v u, for any number of rows that kRows divides.
template <int vectors>
void multiply_rows(float* m, int64_t m_row, const float* v, int64_t v_row, const float* u,
                   int64_t depth, int64_t rows) {
  constexpr int most = vectors <= 2 && kPanel / vectors >= 2 ? 2 * kRows : kRows;
  int64_t r = 0;
  for (; r + most <= rows; r += most) {
    multiply<most, vectors, false>(m + r * m_row, m_row, v + r * v_row, v_row, 1, u,
                                   vectors * kLanes, depth);
  }
  for (; r < rows; r += kRows) {
    multiply<kRows, vectors, false>(m + r * m_row, m_row, v + r * v_row, v_row, 1, u,
                                    vectors * kLanes, depth);
  }
}

// One panel of columns of M = V U, for one of the products.
inline void multiply_panel(const Kernels& u, const Matrices& v, const Matrices& m, int64_t product,
                           int64_t panel, int64_t rows) {
  const float* from = u.panel(product, panel);
  const float* left = v(product, 0);
  float* to = m(product, 0) + panel * kPanel * kLanes;
  switch (u.width(panel)) {
    case 1:
      return multiply_rows<1>(to, m.row, left, v.row, from, u.depth, rows);
    case 2:
      return multiply_rows<2>(to, m.row, left, v.row, from, u.depth, rows);
    case 3:
      return multiply_rows<least(3, kPanel)>(to, m.row, left, v.row, from, u.depth, rows);
    default:
      return multiply_rows<kPanel>(to, m.row, left, v.row, from, u.depth, rows);
  }
}

// One tile of the output, from its first channel and pixel on; what is null is not there.
struct OutputTile {
  float* y;
  float* c;
  const float* factor;
  float* partial;  // the tile's share of `product`
  const float* scale;
  const float* bias;
  const float* noise;
  int64_t rows;  // inside of the image
  int64_t columns;
  int64_t width;  // of the image
  int64_t channels;
};

// The epilogue of kLanes channels from number `first` on: c is [pixels of the tile, kLanes].
template <Act act, class A>
void finish_tile(const OutputTile& t, int64_t first, const A* c, Scalars<A> s) {
  A product[kLanes] = {};
  A scale[kLanes], bias[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    scale[i] = t.scale == nullptr ? A(1) : t.scale[first + i];
    bias[i] = t.bias == nullptr ? A(0) : t.bias[first + i];
  }
  for (int64_t y = 0; y < t.rows; ++y) {
    for (int64_t x = 0; x < t.columns; ++x) {
      const int64_t pixel = y * t.width + x, to = pixel * t.channels + first;
      const A* from = c + (y * kTile + x) * kLanes;
      const A noise = t.noise == nullptr ? A(0) : t.noise[pixel];
      if (t.c != nullptr) {
        copy(t.c + to, from, kLanes);
      }
      if (t.partial != nullptr) {
        add_product(product, from, t.factor + to, kLanes);
      }
#pragma omp simd
      for (int i = 0; i < kLanes; ++i) {
        const A u = scale[i] * from[i] + (bias[i] + noise);
        const A v = s.gain * activate<act>(u, s.alpha).value;
        const A high = v > s.clamp ? s.clamp : v;
        t.y[to + i] = high < -s.clamp ? -s.clamp : high;
      }
    }
  }
  if (t.partial != nullptr) {
    copy(t.partial + first, product, kLanes);
  }
}

// What becomes of M's row number `row`, which is tile number `tile`.
inline void transform_output(const WinogradConv& p, const TileGrid& grid, const Matrices& m,
                             int64_t row, int64_t tile, float* partial) {
  const Epilogue& e = p.epilogue;
  const auto finish = GPSEG_ROW_FOR(e.activation.act, finish_tile, float);
  const Scalars<float> scalars(e.activation);
  const int64_t n = grid.image(tile), channels = p.out_c, pixels = p.out_h * p.out_w;
  const int64_t y0 = grid.y(tile), x0 = grid.x(tile);
  const int64_t pixel = y0 * p.out_w + x0, first = (n * pixels + pixel) * channels;
  const auto* noise = static_cast<const float*>(e.noise);
  const auto* scale = static_cast<const float*>(e.scale);
  const OutputTile to{p.y + first,
                      p.c == nullptr ? nullptr : p.c + first,
                      p.factor == nullptr ? nullptr : p.factor + first,
                      partial,
                      scale == nullptr ? nullptr : scale + n * channels,
                      static_cast<const float*>(e.bias),
                      noise == nullptr ? nullptr : noise + (e.shared_noise ? 0 : n * pixels) + pixel,
                      least(kTile, p.out_h - y0),
                      least(kTile, p.out_w - x0),
                      p.out_w,
                      channels};
  for (int64_t o = 0; o < channels; o += kLanes) {
    const float* from = m(0, row) + o;
    Vec half[kTile * kPatch];
    for (int x = 0; x < kPatch; ++x) {
      const float* column = from + x * m.plane;
      const int64_t step = kPatch * m.plane;
      transform_products(at(column), at(column + step), at(column + 2 * step),
                         at(column + 3 * step), at(column + 4 * step), at(column + 5 * step),
                         half + x, kPatch);
    }
    float c[kTile * kTile * kLanes];
    for (int y = 0; y < kTile; ++y) {
      const Vec* h = half + y * kPatch;
      Vec out[kTile];
      transform_products(h[0], h[1], h[2], h[3], h[4], h[5], out, 1);
      for (int x = 0; x < kTile; ++x) {
        put(c + (y * kTile + x) * kLanes, out[x]);
      }
    }
    finish(to, o, c, scalars);
  }
}

// Bytes of V and M that one thread works on: they stay in its second-level cache.
constexpr int64_t kThreadFloats = 80 * 1024;
// Where that would be fewer rows than this, all threads share matrices of up to so many floats.
constexpr int64_t kLeastRows = 12;
constexpr int64_t kSharedFloats = 4 * 1024 * 1024;

inline int64_t rounded_rows(int64_t rows) { return ceil_div(rows, kRows) * kRows; }

inline void winograd_conv(const WinogradConv& p) {
  const TileGrid grid(p);
  const int64_t tiles = p.n * grid.per_image(), panels = ceil_div(p.out_c, kPanel * kLanes);
  const int64_t tile_floats = kProducts * (p.in_c + p.out_c);
  const Workspace kernels(Kernels::size(p));
  const Kernels u(kernels.data(), p);
  const Workspace partial(p.product == nullptr ? 0 : tiles * p.out_c);
  Scratch scratch;
  float* zeros = scratch.take<float>(p.in_c);
  fill(zeros, 0.0f, p.in_c);
  const auto partial_of = [&](int64_t tile) {
    return p.product == nullptr ? nullptr : partial.data() + tile * p.out_c;
  };

  parallel_for(p.out_c / kLanes, ceil_div(16, p.in_c), [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) {
      transform_weight(p, u, column);
    }
  });

  const int64_t own = kThreadFloats / tile_floats / kRows * kRows;
  if (own >= kLeastRows) {
    const int64_t rows = least(own, most(rounded_rows(ceil_div(tiles, 16)), kLeastRows));
    parallel_for(ceil_div(tiles, rows), 1, [&](int64_t begin, int64_t end) {
      const Workspace memory(Matrices::size(rows, p.in_c) + Matrices::size(rows, p.out_c));
      const Matrices v(memory.data(), rows, p.in_c);
      const Matrices m(memory.data() + Matrices::size(rows, p.in_c), rows, p.out_c);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * rows, count = least(rows, tiles - first);
        for (int64_t t = 0; t < count; ++t) {
          transform_input(p, grid, first + t, v, t, zeros);
        }
        for (int64_t product = 0; product < kProducts; ++product) {
          for (int64_t panel = 0; panel < panels; ++panel) {
            multiply_panel(u, v, m, product, panel, rounded_rows(count));
          }
        }
        for (int64_t t = 0; t < count; ++t) {
          transform_output(p, grid, m, t, first + t, partial_of(first + t));
        }
      }
    });
  } else {
    const int64_t rows =
        least(most(kSharedFloats / tile_floats / kRows, 1) * kRows, rounded_rows(tiles));
    const Workspace memory(Matrices::size(rows, p.in_c) + Matrices::size(rows, p.out_c));
    const Matrices v(memory.data(), rows, p.in_c);
    const Matrices m(memory.data() + Matrices::size(rows, p.in_c), rows, p.out_c);
    for (int64_t first = 0; first < tiles; first += rows) {
      const int64_t count = least(rows, tiles - first);
      parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          transform_input(p, grid, first + t, v, t, zeros);
        }
      });
      parallel_for(kProducts * panels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          multiply_panel(u, v, m, i / panels, i % panels, rounded_rows(count));
        }
      });
      parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          transform_output(p, grid, m, t, first + t, partial_of(first + t));
        }
      });
    }
  }
  if (p.product != nullptr) {
    sum_rows(p.product, partial.data(), p.n, grid.per_image(), p.out_c);
  }
}

// A y: the adjoint of `transform_products`.
GPSEG_INLINE void spread_tile(Vec y0, Vec y1, Vec y2, Vec y3, Vec* z, int64_t step) {
  z[0 * step] = y0;
  const Vec even_near = y0 + kNear2 * y2, odd_near = kNear * (y1 + kNear2 * y3);
  z[1 * step] = even_near + odd_near;
  z[2 * step] = even_near - odd_near;
  const Vec even_far = y0 + kFar2 * y2, odd_far = kFar * (y1 + kFar2 * y3);
  z[3 * step] = even_far + odd_far;
  z[4 * step] = even_far - odd_far;
  z[5 * step] = y3;
}

// Gt u: the adjoint of `transform_taps`.
GPSEG_INLINE void gather_taps(Vec u0, Vec u1, Vec u2, Vec u3, Vec u4, Vec u5, Vec* w,
                              int64_t step) {
  constexpr float near = 1 / (2 * kNear2 * (kNear2 - kFar2));
  constexpr float far = 1 / (2 * kFar2 * (kFar2 - kNear2));
  const Vec even_near = near * (u1 + u2), even_far = far * (u3 + u4);
  w[0 * step] = u0 + even_near + even_far;
  w[1 * step] = (near * kNear) * (u1 - u2) + (far * kFar) * (u3 - u4);
  w[2 * step] = kNear2 * even_near + kFar2 * even_far + u5;
}

// Z: the transformed gradient of tile number `tile` of the output, as row `to` of the matrices.
inline void transform_gradient(const WinogradWeightGrad& p, const TileGrid& grid, int64_t tile,
                               const Matrices& z, int64_t to, const float* zeros) {
  const float* pixels[kTile * kTile];
  find_pixels<kTile>(pixels, p.dc + grid.image(tile) * p.out_h * p.out_w * p.out_c, p.out_h,
                     p.out_w, p.out_c, grid.y(tile), grid.x(tile), zeros);
  for (int64_t o = 0; o < p.out_c; o += kLanes) {
    Vec half[kPatch * kTile];
    for (int x = 0; x < kTile; ++x) {
      const float* const* column = pixels + x;
      spread_tile(at(column[0] + o), at(column[4] + o), at(column[8] + o), at(column[12] + o),
                  half + x, kTile);
    }
    float* row = z(0, to) + o;
    for (int y = 0; y < kPatch; ++y) {
      const Vec* h = half + y * kTile;
      Vec out[kPatch];
      spread_tile(h[0], h[1], h[2], h[3], out, 1);
      for (int x = 0; x < kPatch; ++x) {
        put(row + (y * kPatch + x) * z.plane, out[x]);
      }
    }
  }
}

// Rows of dU (output channels) and vectors of its columns (input channels) that one product takes:
// kWinogradChannels is a multiple of both.
constexpr int kGradRows = GPSEG_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int kGradVectors = kPanel / 2;

// Sums run over so many tiles before they are added to those before, which keeps rounding down.
constexpr int64_t kSumTiles = 128;

// dU += Zt V for one of the products.
inline void accumulate_kernel(const WinogradWeightGrad& p, float* du, const Matrices& z,
                              const Matrices& v, int64_t product, int64_t tiles) {
  for (int64_t first = 0; first < tiles; first += kSumTiles) {
    const int64_t count = least(kSumTiles, tiles - first);
    const float* left = z(product, first);
    const float* right = v(product, first);
    for (int64_t i = 0; i < p.in_c; i += kGradVectors * kLanes) {
      const bool whole = i + kGradVectors * kLanes <= p.in_c;
      for (int64_t o = 0; o < p.out_c; o += kGradRows) {
        float* to = du + o * p.in_c + i;
        if (whole) {
          multiply<kGradRows, kGradVectors, true>(to, p.in_c, left + o, 1, z.row, right + i, v.row,
                                                  count);
        } else {
          multiply<kGradRows, 1, true>(to, p.in_c, left + o, 1, z.row, right + i, v.row, count);
        }
      }
    }
  }
}

// The kernel's gradient from dU, for one output channel.
inline void gather_kernel(const WinogradWeightGrad& p, const float* du, int64_t plane, int64_t o) {
  for (int64_t i = 0; i < p.in_c; i += kLanes) {
    const float* from = du + o * p.in_c + i;
    Vec half[3 * kPatch];
    for (int x = 0; x < kPatch; ++x) {
      const float* column = from + x * plane;
      const int64_t step = kPatch * plane;
      gather_taps(at(column), at(column + step), at(column + 2 * step), at(column + 3 * step),
                  at(column + 4 * step), at(column + 5 * step), half + x, kPatch);
    }
    for (int y = 0; y < 3; ++y) {
      const Vec* h = half + y * kPatch;
      Vec out[3];
      gather_taps(h[0], h[1], h[2], h[3], h[4], h[5], out, 1);
      for (int x = 0; x < 3; ++x) {
        float* to = p.dweight.start + o * p.dweight.o + i * p.dweight.i + y * p.dweight.y +
                    x * p.dweight.x;
        if (p.dweight.i == 1) {
          put(to, out[x]);
        } else {
          for (int lane = 0; lane < kLanes; ++lane) {
            to[lane * p.dweight.i] = out[x][lane];
          }
        }
      }
    }
  }
}

// Floats of V and Z that all threads share, and how many tiles make up for going over dU, whatever
// they take.
constexpr int64_t kGradFloats = 512 * 1024;
constexpr int64_t kGradTiles = 192;

// All tiles' share in one product is summed up by one thread, in order: the result does not depend on
// how many there are.
inline void winograd_weight_grad(const WinogradWeightGrad& p) {
  const TileGrid grid(p);
  const int64_t tiles = p.n * grid.per_image(), channels = p.in_c + p.out_c;
  const int64_t rows = least(most(kGradFloats / kProducts / channels, kGradTiles), tiles);
  const int64_t plane = p.in_c * p.out_c + 16;
  const Workspace sums(kProducts * plane);
  const Workspace memory(Matrices::size(rows, p.in_c) + Matrices::size(rows, p.out_c));
  const Matrices v(memory.data(), rows, p.in_c);
  const Matrices z(memory.data() + Matrices::size(rows, p.in_c), rows, p.out_c);
  Scratch scratch;
  const int64_t longest = most(p.in_c, p.out_c);
  float* zeros = scratch.take<float>(longest);
  fill(zeros, 0.0f, longest);
  parallel_for(kProducts, 1, [&](int64_t begin, int64_t end) {
    fill(sums.data() + begin * plane, 0.0f, (end - begin) * plane);
  });
  for (int64_t first = 0; first < tiles; first += rows) {
    const int64_t count = least(rows, tiles - first);
    parallel_for(count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        transform_input(p, grid, first + t, v, t, zeros);
        transform_gradient(p, grid, first + t, z, t, zeros);
      }
    });
    parallel_for(kProducts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t product = begin; product < end; ++product) {
        accumulate_kernel(p, sums.data() + product * plane, z, v, product, count);
      }
    });
  }
  parallel_for(p.out_c, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      gather_kernel(p, sums.data(), plane, o);
    }
  });
}
