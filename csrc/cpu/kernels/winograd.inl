#include "cpu/kernels/rows.inl"

#include "cpu/kernels/epilogue.inl"

// Winograd's minimal filtering (Lavin and Gray, CVPR 2016) of 3 x 3 taps: by products of matrices
// over the channels, one for each pair of two interpolation points.
//
//   y = At [ (G w Gt) * (Bt x B) ] A
//
// The points are 0 (where an odd number is needed), +-2/3, +-3/2 and infinity: about as accurate as
// the direct sum, where the customary 0, +-1, +-2 lose two bits. Vectors run along the channels,
// which come last in memory.

constexpr int kLanes = GPSEG_VECTOR_BYTES / 4;
typedef float Vec __attribute__((vector_size(GPSEG_VECTOR_BYTES), aligned(4), may_alias));

constexpr float kNear = 2.0f / 3;
constexpr float kFar = 3.0f / 2;
constexpr float kNear2 = kNear * kNear;
constexpr float kFar2 = kFar * kFar;

GPSEG_INLINE Vec at(const float* p) { return *reinterpret_cast<const Vec*>(p); }
GPSEG_INLINE void put(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

typedef uint32_t Bits __attribute__((vector_size(GPSEG_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(GPSEG_VECTOR_BYTES / 2), aligned(2), may_alias));

GPSEG_INLINE Vec at(const BFloat16* p) {
  const Bits bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Bits);
  return reinterpret_cast<Vec>(bits << 16);
}

// As `store` in dtype.h.
GPSEG_INLINE void put(BFloat16* p, Vec v) {
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits nan = (bits >> 16) | 0x40u;
  const Bits both = (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(both, Halves);
}

// Each form of convolution, along one axis:
//
//   transform_patch     v = Bt d, `products` numbers from a patch of the input
//   transform_taps      u = G w, from three taps
//   transform_products  y = At (u * v), a tile of the output
//   spread_tile         z = A dy, the adjoint of transform_products
//   gather_taps         dw = Gt du, the adjoint of transform_taps
//
// From one tile to the next, input and output move on by `in_step` and `out_step`; the first patch
// starts `lead` before the image. All arrays of vectors have a step.
//
// Loops over a second axis are not unrolled: one round's addresses fit the registers, all would
// not.

// y[i] = sum of w[k] x[i + k]: F(4, 3), 6 products where the direct sum has 12.
struct Plain {
  static constexpr int patch = 6, products = 6, tile = 4, in_step = 4, out_step = 4, lead = 0;
  static constexpr float near = 1 / (2 * kNear2 * (kNear2 - kFar2));
  static constexpr float far = 1 / (2 * kFar2 * (kFar2 - kNear2));

  static GPSEG_INLINE void transform_patch(const Vec* d, int ds, Vec* v, int vs) {
    v[0] = d[0] - (kNear2 + kFar2) * d[2 * ds] + d[4 * ds];
    const Vec even_near = d[4 * ds] - kFar2 * d[2 * ds];
    const Vec odd_near = kNear * (d[3 * ds] - kFar2 * d[ds]);
    v[vs] = even_near + odd_near;
    v[2 * vs] = even_near - odd_near;
    const Vec even_far = d[4 * ds] - kNear2 * d[2 * ds];
    const Vec odd_far = kFar * (d[3 * ds] - kNear2 * d[ds]);
    v[3 * vs] = even_far + odd_far;
    v[4 * vs] = even_far - odd_far;
    v[5 * vs] = d[ds] - (kNear2 + kFar2) * d[3 * ds] + d[5 * ds];
  }

  static GPSEG_INLINE void transform_taps(const Vec* w, int ws, Vec* u, int us) {
    u[0] = w[0];
    const Vec even_near = near * (w[0] + kNear2 * w[2 * ws]), odd_near = (near * kNear) * w[ws];
    u[us] = even_near + odd_near;
    u[2 * us] = even_near - odd_near;
    const Vec even_far = far * (w[0] + kFar2 * w[2 * ws]), odd_far = (far * kFar) * w[ws];
    u[3 * us] = even_far + odd_far;
    u[4 * us] = even_far - odd_far;
    u[5 * us] = w[2 * ws];
  }

  static GPSEG_INLINE void transform_products(const Vec* m, int ms, Vec* y, int ys) {
    const Vec even_near = m[ms] + m[2 * ms], odd_near = kNear * (m[ms] - m[2 * ms]);
    const Vec even_far = m[3 * ms] + m[4 * ms], odd_far = kFar * (m[3 * ms] - m[4 * ms]);
    y[0] = m[0] + even_near + even_far;
    y[ys] = odd_near + odd_far;
    y[2 * ys] = kNear2 * even_near + kFar2 * even_far;
    y[3 * ys] = kNear2 * odd_near + kFar2 * odd_far + m[5 * ms];
  }

  static GPSEG_INLINE void spread_tile(const Vec* y, int ys, Vec* z, int zs) {
    z[0] = y[0];
    const Vec even_near = y[0] + kNear2 * y[2 * ys];
    const Vec odd_near = kNear * (y[ys] + kNear2 * y[3 * ys]);
    z[zs] = even_near + odd_near;
    z[2 * zs] = even_near - odd_near;
    const Vec even_far = y[0] + kFar2 * y[2 * ys];
    const Vec odd_far = kFar * (y[ys] + kFar2 * y[3 * ys]);
    z[3 * zs] = even_far + odd_far;
    z[4 * zs] = even_far - odd_far;
    z[5 * zs] = y[3 * ys];
  }

  static GPSEG_INLINE void gather_taps(const Vec* u, int us, Vec* w, int ws) {
    const Vec even_near = near * (u[us] + u[2 * us]), even_far = far * (u[3 * us] + u[4 * us]);
    w[0] = u[0] + even_near + even_far;
    w[ws] = (near * kNear) * (u[us] - u[2 * us]) + (far * kFar) * (u[3 * us] - u[4 * us]);
    w[2 * ws] = kNear2 * even_near + kFar2 * even_far + u[5 * us];
  }
};

// y[i] = sum of w[k] x[2 i + k]: even inputs meet two taps, F(4, 2), odd ones one: 9 products
// for 12.
struct Down {
  static constexpr int patch = 9, products = 9, tile = 4, in_step = 8, out_step = 4, lead = 0;
  static constexpr float near = 1 / (2 * kNear * (kNear2 - kFar2));
  static constexpr float far = 1 / (2 * kFar * (kFar2 - kNear2));

  static GPSEG_INLINE void transform_patch(const Vec* d, int ds, Vec* v, int vs) {
    const Vec high_near = d[6 * ds] - kFar2 * d[2 * ds];
    const Vec low_near = kNear * (d[4 * ds] - kFar2 * d[0]);
    v[0] = high_near + low_near;
    v[vs] = high_near - low_near;
    const Vec high_far = d[6 * ds] - kNear2 * d[2 * ds];
    const Vec low_far = kFar * (d[4 * ds] - kNear2 * d[0]);
    v[2 * vs] = high_far + low_far;
    v[3 * vs] = high_far - low_far;
    v[4 * vs] = d[8 * ds] - (kNear2 + kFar2) * d[4 * ds] + (kNear2 * kFar2) * d[0];
    for (int i = 0; i < 4; ++i) {
      v[(5 + i) * vs] = d[(2 * i + 1) * ds];
    }
  }

  static GPSEG_INLINE void transform_taps(const Vec* w, int ws, Vec* u, int us) {
    u[0] = near * (w[0] + kNear * w[2 * ws]);
    u[us] = near * (kNear * w[2 * ws] - w[0]);
    u[2 * us] = far * (w[0] + kFar * w[2 * ws]);
    u[3 * us] = far * (kFar * w[2 * ws] - w[0]);
    u[4 * us] = w[2 * ws];
    for (int i = 5; i < 9; ++i) {
      u[i * us] = w[ws];
    }
  }

  static GPSEG_INLINE void transform_products(const Vec* m, int ms, Vec* y, int ys) {
    const Vec even_near = m[0] + m[ms], odd_near = kNear * (m[0] - m[ms]);
    const Vec even_far = m[2 * ms] + m[3 * ms], odd_far = kFar * (m[2 * ms] - m[3 * ms]);
    y[0] = even_near + even_far + m[5 * ms];
    y[ys] = odd_near + odd_far + m[6 * ms];
    y[2 * ys] = kNear2 * even_near + kFar2 * even_far + m[7 * ms];
    y[3 * ys] = kNear2 * odd_near + kFar2 * odd_far + m[4 * ms] + m[8 * ms];
  }

  static GPSEG_INLINE void spread_tile(const Vec* y, int ys, Vec* z, int zs) {
    const Vec even_near = y[0] + kNear2 * y[2 * ys];
    const Vec odd_near = kNear * (y[ys] + kNear2 * y[3 * ys]);
    z[0] = even_near + odd_near;
    z[zs] = even_near - odd_near;
    const Vec even_far = y[0] + kFar2 * y[2 * ys];
    const Vec odd_far = kFar * (y[ys] + kFar2 * y[3 * ys]);
    z[2 * zs] = even_far + odd_far;
    z[3 * zs] = even_far - odd_far;
    z[4 * zs] = y[3 * ys];
    for (int i = 0; i < 4; ++i) {
      z[(5 + i) * zs] = y[i * ys];
    }
  }

  static GPSEG_INLINE void gather_taps(const Vec* u, int us, Vec* w, int ws) {
    w[0] = near * (u[0] - u[us]) + far * (u[2 * us] - u[3 * us]);
    w[ws] = (u[5 * us] + u[6 * us]) + (u[7 * us] + u[8 * us]);
    w[2 * ws] =
        (near * kNear) * (u[0] + u[us]) + (far * kFar) * (u[2 * us] + u[3 * us]) + u[4 * us];
  }
};

// y[2 i + k] = sum of w[k] x[i], a transposed convolution: even outputs take two taps, F(5, 2), odd
// ones one: 10 products for 12. A tile's last output is the next one's first; only the last tile
// writes it.
struct Up {
  static constexpr int patch = 6, products = 10, tile = 9, in_step = 4, out_step = 8, lead = 1;

  static GPSEG_INLINE void transform_patch(const Vec* d, int ds, Vec* v, int vs) {
    Plain::transform_patch(d, ds, v, vs);
    for (int i = 0; i < 4; ++i) {
      v[(6 + i) * vs] = d[(1 + i) * ds];
    }
  }

  static GPSEG_INLINE void transform_taps(const Vec* w, int ws, Vec* u, int us) {
    u[0] = w[2 * ws];
    u[us] = Plain::near * (w[2 * ws] + kNear * w[0]);
    u[2 * us] = Plain::near * (w[2 * ws] - kNear * w[0]);
    u[3 * us] = Plain::far * (w[2 * ws] + kFar * w[0]);
    u[4 * us] = Plain::far * (w[2 * ws] - kFar * w[0]);
    u[5 * us] = w[0];
    for (int i = 6; i < 10; ++i) {
      u[i * us] = w[ws];
    }
  }

  static GPSEG_INLINE void transform_products(const Vec* m, int ms, Vec* y, int ys) {
    const Vec even_near = m[ms] + m[2 * ms], odd_near = kNear * (m[ms] - m[2 * ms]);
    const Vec even_far = m[3 * ms] + m[4 * ms], odd_far = kFar * (m[3 * ms] - m[4 * ms]);
    y[0] = m[0] + even_near + even_far;
    y[2 * ys] = odd_near + odd_far;
    y[4 * ys] = kNear2 * even_near + kFar2 * even_far;
    y[6 * ys] = kNear2 * odd_near + kFar2 * odd_far;
    y[8 * ys] = (kNear2 * kNear2) * even_near + (kFar2 * kFar2) * even_far + m[5 * ms];
    for (int i = 0; i < 4; ++i) {
      y[(2 * i + 1) * ys] = m[(6 + i) * ms];
    }
  }
};

// Rows that go through a product together; vectors of a panel of columns, so that both fit in the
// registers.
constexpr int kRows = 6;
constexpr int kPanel = GPSEG_VECTOR_BYTES == 64 ? 4 : 2;

// Images cut into tiles, in the order of the images, rows and columns.
struct TileGrid {
  int64_t across;
  int64_t down;

  template <class Form>
  static TileGrid of(const WinogradInput& p, Form) {
    constexpr int64_t shared = Form::tile - Form::out_step;
    return {ceil_div(p.out_w - shared, Form::out_step), ceil_div(p.out_h - shared, Form::out_step)};
  }

  int64_t per_image() const { return across * down; }
  int64_t image(int64_t tile) const { return tile / per_image(); }
  int64_t y(int64_t tile) const { return tile / across % down; }
  int64_t x(int64_t tile) const { return tile % across; }
};

// Pixels [y, y + side) x [x, x + side) of an image [h, w, channels]: zeros where they are outside.
template <int side, class T>
void find_pixels(const T** pixels, const T* image, int64_t h, int64_t w, int64_t channels,
                 int64_t y, int64_t x, const T* zeros) {
  for (int64_t i = 0; i < side; ++i) {
    const bool row_inside = y + i >= 0 && y + i < h;
    const T* row = image + ((y + i) * w + x) * channels;
    for (int64_t j = 0; j < side; ++j) {
      const bool inside = row_inside && x + j >= 0 && x + j < w;
      pixels[i * side + j] = inside ? row + j * channels : zeros;
    }
  }
}

// A cache line more than what is needed lies between two products' matrices, or they would meet in
// few sets of the caches.
constexpr int64_t kApart = 16;

// U: for each of the products, panels of [in_c, columns] of the transformed kernel.
struct Kernels {
  float* start;
  int64_t plane;
  int64_t depth;
  int64_t columns;

  Kernels(float* memory, const WinogradInput& p)
      : start(memory), plane(plane_of(p)), depth(p.in_c), columns(p.out_c) {}

  static int64_t plane_of(const WinogradInput& p) { return p.in_c * p.out_c + kApart; }

  // Vectors in a panel: the last one may have fewer.
  int64_t width(int64_t panel) const { return least(kPanel, columns / kLanes - panel * kPanel); }

  float* panel(int64_t product, int64_t number) const {
    return start + product * plane + number * kPanel * kLanes * depth;
  }
};

// Vector number `vector` of U's columns, all input channels of it.
template <class Form, class T>
void transform_weight(const WinogradConv& p, const Kernels& u, int64_t vector) {
  const int64_t panel = vector / kPanel;
  const int64_t width = u.width(panel) * kLanes;
  float* to = u.panel(0, panel) + vector % kPanel * kLanes;
  const T* from = static_cast<const T*>(p.weight.start) + vector * kLanes * p.weight.o;
  // a few input channels at a time, brought into the vectors' order where they are not
  constexpr int64_t kAtOnce = 16;
  float taps[9 * kAtOnce * kLanes];
  for (int64_t first = 0; first < p.in_c; first += kAtOnce) {
    for (int64_t tap = 0; tap < 9; ++tap) {
      const T* w = from + first * p.weight.i + tap / 3 * p.weight.y + tap % 3 * p.weight.x;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        for (int64_t i = 0; i < kAtOnce; ++i) {
          taps[(tap * kAtOnce + i) * kLanes + lane] = load(w[lane * p.weight.o + i * p.weight.i]);
        }
      }
    }
    for (int64_t i = 0; i < kAtOnce; ++i) {
      Vec w[9];
      for (int tap = 0; tap < 9; ++tap) {
        w[tap] = at(taps + (tap * kAtOnce + i) * kLanes);
      }
      Vec half[3 * Form::products];
      for (int x = 0; x < 3; ++x) {
        Form::transform_taps(w + x, 3, half + x, 3);
      }
#pragma GCC unroll 1
      for (int y = 0; y < Form::products; ++y) {
        Vec row[Form::products];
        Form::transform_taps(half + 3 * y, 1, row, 1);
        for (int x = 0; x < Form::products; ++x) {
          put(to + (y * Form::products + x) * u.plane + (first + i) * width, row[x]);
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

  static int64_t plane_of(int64_t rows, int64_t columns) { return rows * columns + kApart; }

  float* operator()(int64_t product, int64_t tile) const {
    return start + product * plane + tile * row;
  }
};

// V: the transformed input of tile number `tile`, times the style, as row `to` of the matrices.
template <class Form, class T>
void transform_input(const WinogradInput& p, const TileGrid& grid, int64_t tile, const Matrices& v,
                     int64_t to, const T* zeros) {
  constexpr int patch = Form::patch, products = Form::products;
  const int64_t n = grid.image(tile);
  const T* pixels[patch * patch];
  const T* image = static_cast<const T*>(p.x) + n * p.in_h * p.in_w * p.in_c;
  find_pixels<patch>(pixels, image, p.in_h, p.in_w, p.in_c,
                     grid.y(tile) * Form::in_step - Form::lead - p.pad_y,
                     grid.x(tile) * Form::in_step - Form::lead - p.pad_x, zeros);
  const Vec one = Vec{} + 1.0f;
  for (int64_t c = 0; c < p.in_c; c += kLanes) {
    Vec half[products * patch];
#pragma GCC unroll 1
    for (int x = 0; x < patch; ++x) {
      Vec column[patch];
      for (int y = 0; y < patch; ++y) {
        column[y] = at(pixels[y * patch + x] + c);
      }
      Form::transform_patch(column, 1, half + x, patch);
    }
    float* row = v(0, to) + c;
    const Vec style = p.style == nullptr ? one : at(p.style + n * p.in_c + c);
#pragma GCC unroll 1
    for (int y = 0; y < products; ++y) {
      Vec out[products];
      Form::transform_patch(half + y * patch, 1, out, 1);
      for (int x = 0; x < products; ++x) {
        put(row + (y * products + x) * v.plane, style * out[x]);
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
template <class T>
struct OutputTile {
  T* y;
  T* c;
  const T* factor;
  float* partial;  // the tile's share of `product`
  const float* scale;
  const float* bias;
  const float* noise;
  int64_t rows;  // inside of the image
  int64_t columns;
  int64_t width;  // of the image
  int64_t channels;
};

// The epilogue of kLanes channels from number `first` on: c is [tile, tile, kLanes].
template <Act act, int tile, class T, class A>
void finish_tile(const OutputTile<T>& t, int64_t first, const A* c, Scalars<A> s) {
  A product[kLanes] = {};
  A scale[kLanes], bias[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    scale[i] = t.scale == nullptr ? A(1) : t.scale[first + i];
    bias[i] = t.bias == nullptr ? A(0) : t.bias[first + i];
  }
  for (int64_t y = 0; y < t.rows; ++y) {
    for (int64_t x = 0; x < t.columns; ++x) {
      const int64_t pixel = y * t.width + x, to = pixel * t.channels + first;
      const A* from = c + (y * tile + x) * kLanes;
      const A noise = t.noise == nullptr ? A(0) : t.noise[pixel];
      if (t.c != nullptr) {
        put(t.c + to, at(from));
      }
      if (t.partial != nullptr) {
        const T* factor = t.factor + to;
#pragma omp simd
        for (int i = 0; i < kLanes; ++i) {
          product[i] += from[i] * load(factor[i]);
        }
      }
#pragma omp simd
      for (int i = 0; i < kLanes; ++i) {
        const A u = scale[i] * from[i] + (bias[i] + noise);
        const A v = s.gain * activate<act>(u, s.alpha).value;
        const A high = v > s.clamp ? s.clamp : v;
        store(t.y + to + i, high < -s.clamp ? -s.clamp : high);
      }
    }
  }
  if (t.partial != nullptr) {
    copy(t.partial + first, product, kLanes);
  }
}

// How much of a tile that starts at `first` is written, in an image that ends at `end`.
template <class Form>
int64_t extent(int64_t first, int64_t end) {
  return first + Form::tile >= end ? end - first : Form::out_step;
}

// What becomes of M's row number `row`, which is tile number `tile`.
template <class Form, class T>
void transform_output(const WinogradConv& p, const TileGrid& grid, const Matrices& m, int64_t row,
                      int64_t tile, float* partial) {
  constexpr int products = Form::products, side = Form::tile;
  const Epilogue& e = p.epilogue;
  const auto finish = GPSEG_ROW_FOR(e.activation.act, finish_tile, side, T, float);
  const Scalars<float> scalars(e.activation);
  const int64_t n = grid.image(tile), channels = p.out_c, pixels = p.out_h * p.out_w;
  const int64_t y0 = grid.y(tile) * Form::out_step, x0 = grid.x(tile) * Form::out_step;
  const int64_t pixel = y0 * p.out_w + x0, first = (n * pixels + pixel) * channels;
  const auto* noise = static_cast<const float*>(e.noise);
  const auto* scale = static_cast<const float*>(e.scale);
  const OutputTile<T> to{
      static_cast<T*>(p.y) + first,
      p.c == nullptr ? nullptr : static_cast<T*>(p.c) + first,
      p.factor == nullptr ? nullptr : static_cast<const T*>(p.factor) + first,
      partial,
      scale == nullptr ? nullptr : scale + n * channels,
      static_cast<const float*>(e.bias),
      noise == nullptr ? nullptr : noise + (e.shared_noise ? 0 : n * pixels) + pixel,
      extent<Form>(y0, p.out_h),
      extent<Form>(x0, p.out_w),
      p.out_w,
      channels};
  for (int64_t o = 0; o < channels; o += kLanes) {
    const float* from = m(0, row) + o;
    Vec half[side * products];
#pragma GCC unroll 1
    for (int x = 0; x < products; ++x) {
      Vec column[products];
      for (int y = 0; y < products; ++y) {
        column[y] = at(from + (y * products + x) * m.plane);
      }
      Form::transform_products(column, 1, half + x, products);
    }
    float c[side * side * kLanes];
#pragma GCC unroll 1
    for (int y = 0; y < side; ++y) {
      Vec out[side];
      Form::transform_products(half + y * products, 1, out, 1);
      for (int x = 0; x < side; ++x) {
        put(c + (y * side + x) * kLanes, out[x]);
      }
    }
    finish(to, o, c, scalars);
  }
}

// Rows of V and M that a thread works on by itself: these floats of them stay near it in its
// second-level cache; fewer rows than the least would go over U too often, so up to the most floats
// are taken. If that does not do, all threads share matrices of the least rows and floats below.
constexpr int64_t kThreadFloats = 80 * 1024;
constexpr int64_t kThreadMost = 208 * 1024;
constexpr int64_t kThreadRows = 12;
constexpr int64_t kSharedFloats = 1024 * 1024;
constexpr int64_t kSharedRows = 72;

inline int64_t rounded_rows(int64_t rows) { return ceil_div(rows, kRows) * kRows; }

// What stands for pixels outside of the image.
template <class T>
const T* zeroed(int64_t channels, Scratch& scratch) {
  T* zeros = scratch.take<T>(channels);
  for (int64_t c = 0; c < channels; ++c) {
    zeros[c] = T{};
  }
  return zeros;
}

// V and the matrices that go with it, in one block.
struct Pair {
  Workspace memory;
  Matrices v;
  Matrices other;

  Pair(int64_t products, int64_t rows, int64_t columns, int64_t other_columns)
      : memory(products *
               (Matrices::plane_of(rows, columns) + Matrices::plane_of(rows, other_columns))),
        v(memory.data(), rows, columns),
        other(memory.data() + products * v.plane, rows, other_columns) {}
};

template <class Form, class T>
void convolve(const WinogradConv& p) {
  constexpr int64_t products = Form::products * Form::products;
  const TileGrid grid = TileGrid::of(p, Form{});
  const int64_t tiles = p.n * grid.per_image(), panels = ceil_div(p.out_c, kPanel * kLanes);
  const int64_t tile_floats = products * (p.in_c + p.out_c);
  const Workspace kernels(products * Kernels::plane_of(p));
  const Kernels u(kernels.data(), p);
  const Workspace partial(p.product == nullptr ? 0 : tiles * p.out_c);
  Scratch scratch;
  const T* zeros = zeroed<T>(p.in_c, scratch);
  const auto partial_of = [&](int64_t tile) {
    return p.product == nullptr ? nullptr : partial.data() + tile * p.out_c;
  };

  parallel_for(p.out_c / kLanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) {
      transform_weight<Form, T>(p, u, column);
    }
  });

  if (kThreadRows * tile_floats <= kThreadMost) {
    const int64_t few =
        most(rounded_rows(ceil_div(tiles, 16)), kThreadRows);  // for every thread some
    const int64_t rows = least(most(kThreadFloats / tile_floats / kRows * kRows, kThreadRows), few);
    parallel_for(ceil_div(tiles, rows), 1, [&](int64_t begin, int64_t end) {
      const Pair matrices(products, rows, p.in_c, p.out_c);
      const Matrices &v = matrices.v, &m = matrices.other;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * rows, count = least(rows, tiles - first);
        for (int64_t t = 0; t < count; ++t) {
          transform_input<Form, T>(p, grid, first + t, v, t, zeros);
        }
        for (int64_t product = 0; product < products; ++product) {
          for (int64_t panel = 0; panel < panels; ++panel) {
            multiply_panel(u, v, m, product, panel, rounded_rows(count));
          }
        }
        for (int64_t t = 0; t < count; ++t) {
          transform_output<Form, T>(p, grid, m, t, first + t, partial_of(first + t));
        }
      }
    });
  } else {
    const int64_t rows =
        least(most(kSharedFloats / tile_floats / kRows * kRows, kSharedRows), rounded_rows(tiles));
    const Pair matrices(products, rows, p.in_c, p.out_c);
    const Matrices &v = matrices.v, &m = matrices.other;
    for (int64_t first = 0; first < tiles; first += rows) {
      const int64_t count = least(rows, tiles - first);
      parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          transform_input<Form, T>(p, grid, first + t, v, t, zeros);
        }
      });
      parallel_for(products * panels, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          multiply_panel(u, v, m, i / panels, i % panels, rounded_rows(count));
        }
      });
      parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          transform_output<Form, T>(p, grid, m, t, first + t, partial_of(first + t));
        }
      });
    }
  }
  if (p.product != nullptr) {
    sum_rows(p.product, partial.data(), p.n, grid.per_image(), p.out_c);
  }
}

