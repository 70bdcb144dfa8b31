// y = clamp(gain * act(scale * x + noise + bias)) and its derivatives, over images cut into tiles.
//
// Work is cut by the images' size alone, never by the number of threads, so sums come out the same
// however the tiles are scheduled.

// How many elements a row has at most: a few rows stay in the first-level cache together.
constexpr int64_t kRowElements = 1024;
constexpr int64_t kTileElements = 16384;

// Elements [c, c + cn) x [p, p + pn) of sample n.
struct Tile {
  int64_t n;
  int64_t c;
  int64_t cn;
  int64_t p;
  int64_t pn;

  int64_t size() const { return cn * pn; }
};

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The images cut into equal tiles.
struct Tiling {
  Images images;
  int64_t c_step;
  int64_t p_step;
  int64_t c_tiles;
  int64_t p_tiles;

  // Tiles span all channels where `whole_channels` or the memory order asks for it.
  Tiling(const Images& im, bool whole_channels) : images(im) {
    if (im.channels_last) {
      c_step = im.c;
      p_step = kTileElements / most(im.c, 1);
    } else if (whole_channels) {
      c_step = im.c;
      p_step = kRowElements;
    } else {
      p_step = least(kTileElements, most(im.hw, 1));
      c_step = most(kTileElements / p_step, 1);
    }
    c_step = most(least(c_step, im.c), 1);
    p_step = most(least(p_step, im.hw), 1);
    c_tiles = ceil_div(im.c, c_step);
    p_tiles = ceil_div(im.hw, p_step);
  }

  int64_t count() const { return images.n * c_tiles * p_tiles; }
  int64_t grain() const { return ceil_div(kTileElements, c_step * p_step); }

  int64_t p_tile(int64_t i) const { return i % p_tiles; }

  Tile operator[](int64_t i) const {
    const int64_t p = i % p_tiles * p_step;
    const int64_t c = i / p_tiles % c_tiles * c_step;
    return {i / p_tiles / c_tiles, c, least(c_step, images.c - c), p, least(p_step, images.hw - p)};
  }

  // The longest run that `for_each_run` gives.
  int64_t run_capacity() const {
    return images.channels_last ? most(kRowElements, images.c) : kRowElements;
  }
};

inline int64_t offset_of(const Images& images, const Tile& t) {
  return images.channels_last ? (t.n * images.hw + t.p) * images.c + t.c
                              : (t.n * images.c + t.c) * images.hw + t.p;
}

// Cuts a tile into runs that lie contiguously in memory.
template <class Body>
inline void for_each_run(const Images& images, const Tile& t, const Body& body) {
  if (images.channels_last) {
    const int64_t step = most(kRowElements / images.c, 1);
    for (int64_t p = 0; p < t.pn; p += step) {
      body(Tile{t.n, t.c, t.cn, t.p + p, least(step, t.pn - p)});
    }
  } else if (t.pn == images.hw && images.hw <= kRowElements) {
    const int64_t step = kRowElements / images.hw;
    for (int64_t c = 0; c < t.cn; c += step) {
      body(Tile{t.n, t.c + c, least(step, t.cn - c), t.p, t.pn});
    }
  } else {
    for (int64_t c = 0; c < t.cn; ++c) {
      for (int64_t p = 0; p < t.pn; p += kRowElements) {
        body(Tile{t.n, t.c + c, 1, t.p + p, least(kRowElements, t.pn - p)});
      }
    }
  }
}

// Values per channel, or per channel and pixel, laid out as a run's elements.
template <class A>
class Spread {
 public:
  explicit Spread(A* buffer) : row_(buffer) {}

  // values: of the run's sample, from channel 0; null for `otherwise` everywhere. `sample` tells
  // samples with values of their own apart. The row of the run before is kept if it serves.
  const A* channels(const Images& images, const Tile& t, const A* values, A otherwise,
                    int64_t sample) {
    const bool same_rows =
        t.pn == filled_.pn || ((t.cn == 1 || images.channels_last) && t.pn < filled_.pn);
    if (same_rows && filled_.n == sample && filled_.c == t.c && filled_.cn == t.cn) {
      return row_;
    }
    filled_ = {sample, t.c, t.cn, t.p, t.pn};
    if (values == nullptr) {
      fill(row_, otherwise, t.size());
    } else if (images.channels_last) {
      for (int64_t p = 0; p < t.pn; ++p) {
        copy(row_ + p * t.cn, values + t.c, t.cn);
      }
    } else {
      for (int64_t c = 0; c < t.cn; ++c) {
        fill(row_ + c * t.pn, values[t.c + c], t.pn);
      }
    }
    return row_;
  }

