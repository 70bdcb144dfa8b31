// y = clamp(gain * act(scale * x + noise + bias)) and its derivatives, over images cut into tiles.
//
// Work is cut by the images' size alone, never by the number of threads, so sums come out the same
// however the tiles are scheduled.

// How many elements a run has, unless it is one row of more channels: a few runs stay in the
// first-level cache together.
constexpr int64_t kRunElements = 1024;
constexpr int64_t kTileElements = 16384;
// Waking a thread costs more than fewer elements than these.
constexpr int64_t kGrainElements = 65536;
// Planes of fewer pixels than this are narrow for a loop over half numbers.
constexpr int64_t kFewPixels = 64;
// A row of fewer channels is not worth a loop: pixels are taken together until they make up this.
constexpr int64_t kFewChannels = 32;

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

// Channels last, what is given per channel is repeated over a row of a few pixels if there are few
// channels, so that loops along a row are long enough.
inline int64_t row_pixels(int64_t channels) {
  return channels < kFewChannels ? ceil_div(2 * kFewChannels, most(channels, 1)) : 1;
}

// Channels last, the pixels of a run: whole rows of `row_pixels`.
inline int64_t run_pixels(int64_t channels) {
  const int64_t row = row_pixels(channels);
  return most(kRunElements / most(channels, 1) / row, 1) * row;
}

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
      p_step = least(kTileElements / 4, most(ceil_div(im.hw, 4), kRunElements / 4));
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
  int64_t grain() const { return ceil_div(kGrainElements, c_step * p_step); }

  int64_t p_tile(int64_t i) const { return i % p_tiles; }

  Tile operator[](int64_t i) const {
    const int64_t p = i % p_tiles * p_step;
    const int64_t c = i / p_tiles % c_tiles * c_step;
    return {i / p_tiles / c_tiles, c, least(c_step, images.c - c), p, least(p_step, images.hw - p)};
  }

  // The longest run that `for_each_run` gives.
  int64_t run_capacity() const {
    return images.channels_last ? run_pixels(images.c) * images.c : kRunElements;
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
    const int64_t step = run_pixels(images.c);
    for (int64_t p = 0; p < t.pn; p += step) {
      body(Tile{t.n, t.c, t.cn, t.p + p, least(step, t.pn - p)});
    }
  } else if (t.pn == images.hw && images.hw <= kRunElements) {
    const int64_t step = kRunElements / images.hw;
    for (int64_t c = 0; c < t.cn; c += step) {
      body(Tile{t.n, t.c + c, least(step, t.cn - c), t.p, t.pn});
    }
  } else {
    for (int64_t c = 0; c < t.cn; ++c) {
      for (int64_t p = 0; p < t.pn; p += kRunElements) {
        body(Tile{t.n, t.c + c, 1, t.p + p, least(kRunElements, t.pn - p)});
      }
    }
  }
}

template <class A>
inline void repeat(A* to, const A* from, int64_t n, int64_t times) {
  for (int64_t i = 0; i < times; ++i) {
    copy(to + i * n, from, n);
  }
}

// Where a run finds what an epilogue multiplies and adds. Where images are [N, C, HW]: scale and
// bias of the run's channels, noise of its pixels. Channels last: rows of `width` elements, the
// scale's the same for all of them; and bias + noise, of which the next row's is `step` further.
template <class A>
struct Sides {
  const A* scale;
  const A* bias;
  const A* noise;
  int64_t width;
  int64_t step;
};