inline void winograd_conv(const WinogradConv& p) {
  if (p.dtype == DType::bfloat16) {
    return convolve<Plain, BFloat16>(p);
  }
  switch (p.resampling) {
    case Resampling::none:
      return convolve<Plain, float>(p);
    case Resampling::down:
      return convolve<Down, float>(p);
    case Resampling::up:
      return convolve<Up, float>(p);
  }
}

// Z: the transformed gradient of tile number `tile` of the output, times its style, as row `to` of
// the matrices.
template <class Form, class T>
void transform_gradient(const WinogradWeightGrad& p, const TileGrid& grid, int64_t tile,
                        const Matrices& z, int64_t to, const T* zeros) {
  constexpr int side = Form::tile, products = Form::products;
  const int64_t n = grid.image(tile);
  const T* pixels[side * side];
  const T* image = static_cast<const T*>(p.dc) + n * p.out_h * p.out_w * p.out_c;
  find_pixels<side>(pixels, image, p.out_h, p.out_w, p.out_c, grid.y(tile) * Form::out_step,
                    grid.x(tile) * Form::out_step, zeros);
  const Vec one = Vec{} + 1.0f;
  for (int64_t o = 0; o < p.out_c; o += kLanes) {
    Vec half[products * side];
#pragma GCC unroll 1
    for (int x = 0; x < side; ++x) {
      Vec column[side];
      for (int y = 0; y < side; ++y) {
        column[y] = at(pixels[y * side + x] + o);
      }
      Form::spread_tile(column, 1, half + x, side);
    }
    float* row = z(0, to) + o;
    const Vec style = p.dc_style == nullptr ? one : at(p.dc_style + n * p.out_c + o);
#pragma GCC unroll 1
    for (int y = 0; y < products; ++y) {
      Vec out[products];
      Form::spread_tile(half + y * side, 1, out, 1);
      for (int x = 0; x < products; ++x) {
        put(row + (y * products + x) * z.plane, style * out[x]);
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
template <class Form, class T>
void gather_kernel(const WinogradWeightGrad& p, const float* du, int64_t plane, int64_t o) {
  constexpr int products = Form::products;
  for (int64_t i = 0; i < p.in_c; i += kLanes) {
    const float* from = du + o * p.in_c + i;
    Vec half[3 * products];
#pragma GCC unroll 1
    for (int x = 0; x < products; ++x) {
      Vec column[products];
      for (int y = 0; y < products; ++y) {
        column[y] = at(from + (y * products + x) * plane);
      }
      Form::gather_taps(column, 1, half + x, products);
    }
    for (int y = 0; y < 3; ++y) {
      Vec out[3];
      Form::gather_taps(half + y * products, 1, out, 1);
      for (int x = 0; x < 3; ++x) {
        T* to = static_cast<T*>(p.dweight.start) + o * p.dweight.o + i * p.dweight.i +
                y * p.dweight.y + x * p.dweight.x;
        if (p.dweight.i == 1) {
          put(to, out[x]);
        } else {
          for (int lane = 0; lane < kLanes; ++lane) {
            store(to + lane * p.dweight.i, out[x][lane]);
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

// All tiles' share in one product is summed up by one thread, in order: the result does not depend
// on how many there are.
template <class Form, class T>
void differentiate(const WinogradWeightGrad& p) {
  constexpr int64_t products = Form::products * Form::products;
  const TileGrid grid = TileGrid::of(p, Form{});
  const int64_t tiles = p.n * grid.per_image(), channels = p.in_c + p.out_c;
  const int64_t rows = least(most(kGradFloats / products / channels, kGradTiles), tiles);
  const int64_t plane = p.in_c * p.out_c + kApart;
  const Workspace sums(products * plane);
  const Pair matrices(products, rows, p.in_c, p.out_c);
  const Matrices &v = matrices.v, &z = matrices.other;
  Scratch scratch;
  const T* zeros = zeroed<T>(most(p.in_c, p.out_c), scratch);
  parallel_for(products, 1, [&](int64_t begin, int64_t end) {
    fill(sums.data() + begin * plane, 0.0f, (end - begin) * plane);
  });
  for (int64_t first = 0; first < tiles; first += rows) {
    const int64_t count = least(rows, tiles - first);
    parallel_for(count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        transform_input<Form, T>(p, grid, first + t, v, t, zeros);
        transform_gradient<Form, T>(p, grid, first + t, z, t, zeros);
      }
    });
    parallel_for(products, 1, [&](int64_t begin, int64_t end) {
      for (int64_t product = begin; product < end; ++product) {
        accumulate_kernel(p, sums.data() + product * plane, z, v, product, count);
      }
    });
  }
  parallel_for(p.out_c, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      gather_kernel<Form, T>(p, sums.data(), plane, o);
    }
  });
}

inline void winograd_weight_grad(const WinogradWeightGrad& p) {
  if (p.dtype == DType::bfloat16) {
    return differentiate<Plain, BFloat16>(p);
  }
  return p.resampling == Resampling::none ? differentiate<Plain, float>(p)
                                          : differentiate<Down, float>(p);
}