  // values (may be null) plus pixels, which are the sample's, from pixel 0.
  const A* channels_and_pixels(const Images& images, const Tile& t, const A* values,
                               const A* pixels) {
    filled_ = {-1, 0, 0, 0, 0};
    const A* noise = pixels + t.p;
    if (images.channels_last) {
      for (int64_t p = 0; p < t.pn; ++p) {
        A* row = row_ + p * t.cn;
        const A here = noise[p];
        if (values == nullptr) {
          fill(row, here, t.cn);
        } else {
#pragma omp simd
          for (int64_t c = 0; c < t.cn; ++c) {
            row[c] = values[t.c + c] + here;
          }
        }
      }
    } else {
      for (int64_t c = 0; c < t.cn; ++c) {
        A* row = row_ + c * t.pn;
        const A here = values == nullptr ? A(0) : values[t.c + c];
#pragma omp simd
        for (int64_t p = 0; p < t.pn; ++p) {
          row[p] = noise[p] + here;
        }
      }
    }
    return row_;
  }

 private:
  A* row_;
  Tile filled_{-1, 0, 0, 0, 0};
};

// scale and noise + bias, as rows, for one run after another.
template <class A, bool scaled>
class Affine {
 public:
  Affine(const Epilogue& p, const Images& images, int64_t capacity, Scratch& scratch)
      : images_(images),
        scale_values_(static_cast<const A*>(p.scale)),
        noise_(static_cast<const A*>(p.noise)),
        noise_stride_(p.shared_noise ? 0 : images.hw),
        bias_(static_cast<const A*>(p.bias)),
        scale_(scaled ? scratch.take<A>(capacity) : nullptr),
        shift_(scratch.take<A>(capacity)) {}

  const A* scale(const Tile& t) {
    if constexpr (scaled) {
      const A* values = scale_values_ == nullptr ? nullptr : scale_values_ + t.n * images_.c;
      return scale_.channels(images_, t, values, A(1), t.n);
    } else {
      return nullptr;
    }
  }

  const A* shift(const Tile& t) {
    if (noise_ == nullptr) {
      return shift_.channels(images_, t, bias_, A(0), 0);
    }
    return shift_.channels_and_pixels(images_, t, bias_, noise_ + t.n * noise_stride_);
  }

 private:
  Images images_;
  const A* scale_values_;
  const A* noise_;
  int64_t noise_stride_;
  const A* bias_;
  Spread<A> scale_;
  Spread<A> shift_;
};

template <class A>
struct Scalars {
  A alpha;
  A gain;
  A clamp;

  explicit Scalars(const Activation& a)
      : alpha(static_cast<A>(a.alpha)),
        gain(static_cast<A>(a.gain)),
        clamp(a.clamp < 0 ? A(__builtin_inf()) : static_cast<A>(a.clamp)) {}
};

template <bool scaled, class A>
GPSEG_INLINE A preactivation(A x, const A* scale, const A* shift, int64_t i) {
  if constexpr (scaled) {
    return scale[i] * x + shift[i];
  } else {
    return x + shift[i];
  }
}

// gain, or 0 where the value was clamped.
template <class A>
GPSEG_INLINE A slope(A value, const Scalars<A>& s) {
  const A y = s.gain * value;
  return y > s.clamp || y < -s.clamp ? A(0) : s.gain;
}

template <Act act, bool scaled, class A>
void forward_row(A* y, const A* x, const A* scale, const A* shift, Scalars<A> s, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const A u = preactivation<scaled>(x[i], scale, shift, i);
    const A v = s.gain * activate<act>(u, s.alpha).value;
    const A high = v > s.clamp ? s.clamp : v;
    y[i] = high < -s.clamp ? -s.clamp : high;
  }
}