template <class A>
class Affine {
 public:
  // pixels: those of a row at most, channels last; runs: the size of the largest.
  Affine(const Epilogue& p, const Images& images, int64_t pixels, int64_t run, Scratch& scratch)
      : images_(images),
        pixels_(pixels),
        width_(images.channels_last ? pixels * images.c : images.c),
        scale_(static_cast<const A*>(p.scale)),
        bias_(static_cast<const A*>(p.bias)),
        noise_(static_cast<const A*>(p.noise)),
        noise_stride_(p.shared_noise ? 0 : images.hw) {
    if (images.channels_last || scale_ == nullptr) {
      scale_row_ = scratch.take<A>(width_);
      fill(scale_row_, A(1), width_);
    }
    if (images.channels_last || bias_ == nullptr) {
      bias_row_ = scratch.take<A>(width_);
      fill(bias_row_, A(0), width_);
      if (bias_ != nullptr) {
        repeat(bias_row_, bias_, images.c, pixels);
      }
    }
    if (noise_ == nullptr && !images.channels_last) {
      const int64_t most_pixels = least(run, images.hw);
      no_noise_ = scratch.take<A>(most_pixels);
      fill(no_noise_, A(0), most_pixels);
    }
    if (noise_ != nullptr && images.channels_last) {
      shift_ = scratch.take<A>(run);
    }
  }

  Sides<A> operator()(const Tile& t) {
    if (!images_.channels_last) {
      return {scale_ == nullptr ? scale_row_ : scale_ + t.n * images_.c + t.c,
              bias_ == nullptr ? bias_row_ : bias_ + t.c,
              noise_ == nullptr ? no_noise_ : noise_ + t.n * noise_stride_ + t.p, 0, 0};
    }
    if (scale_ != nullptr && t.n != sample_) {
      sample_ = t.n;
      repeat(scale_row_, scale_ + t.n * images_.c, images_.c, pixels_);
    }
    if (noise_ == nullptr) {
      return {scale_row_, bias_row_, nullptr, width_, 0};
    }
    const A* noise = noise_ + t.n * noise_stride_ + t.p;
    for (int64_t p = 0; p < t.pn; ++p) {
      A* row = shift_ + p * t.cn;
      const A here = noise[p];
#pragma omp simd
      for (int64_t c = 0; c < t.cn; ++c) {
        row[c] = bias_row_[c] + here;
      }
    }
    return {scale_row_, shift_, nullptr, width_, width_};
  }

 private:
  Images images_;
  int64_t pixels_;
  int64_t width_;
  const A* scale_;
  const A* bias_;
  const A* noise_;
  int64_t noise_stride_;
  A* scale_row_ = nullptr;
  A* bias_row_ = nullptr;
  A* no_noise_ = nullptr;
  A* shift_ = nullptr;
  int64_t sample_ = -1;
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

// gain, or 0 where the value was clamped.
template <class A>
GPSEG_INLINE A slope(A value, const Scalars<A>& s) {
  const A y = s.gain * value;
  return y > s.clamp || y < -s.clamp ? A(0) : s.gain;
}

template <Act act, class A>
GPSEG_INLINE A activated(A u, const Scalars<A>& s) {
  const A v = s.gain * activate<act>(u, s.alpha).value;
  const A high = v > s.clamp ? s.clamp : v;
  return high < -s.clamp ? -s.clamp : high;
}

// Rows of planes, n elements of each.
template <Act act, class X, class A>
void forward_planes(Rows<A> to, Rows<const X> from, Sides<A> sides, Scalars<A> s, int64_t rows,
                    int64_t n) {
  for (int64_t r = 0; r < rows; ++r) {
    A* y = to.start + r * to.step;
    const X* x = from.start + r * from.step;
    const A scale = sides.scale[r], bias = sides.bias[r];
    const A* noise = sides.noise;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      y[i] = activated<act>(scale * load(x[i]) + (noise[i] + bias), s);
    }
  }
}

// A run of pixels' channels, n elements.
template <Act act, class X, class A>
void forward_pixels(A* y, const X* x, Sides<A> sides, Scalars<A> s, int64_t n) {
  const A* scale = sides.scale;
  const A* shift = sides.bias;
  for (; n > 0; n -= sides.width, x += sides.width, y += sides.width, shift += sides.step) {
    const int64_t width = least(n, sides.width);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      y[i] = activated<act>(scale[i] * load(x[i]) + shift[i], s);
    }
  }
}

// The gradient with respect to the preactivation u.
template <Act act, class A>
GPSEG_INLINE A gradient(A dy, A u, const Scalars<A>& s) {
  const Jet<A> jet = activate<act>(u, s.alpha);
  return dy * slope(jet.value, s) * jet.first;
}