// Gradient with respect to the preactivation.
template <Act act, bool scaled, class A>
void backward_row(A* g, const A* dy, const A* x, const A* scale, const A* shift, Scalars<A> s,
                  int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Jet<A> jet = activate<act>(preactivation<scaled>(x[i], scale, shift, i), s.alpha);
    g[i] = dy[i] * slope(jet.value, s) * jet.first;
  }
}

template <Act act, class A>
void double_backward_row(A* ddy, A* d2x, const A* ddx, const A* dd, const A* dy, const A* x,
                         const A* shift, Scalars<A> s, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Jet<A> jet = activate<act>(x[i] + shift[i], s.alpha);
    const A t = (ddx[i] + dd[i]) * slope(jet.value, s);
    ddy[i] = t * jet.first;
    d2x[i] = t * dy[i] * jet.second;
  }
}

// The instance of a row function template for an activation.
#define GPSEG_ROW_FOR(act, function, ...)                  \
  [&]() -> decltype(&function<Act::linear, __VA_ARGS__>) { \
    switch (act) {                                         \
      case Act::linear:                                    \
        return &function<Act::linear, __VA_ARGS__>;        \
      case Act::relu:                                      \
        return &function<Act::relu, __VA_ARGS__>;          \
      case Act::lrelu:                                     \
        return &function<Act::lrelu, __VA_ARGS__>;         \
      case Act::tanh:                                      \
        return &function<Act::tanh, __VA_ARGS__>;          \
      case Act::sigmoid:                                   \
        return &function<Act::sigmoid, __VA_ARGS__>;       \
      case Act::elu:                                       \
        return &function<Act::elu, __VA_ARGS__>;           \
      case Act::selu:                                      \
        return &function<Act::selu, __VA_ARGS__>;          \
      case Act::softplus:                                  \
        return &function<Act::softplus, __VA_ARGS__>;      \
      case Act::swish:                                     \
        return &function<Act::swish, __VA_ARGS__>;         \
    }                                                      \
    return nullptr;                                        \
  }()

template <class T, bool scaled>
void forward_tiles(const EpilogueForward& p) {
  using A = Accumulate<T>;
  const Tiling tiling(p.images, false);
  const auto row = GPSEG_ROW_FOR(p.activation.act, forward_row, scaled, A);
  parallel_for(tiling.count(), tiling.grain(), [&](int64_t begin, int64_t end) {
    const int64_t capacity = tiling.run_capacity();
    Scratch scratch;
    Affine<A, scaled> affine(p, p.images, capacity, scratch);
    A* x_buffer = scratch.take<A>(capacity);
    A* y_buffer = scratch.take<A>(capacity);
    for (int64_t i = begin; i < end; ++i) {
      for_each_run(p.images, tiling[i], [&](const Tile& run) {
        const int64_t n = run.size(), at = offset_of(p.images, run);
        const A* x = Row<T>::read(static_cast<const T*>(p.x) + at, x_buffer, n);
        T* to = static_cast<T*>(p.y) + at;
        A* y = Row<T>::target(to, y_buffer);
        row(y, x, affine.scale(run), affine.shift(run), Scalars<A>(p.activation), n);
        Row<T>::write(to, y, n);
      });
    }
  });
}

// Sums of g over channels (per pixel), and of g and g * x over a tile's pixels (per channel); those
// that are null are not taken. Runs are summed in the accumulation type, tiles in float64.
template <class A>
class Sums {
 public:
  // g, gx: partial sums [N, p_tiles, C]; pixels: [N, HW].
  Sums(const Tiling& tiling, double* g, double* gx, A* pixels, Scratch& scratch)
      : tiling_(tiling), g_(g), gx_(gx), pixels_(pixels), row_(scratch.take<A>(tiling.images.c)) {}

  void start(int64_t i) {
    const Tile t = tiling_[i];
    at_ = (t.n * tiling_.p_tiles + tiling_.p_tile(i)) * tiling_.images.c;
    if (g_ != nullptr) {
      fill(g_ + at_ + t.c, 0.0, t.cn);
    }
    if (gx_ != nullptr) {
      fill(gx_ + at_ + t.c, 0.0, t.cn);
    }
    if (pixels_ != nullptr) {
      fill(pixels_ + t.n * tiling_.images.hw + t.p, A(0), t.pn);
    }
  }