// dx of a run of planes, and the sums of g and of g * x, the gradients with respect to u, over each
// plane's pixels and, if sums_pixels, of g over planes.
template <Act act, bool sums_pixels, class X, class A>
void backward_planes(A* dx, const X* dy, const X* x, Sides<A> sides, Scalars<A> s, int64_t rows,
                     int64_t n, double* sums, double* product_sums, A* pixels) {
  for (int64_t r = 0; r < rows; ++r, x += n, dy += n, dx += n) {
    const A scale = sides.scale[r], bias = sides.bias[r];
    const A* noise = sides.noise;
    double total = 0, product_total = 0;
    for (int64_t begin = 0; begin < n; begin += kSumElements) {
      const int64_t end = least(n, begin + kSumElements);
      A sum = 0, product_sum = 0;
#pragma omp simd reduction(+ : sum, product_sum)
      for (int64_t i = begin; i < end; ++i) {
        const A value = load(x[i]);
        const A g = gradient<act>(load(dy[i]), scale * value + (noise[i] + bias), s);
        dx[i] = scale * g;
        sum += g;
        product_sum += g * value;
        if constexpr (sums_pixels) {
          pixels[i] += g;
        }
      }
      total += static_cast<double>(sum);
      product_total += static_cast<double>(product_sum);
    }
    sums[r] += total;
    product_sums[r] += product_total;
  }
}

// As backward_planes, for pixels' channels; sums and product_sums are rows of sides.width, and
// with sums_pixels a row is a pixel.
template <Act act, bool sums_pixels, class X, class A>
void backward_pixels(A* dx, const X* dy, const X* x, Sides<A> sides, Scalars<A> s, int64_t n,
                     A* sums, A* product_sums, A* pixels) {
  const A* scale = sides.scale;
  const A* shift = sides.bias;
  for (; n > 0; n -= sides.width) {
    const int64_t width = least(n, sides.width);
    A pixel = 0;
#pragma omp simd reduction(+ : pixel)
    for (int64_t i = 0; i < width; ++i) {
      const A value = load(x[i]);
      const A g = gradient<act>(load(dy[i]), scale[i] * value + shift[i], s);
      dx[i] = scale[i] * g;
      sums[i] += g;
      product_sums[i] += g * value;
      if constexpr (sums_pixels) {
        pixel += g;
      }
    }
    if constexpr (sums_pixels) {
      *pixels++ = pixel;
    }
    x += width, dy += width, dx += width, shift += sides.step;
  }
}

template <Act act, class A>
GPSEG_INLINE void second(A& ddy, A& d2x, A ddu, A dy, A u, const Scalars<A>& s) {
  const Jet<A> jet = activate<act>(u, s.alpha);
  const A t = ddu * slope(jet.value, s);
  ddy = t * jet.first;
  d2x = t * dy * jet.second;
}

// sums: of d2x over each plane's pixels.
template <Act act, class X, class A>
void double_backward_planes(A* ddy, A* d2x, const X* ddx, const A* ddbias, const X* dy, const X* x,
                            Sides<A> sides, Scalars<A> s, int64_t rows, int64_t n, double* sums) {
  for (int64_t r = 0; r < rows; ++r, ddy += n, d2x += n, ddx += n, dy += n, x += n) {
    const A bias = sides.bias[r], dd = ddbias[r];
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += kSumElements) {
      const int64_t end = least(n, begin + kSumElements);
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = begin; i < end; ++i) {
        second<act>(ddy[i], d2x[i], load(ddx[i]) + dd, load(dy[i]), load(x[i]) + bias, s);
        sum += d2x[i];
      }
      total += static_cast<double>(sum);
    }
    sums[r] += total;
  }
}

template <Act act, class X, class A>
void double_backward_pixels(A* ddy, A* d2x, const X* ddx, const A* ddbias, const X* dy, const X* x,
                            Sides<A> sides, Scalars<A> s, int64_t n, A* sums) {
  const A* bias = sides.bias;
  for (; n > 0; n -= sides.width) {
    const int64_t width = least(n, sides.width);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      second<act>(ddy[i], d2x[i], load(ddx[i]) + ddbias[i], load(dy[i]), load(x[i]) + bias[i], s);
      sums[i] += d2x[i];
    }
    ddy += width, d2x += width, ddx += width, dy += width, x += width;
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

template <class T, class X = typename Row<T>::Source>
void forward_tiles(const EpilogueForward& p) {
  using A = Accumulate<T>;
  const Images& images = p.images;
  const Tiling tiling(images, false);
  const Scalars<A> scalars(p.activation);
  const auto planes = GPSEG_ROW_FOR(p.activation.act, forward_planes, X, A);
  const auto pixels = GPSEG_ROW_FOR(p.activation.act, forward_pixels, X, A);
  const bool streams = Row<T>::streams(images.size());
  parallel_for(tiling.count(), tiling.grain(), [&](int64_t begin, int64_t end) {
    const int64_t capacity = tiling.run_capacity();
    Scratch scratch;
    Affine<A> affine(p, images, row_pixels(images.c), capacity, scratch);
    X* x_buffer = scratch.take<X>(capacity);
    A* y_buffer = scratch.take<A>(capacity);
    for (int64_t i = begin; i < end; ++i) {
      for_each_run(images, tiling[i], [&](const Tile& run) {
        const int64_t n = run.size(), at = offset_of(images, run);
        const X* x = Row<T>::read(static_cast<const T*>(p.x) + at, x_buffer, n);
        T* to = static_cast<T*>(p.y) + at;
        A* y = Row<T>::target(to, y_buffer, streams);
        if (images.channels_last) {
          pixels(y, x, affine(run), scalars, n);
        } else {
          planes({y, run.pn}, {x, run.pn}, affine(run), scalars, run.cn, run.pn);
        }
        Row<T>::write(to, y, n, streams);
      });
    }
    if (streams) {
      vectors::end_streaming();
    }
  });
}

// to[group][i] = sum over `rows` rows of from[group][row][i].
template <class From, class To>
void sum_rows(To* to, const From* from, int64_t groups, int64_t rows, int64_t columns) {
  constexpr int64_t kColumns = 64;
  const int64_t blocks = ceil_div(columns, kColumns);
  const int64_t grain = ceil_div(kGrainElements, most(rows, 1) * kColumns);
  parallel_for(groups * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / blocks, first = i % blocks * kColumns;
      const int64_t n = least(kColumns, columns - first);
      const From* row = from + group * rows * columns + first;
      double totals[kColumns];
      fill(totals, 0.0, n);
      for (int64_t r = 0; r < rows; ++r) {
        add(totals, row + r * columns, n);
      }
      for (int64_t j = 0; j < n; ++j) {
        to[group * columns + first + j] = static_cast<To>(totals[j]);
      }
    }
  });
}

// Partial sums [N, p_tiles, C] over a tile's pixels. They are in float64; channels last, where a
// tile's go along rows, in the accumulation type until the tile is done.
template <class A>
class TileSums {
 public:
  // to: null if nobody wants the sums; width: of a row.
  TileSums(const Tiling& tiling, double* to, int64_t width, Scratch& scratch)
      : tiling_(tiling),
        to_(to),
        width_(width),
        unwanted_(to == nullptr ? scratch.take<double>(tiling.images.c) : nullptr),
        row_(tiling.images.channels_last ? scratch.take<A>(width) : nullptr) {}

  void start(int64_t i) {
    const Tile t = tiling_[i];
    at_ = to_ == nullptr ? unwanted_
                         : to_ + (t.n * tiling_.p_tiles + tiling_.p_tile(i)) * tiling_.images.c;
    fill(at_ + t.c, 0.0, t.cn);
    if (row_ != nullptr) {
      fill(row_, A(0), width_);
    }
  }

  double* channels(const Tile& run) { return at_ + run.c; }
  A* row() { return row_; }

  void finish() {
    const int64_t channels = tiling_.images.c;
    for (int64_t i = 0; row_ != nullptr && to_ != nullptr && i < width_; i += channels) {
      add(at_, row_ + i, channels);
    }
  }