  void add_run(const Tile& t, const A* g, const A* x) {
    const bool channels_last = tiling_.images.channels_last;
    if (g_ != nullptr) {
      double* to = g_ + at_ + t.c;
      if (channels_last) {
        fill(row_, A(0), t.cn);
        for (int64_t p = 0; p < t.pn; ++p) {
          add(row_, g + p * t.cn, t.cn);
        }
        add(to, row_, t.cn);
      } else {
        for (int64_t c = 0; c < t.cn; ++c) {
          to[c] += sum(g + c * t.pn, t.pn);
        }
      }
    }
    if (gx_ != nullptr) {
      double* to = gx_ + at_ + t.c;
      if (channels_last) {
        fill(row_, A(0), t.cn);
        for (int64_t p = 0; p < t.pn; ++p) {
          add_product(row_, g + p * t.cn, x + p * t.cn, t.cn);
        }
        add(to, row_, t.cn);
      } else {
        for (int64_t c = 0; c < t.cn; ++c) {
          to[c] += dot(g + c * t.pn, x + c * t.pn, t.pn);
        }
      }
    }
    if (pixels_ != nullptr) {
      A* to = pixels_ + t.n * tiling_.images.hw + t.p;
      if (channels_last) {
        for (int64_t p = 0; p < t.pn; ++p) {
          to[p] += static_cast<A>(sum(g + p * t.cn, t.cn));
        }
      } else {
        for (int64_t c = 0; c < t.cn; ++c) {
          add(to, g + c * t.pn, t.pn);
        }
      }
    }
  }

 private:
  const Tiling& tiling_;
  double* g_;
  double* gx_;
  A* pixels_;
  A* row_;
  int64_t at_ = 0;
};

// to[group][i] = sum over `rows` rows of from[group][row][i].
template <class From, class To>
void sum_rows(To* to, const From* from, int64_t groups, int64_t rows, int64_t columns) {
  parallel_for(groups * columns, most(kTileElements / most(rows, 1), 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const From* column = from + i / columns * rows * columns + i % columns;
                   double total = 0;
                   for (int64_t row = 0; row < rows; ++row) {
                     total += static_cast<double>(column[row * columns]);
                   }
                   to[i] = static_cast<To>(total);
                 }
               });
}

template <class T, bool scaled>
void backward_tiles(const EpilogueBackward& p) {
  using A = Accumulate<T>;
  const Images& images = p.images;
  const Tiling tiling(images, p.dnoise != nullptr);
  const auto row = GPSEG_ROW_FOR(p.activation.act, backward_row, scaled, A);

  // partial sums of g and of g * x, [N, p_tiles, C]
  const int64_t partials = images.n * tiling.p_tiles * images.c;
  const bool sums_noise = p.dnoise != nullptr && p.shared_noise && images.n != 1;
  Scratch sums_memory;
  double* partial_g = p.dbias == nullptr ? nullptr : sums_memory.take<double>(partials);
  double* partial_gx = p.dscale == nullptr ? nullptr : sums_memory.take<double>(partials);
  A* pixels = sums_noise ? sums_memory.take<A>(images.n * images.hw) : static_cast<A*>(p.dnoise);

  parallel_for(tiling.count(), tiling.grain(), [&](int64_t begin, int64_t end) {
    const int64_t capacity = tiling.run_capacity();
    Scratch scratch;
    Affine<A, scaled> affine(p, images, capacity, scratch);
    Sums<A> sums(tiling, partial_g, partial_gx, pixels, scratch);
    A* x_buffer = scratch.take<A>(capacity);
    A* dy_buffer = scratch.take<A>(capacity);
    A* g_buffer = scratch.take<A>(capacity);
    A* dx_buffer = scratch.take<A>(capacity);
    for (int64_t i = begin; i < end; ++i) {
      sums.start(i);
      for_each_run(images, tiling[i], [&](const Tile& run) {
        const int64_t n = run.size(), at = offset_of(images, run);
        const A* x = Row<T>::read(static_cast<const T*>(p.x) + at, x_buffer, n);
        const A* dy = Row<T>::read(static_cast<const T*>(p.dy) + at, dy_buffer, n);
        const A* scale = affine.scale(run);
        T* to = static_cast<T*>(p.dx) + at;
        A* dx = Row<T>::target(to, dx_buffer);
        A* g = scaled ? g_buffer : dx;
        row(g, dy, x, scale, affine.shift(run), Scalars<A>(p.activation), n);
        sums.add_run(run, g, x);
        if constexpr (scaled) {
#pragma omp simd
          for (int64_t j = 0; j < n; ++j) {
            dx[j] = scale[j] * g[j];
          }
        }
        Row<T>::write(to, dx, n);
      });
    }
  });

  if (p.dbias != nullptr) {
    sum_rows(static_cast<A*>(p.dbias), partial_g, 1, images.n * tiling.p_tiles, images.c);
  }
  if (p.dscale != nullptr) {
    sum_rows(static_cast<A*>(p.dscale), partial_gx, images.n, tiling.p_tiles, images.c);
  }
  if (sums_noise || (p.dnoise != nullptr && images.c == 0)) {
    sum_rows(static_cast<A*>(p.dnoise), pixels, p.shared_noise ? 1 : images.n,
             images.c == 0 ? 0 : images.n, images.hw);
  }
}