 private:
  const Tiling& tiling_;
  double* to_;
  int64_t width_;
  double* unwanted_;
  A* row_;
  double* at_ = nullptr;
};

template <class T, class X>
void backward_tiles(const EpilogueBackward& p) {
  using A = Accumulate<T>;
  const Images& images = p.images;
  const bool sums_pixels = p.dnoise != nullptr;
  const Tiling tiling(images, sums_pixels);
  const int64_t pixels_together = sums_pixels ? 1 : row_pixels(images.c);
  const Scalars<A> scalars(p.activation);
  const auto planes = sums_pixels ? GPSEG_ROW_FOR(p.activation.act, backward_planes, true, X, A)
                                  : GPSEG_ROW_FOR(p.activation.act, backward_planes, false, X, A);
  const auto pixels = sums_pixels ? GPSEG_ROW_FOR(p.activation.act, backward_pixels, true, X, A)
                                  : GPSEG_ROW_FOR(p.activation.act, backward_pixels, false, X, A);
  const bool streams = Row<T>::streams(images.size());

  // partial sums of g and of g * x, [N, p_tiles, C]; sums of g over channels, [N, HW]
  const int64_t partials = images.n * tiling.p_tiles * images.c;
  const bool shares_noise = sums_pixels && p.shared_noise && images.n != 1;
  Scratch sums_memory;
  double* partial_g = p.dbias == nullptr ? nullptr : sums_memory.take<double>(partials);
  double* partial_gx = p.dscale == nullptr ? nullptr : sums_memory.take<double>(partials);
  A* dnoise = shares_noise ? sums_memory.take<A>(images.n * images.hw) : static_cast<A*>(p.dnoise);

  parallel_for(tiling.count(), tiling.grain(), [&](int64_t begin, int64_t end) {
    const int64_t capacity = tiling.run_capacity();
    Scratch scratch;
    Affine<A> affine(p, images, pixels_together, capacity, scratch);
    TileSums<A> sums(tiling, partial_g, pixels_together * images.c, scratch);
    TileSums<A> product_sums(tiling, partial_gx, pixels_together * images.c, scratch);
    X* x_buffer = scratch.take<X>(capacity);
    X* dy_buffer = scratch.take<X>(capacity);
    A* dx_buffer = scratch.take<A>(capacity);
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile = tiling[i];
      sums.start(i);
      product_sums.start(i);
      A* tile_pixels = sums_pixels ? dnoise + tile.n * images.hw + tile.p : nullptr;
      if (sums_pixels) {
        fill(tile_pixels, A(0), tile.pn);
      }
      for_each_run(images, tile, [&](const Tile& run) {
        const int64_t n = run.size(), at = offset_of(images, run);
        const X* x = Row<T>::read(static_cast<const T*>(p.x) + at, x_buffer, n);
        const X* dy = Row<T>::read(static_cast<const T*>(p.dy) + at, dy_buffer, n);
        T* to = static_cast<T*>(p.dx) + at;
        A* dx = Row<T>::target(to, dx_buffer, streams);
        A* run_pixels = sums_pixels ? tile_pixels + (run.p - tile.p) : nullptr;
        if (images.channels_last) {
          pixels(dx, dy, x, affine(run), scalars, n, sums.row(), product_sums.row(), run_pixels);
        } else {
          planes(dx, dy, x, affine(run), scalars, run.cn, run.pn, sums.channels(run),
                 product_sums.channels(run), run_pixels);
        }
        Row<T>::write(to, dx, n, streams);
      });
      sums.finish();
      product_sums.finish();
    }
    if (streams) {
      vectors::end_streaming();
    }
  });

  if (p.dbias != nullptr) {
    sum_rows(static_cast<A*>(p.dbias), partial_g, 1, images.n * tiling.p_tiles, images.c);
  }
  if (p.dscale != nullptr) {
    sum_rows(static_cast<A*>(p.dscale), partial_gx, images.n, tiling.p_tiles, images.c);
  }
  if (shares_noise || (sums_pixels && images.c == 0)) {
    sum_rows(static_cast<A*>(p.dnoise), dnoise, p.shared_noise ? 1 : images.n,
             images.c == 0 ? 0 : images.n, images.hw);
  }
}