template <class T>
void double_backward_tiles(const EpilogueDoubleBackward& p) {
  using A = Accumulate<T>;
  const Images& images = p.images;
  const Tiling tiling(images, false);
  const auto row = GPSEG_ROW_FOR(p.activation.act, double_backward_row, A);
  const int64_t partials = images.n * tiling.p_tiles * images.c;
  Scratch sums_memory;
  double* partial = p.d2bias == nullptr ? nullptr : sums_memory.take<double>(partials);

  parallel_for(tiling.count(), tiling.grain(), [&](int64_t begin, int64_t end) {
    const int64_t capacity = tiling.run_capacity();
    Scratch scratch;
    Affine<A, false> affine(p, images, capacity, scratch);
    Sums<A> sums(tiling, partial, nullptr, nullptr, scratch);
    Spread<A> dd(scratch.take<A>(capacity));
    A* x_buffer = scratch.take<A>(capacity);
    A* dy_buffer = scratch.take<A>(capacity);
    A* ddx_buffer = scratch.take<A>(capacity);
    A* ddy_buffer = scratch.take<A>(capacity);
    A* d2x_buffer = scratch.take<A>(capacity);
    if (p.ddx == nullptr) {
      fill(ddx_buffer, A(0), capacity);
    }
    for (int64_t i = begin; i < end; ++i) {
      sums.start(i);
      for_each_run(images, tiling[i], [&](const Tile& run) {
        const int64_t n = run.size(), at = offset_of(images, run);
        const A* x = Row<T>::read(static_cast<const T*>(p.x) + at, x_buffer, n);
        const A* dy = Row<T>::read(static_cast<const T*>(p.dy) + at, dy_buffer, n);
        const A* ddx = p.ddx == nullptr
                           ? ddx_buffer
                           : Row<T>::read(static_cast<const T*>(p.ddx) + at, ddx_buffer, n);
        const A* ddbias = dd.channels(images, run, static_cast<const A*>(p.ddbias), A(0), 0);
        T* ddy_to = static_cast<T*>(p.ddy) + at;
        T* d2x_to = static_cast<T*>(p.d2x) + at;
        A* ddy = Row<T>::target(ddy_to, ddy_buffer);
        A* d2x = Row<T>::target(d2x_to, d2x_buffer);
        row(ddy, d2x, ddx, ddbias, dy, x, affine.shift(run), Scalars<A>(p.activation), n);
        sums.add_run(run, d2x, x);
        Row<T>::write(ddy_to, ddy, n);
        Row<T>::write(d2x_to, d2x, n);
      });
    }
  });
  if (p.d2bias != nullptr) {
    sum_rows(static_cast<A*>(p.d2bias), partial, 1, images.n * tiling.p_tiles, images.c);
  }
}

// Calls function<T, ...>(argument) for the element type that argument.dtype names.
#define GPSEG_FOR_DTYPE(dtype, CALL) \
  switch (dtype) {                   \
    case DType::float16: {           \
      using T = Half;                \
      CALL;                          \
      break;                         \
    }                                \
    case DType::bfloat16: {          \
      using T = BFloat16;            \
      CALL;                          \
      break;                         \
    }                                \
    case DType::float32: {           \
      using T = float;               \
      CALL;                          \
      break;                         \
    }                                \
    case DType::float64: {           \
      using T = double;              \
      CALL;                          \
      break;                         \
    }                                \
  }