template <class T, class X>
void double_backward_tiles(const EpilogueDoubleBackward& p) {
  using A = Accumulate<T>;
  const Images& images = p.images;
  const Tiling tiling(images, false);
  const int64_t pixels_together = row_pixels(images.c), width = pixels_together * images.c;
  const Scalars<A> scalars(p.activation);
  const auto planes = GPSEG_ROW_FOR(p.activation.act, double_backward_planes, X, A);
  const auto pixels = GPSEG_ROW_FOR(p.activation.act, double_backward_pixels, X, A);
  const bool streams = Row<T>::streams(images.size());
  const int64_t partials = images.n * tiling.p_tiles * images.c;
  Scratch sums_memory;
  double* partial = p.d2bias == nullptr ? nullptr : sums_memory.take<double>(partials);

  // ddbias as a row, channels last, else per channel
  const auto* given_ddbias = static_cast<const A*>(p.ddbias);
  A* ddbias = sums_memory.take<A>(width);
  fill(ddbias, A(0), width);
  if (given_ddbias != nullptr) {
    repeat(ddbias, given_ddbias, images.c, pixels_together);
  }

  parallel_for(tiling.count(), tiling.grain(), [&](int64_t begin, int64_t end) {
    const int64_t capacity = tiling.run_capacity();
    Scratch scratch;
    Affine<A> affine(p, images, pixels_together, capacity, scratch);
    TileSums<A> sums(tiling, partial, width, scratch);
    X* x_buffer = scratch.take<X>(capacity);
    X* dy_buffer = scratch.take<X>(capacity);
    X* ddx_buffer = scratch.take<X>(capacity);
    A* ddy_buffer = scratch.take<A>(capacity);
    A* d2x_buffer = scratch.take<A>(capacity);
    if (p.ddx == nullptr) {
      fill(ddx_buffer, X{}, capacity);
    }
    for (int64_t i = begin; i < end; ++i) {
      sums.start(i);
      for_each_run(images, tiling[i], [&](const Tile& run) {
        const int64_t n = run.size(), at = offset_of(images, run);
        const X* x = Row<T>::read(static_cast<const T*>(p.x) + at, x_buffer, n);
        const X* dy = Row<T>::read(static_cast<const T*>(p.dy) + at, dy_buffer, n);
        const X* ddx = p.ddx == nullptr
                           ? ddx_buffer
                           : Row<T>::read(static_cast<const T*>(p.ddx) + at, ddx_buffer, n);
        T* ddy_to = static_cast<T*>(p.ddy) + at;
        T* d2x_to = static_cast<T*>(p.d2x) + at;
        A* ddy = Row<T>::target(ddy_to, ddy_buffer, streams);
        A* d2x = Row<T>::target(d2x_to, d2x_buffer, streams);
        if (images.channels_last) {
          pixels(ddy, d2x, ddx, ddbias, dy, x, affine(run), scalars, n, sums.row());
        } else {
          planes(ddy, d2x, ddx, ddbias + run.c, dy, x, affine(run), scalars, run.cn, run.pn,
                 sums.channels(run));
        }
        Row<T>::write(ddy_to, ddy, n, streams);
        Row<T>::write(d2x_to, d2x, n, streams);
      });
      sums.finish();
    }
    if (streams) {
      vectors::end_streaming();
    }
  });
  if (p.d2bias != nullptr) {
    sum_rows(static_cast<A*>(p.d2bias), partial, 1, images.n * tiling.p_tiles, images.c);
  }
}

// function<T, X> of p, for T that is read as X: where planes have few pixels, vectors of half
// numbers, which hold twice as many, would not be full.
#define GPSEG_READ_AS(function, p)                                                              \
  p.images.channels_last || p.images.hw >= kFewPixels ? function<T, typename Row<T>::Source>(p) \
                                                      : function<T, Accumulate<T>>(p)

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
