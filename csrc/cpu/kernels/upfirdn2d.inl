#include "cpu/kernels/rows.inl"

#include "cpu/kernels/epilogue.inl"

// The images are planes of [height, width, inner], inner being the channels if they come last,
// else 1. For each output row, the taps along y are summed over whole input rows (unit stride) into
// a row padded with zeros that stays in the cache; then those along x over shifts of that row. For
// decimation that row is dealt out into its phases, and for upsampling the output's phases are
// interleaved, so that every sum has unit stride and no inserted zero is ever touched.
//
// Where planes are narrow, the same row of several of them makes one: each plane has a cell of it,
// wide enough for the zeros between it and the next.

constexpr int64_t kTapsAtOnce = 6;
// Long rows are cut so that what one output row needs stays in the cache.
constexpr int64_t kFirRowElements = 4096;
// Rows of fewer elements are taken together until they make up so many.
constexpr int64_t kNarrowRow = 128;
constexpr int64_t kJoinedRow = 1024;
// Columns of fewer elements are not worth a loop each.
constexpr int64_t kFewElements = 16;

// to[i] (+)= sum over t of taps[t] * rows[t][i].
template <int count, bool adds, class A>
void sum_taps(A* to, const A* const* rows, const A* taps, int64_t n) {
  const A* row[count];
  A tap[count];
  for (int t = 0; t < count; ++t) {
    row[t] = rows[t];
    tap[t] = taps[t];
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    A total = adds ? to[i] + tap[0] * row[0][i] : tap[0] * row[0][i];
    for (int t = 1; t < count; ++t) {
      total += tap[t] * row[t][i];
    }
    to[i] = total;
  }
}

template <bool adds, class A>
void sum_few_taps(A* to, const A* const* rows, const A* taps, int64_t count, int64_t n) {
  switch (count) {
    case 1:
      return sum_taps<1, adds>(to, rows, taps, n);
    case 2:
      return sum_taps<2, adds>(to, rows, taps, n);
    case 3:
      return sum_taps<3, adds>(to, rows, taps, n);
    case 4:
      return sum_taps<4, adds>(to, rows, taps, n);
    case 5:
      return sum_taps<5, adds>(to, rows, taps, n);
    default:
      return sum_taps<kTapsAtOnce, adds>(to, rows, taps, n);
  }
}

template <class A>
void fir(A* to, const A* const* rows, const A* taps, int64_t count, int64_t n) {
  if (count == 0) {
    return fill(to, A(0), n);
  }
  sum_few_taps<false>(to, rows, taps, least(count, kTapsAtOnce), n);
  for (int64_t t = kTapsAtOnce; t < count; t += kTapsAtOnce) {
    sum_few_taps<true>(to, rows + t, taps + t, least(count - t, kTapsAtOnce), n);
  }
}

// Two filters of `count` taps each, one into the even and one into the odd elements of `to`.
template <int count, class A>
void sum_taps_interleaved(A* to, const A* const* rows, const A* taps, int64_t n) {
  const A* row[2 * count];
  A tap[2 * count];
  for (int t = 0; t < 2 * count; ++t) {
    row[t] = rows[t];
    tap[t] = taps[t];
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    A even = tap[0] * row[0][i];
    A odd = tap[count] * row[count][i];
    for (int t = 1; t < count; ++t) {
      even += tap[t] * row[t][i];
      odd += tap[count + t] * row[count + t][i];
    }
    to[2 * i] = even;
    to[2 * i + 1] = odd;
  }
}

// to[i * to_step] = from[i * from_step] for columns of `inner` elements.
template <class A>
void copy_columns(A* to, int64_t to_step, const A* from, int64_t from_step, int64_t count,
                  int64_t inner) {
  if (inner == 1 && to_step == 1 && from_step == 2) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      to[i] = from[2 * i];
    }
  } else if (inner < kFewElements) {
    for (int64_t e = 0; e < inner; ++e) {
      for (int64_t i = 0; i < count; ++i) {
        to[i * to_step * inner + e] = from[i * from_step * inner + e];
      }
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      copy(to + i * to_step * inner, from + i * from_step * inner, inner);
    }
  }
}

// The last few rows that were made, by row number, each in a slot of its own.
template <class A>
class RowCache {
 public:
  RowCache(int64_t slots, int64_t slot_size, Scratch& scratch)
      : slots_(slots),
        slot_size_(slot_size),
        rows_(scratch.take<A>(slots * slot_size)),
        numbers_(scratch.take<int64_t>(slots)) {}

  void clear() { fill(numbers_, int64_t(-1), slots_); }

  A* slot(int64_t i) { return rows_ + i * slot_size_; }
  int64_t slots() const { return slots_; }

  // Row `number`, made by make(row) unless it is there.
  template <class Make>
  const A* get(int64_t number, const Make& make) {
    A* row = slot(number % slots_);
    if (numbers_[number % slots_] != number) {
      make(row);
      numbers_[number % slots_] = number;
    }
    return row;
  }

 private:
  int64_t slots_;
  int64_t slot_size_;
  A* rows_;
  int64_t* numbers_;
};

// Planes that are filtered together, and how.
struct Cells {
  int64_t planes;   // of one sample
  int64_t periods;  // of a cell's output; the last ones may be nobody's

  Cells(const Upfirdn2d& p, const PhasesView& x) {
    const int64_t span = x.highest_index - x.lowest_index + 1;
    const int64_t needed = ceil_div(p.x.out, x.period);
    const int64_t width = most(p.x.out, p.x.in);
    planes = 1;
    periods = needed;
    if (!p.channels_last && width < kNarrowRow && p.c > 1 && needed > 0) {
      periods = ceil_div((needed - 1) * x.step + span, x.step);
      planes = most(1, least(p.c, kJoinedRow / (periods * most(x.step, x.period))));
      periods = planes == 1 ? needed : periods;
    }
  }

  int64_t batches(const Upfirdn2d& p) const { return ceil_div(p.channels_last ? 1 : p.c, planes); }
};

// One thread's share of a call: output rows [begin, end) of all batches of planes.
template <class T, bool fused>
class Fir {
  using A = Accumulate<T>;

 public:
  Fir(const Upfirdn2d& p, const FirView& plan, const Cells& cells)
      : p_(p),
        plan_(plan),
        cells_(cells),
        streams_(Row<T>::streams(p.n * p.c * p.y.out * p.x.out)),
        inner_(p.channels_last ? p.c : 1),
        periods_(cells.planes > 1
                     ? cells.planes * cells.periods
                     : most(1, least(cells.periods, kFirRowElements / (plan.x.step * inner_)))),
        columns_((periods_ - 1) * plan.x.step + plan.x.highest_index - plan.x.lowest_index + 1),
        phase_size_((ceil_div(columns_, plan.x.step)) * inner_),
        output_phase_size_(periods_ * inner_),
        most_taps_(plan.x.first[plan.x.period] * (plan.separable ? 1 : most(1, plan.y.most_taps))),
        sources_(most(1, plan.y.most_taps), plan.separable ? columns_ * inner_ : prepared_size(),
                 scratch_),
        stage_(scratch_.take<A>(columns_ * inner_)),
        prepared_(scratch_.take<A>(prepared_size())),
        output_phases_(scratch_.take<A>(plan.x.period * output_phase_size_)),
        output_(scratch_.take<A>(plan.x.period * output_phase_size_)),
        activated_(scratch_.take<A>(plan.x.period * output_phase_size_)),
        rows_(scratch_.take<const A*>(most_taps_)),
        taps_(scratch_.take<A>(most_taps_)),
        rows_y_(scratch_.take<const A*>(plan.y.most_taps)),
        taps_y_(scratch_.take<A>(plan.y.most_taps)),
        counts_(scratch_.take<int64_t>(plan.x.period)),
        images_{p.n, p.c, p.y.out * p.x.out, p.channels_last},
        affine_(fused ? *p.epilogue : Epilogue{}, fused ? images_ : Images{},
                fused ? row_pixels(p.c) : 0, plan.x.period * output_phase_size_, scratch_) {}

  void run(int64_t begin, int64_t end) {
    const int64_t batches = cells_.batches(p_);
    while (begin < end) {
      const int64_t batch = begin / p_.y.out, planes = p_.channels_last ? 1 : p_.c;
      const int64_t first = batch % batches * cells_.planes;
      plane_ = batch / batches * planes + first;
      planes_ = least(cells_.planes, planes - first);
      const int64_t stop = least(end, (batch + 1) * p_.y.out);
      for (int64_t j = 0; j * plan_.x.period < p_.x.out; j += periods_) {
        start_tile(j);
        for (int64_t row = begin; row < stop; ++row) {
          filter_row(row - batch * p_.y.out);
        }
      }
      begin = stop;
    }
    if (streams_) {
      vectors::end_streaming();
    }
  }

 private:
  bool joins() const { return cells_.planes > 1; }
  int64_t prepared_size() const { return plan_.x.step * phase_size_; }
  int64_t cell_columns() const { return cells_.periods * plan_.x.step; }

  // Sets out for output columns from period j on.
  void start_tile(int64_t j) {
    out_begin_ = j * plan_.x.period;
    out_count_ = least(periods_ * plan_.x.period, p_.x.out - out_begin_);
    const int64_t lowest = j * plan_.x.step + plan_.x.lowest_index;
    in_begin_ = least(most(lowest, 0), p_.x.in);
    // those that one plane's output needs: the last cell ends where they do
    const int64_t unused = joins() ? periods_ - ceil_div(p_.x.out, plan_.x.period) : 0;
    const int64_t columns = columns_ - unused * plan_.x.step;
    in_count_ = most(least(lowest + columns, p_.x.in) - in_begin_, 0);
    margin_ = in_count_ > 0 ? in_begin_ - lowest : 0;
    sources_.clear();
    if (joins()) {
      fill(stage_, A(0), columns_);
      for (int64_t i = 0; i < sources_.slots(); ++i) {
        fill(sources_.slot(i), A(0), plan_.separable ? columns_ : prepared_size());
      }
    } else if (plan_.x.step > 1) {
      clear_margins(stage_);
    } else if (plan_.separable) {
      clear_margins(prepared_);
    } else {
      for (int64_t i = 0; i < sources_.slots(); ++i) {
        clear_margins(sources_.slot(i));
      }
    }
    if (plan_.separable) {
      int64_t count = 0;
      for (int64_t r = 0; r < plan_.x.period; ++r) {
        counts_[r] = plan_.x.first[r + 1] - plan_.x.first[r];
        for (int64_t t = plan_.x.first[r]; t < plan_.x.first[r + 1]; ++t, ++count) {
          rows_[count] = column(prepared_, plan_.x.index[t]);
          taps_[count] = static_cast<A>(plan_.taps_x[plan_.x.tap[t]]);
        }
      }
    }
  }

  void clear_margins(A* row) const {
    fill(row, A(0), margin_ * inner_);
    fill(row + (margin_ + in_count_) * inner_, A(0), (columns_ - margin_ - in_count_) * inner_);
  }

  // Where a prepared row holds the first period's input number `index`.
  const A* column(const A* prepared, int64_t index) const {
    const int64_t i = index - plan_.x.lowest_index;
    return prepared + i % plan_.x.step * phase_size_ + i / plan_.x.step * inner_;
  }

  // A row padded with zeros and dealt out into phases; write(row) writes it, but for the zeros.
  template <class Write>
  void prepare(A* prepared, const Write& write) {
    A* padded = plan_.x.step == 1 ? prepared : stage_;
    write(padded);
    for (int64_t d = 0; plan_.x.step > 1 && d < plan_.x.step; ++d) {
      copy_columns(prepared + d * phase_size_, 1, padded + d * inner_, plan_.x.step,
                   ceil_div(columns_ - d, plan_.x.step), inner_);
    }
  }

  const T* input_row(int64_t y) const {
    return static_cast<const T*>(p_.input) +
           ((plane_ * p_.y.in + y) * p_.x.in + in_begin_) * inner_;
  }

  // Input row `in` of each plane, where a padded row has it.
  void read_rows(A* padded, int64_t in) {
    widen<T, A>({padded + margin_ * inner_, cell_columns()}, {input_row(in), p_.y.in * p_.x.in},
                planes_, in_count_ * inner_);
  }

  void filter_row(int64_t y) {
    const int64_t first_row = y / plan_.y.period * plan_.y.step, r = y % plan_.y.period;
    const int64_t begin = plan_.y.first[r], end = plan_.y.first[r + 1];
    if (plan_.separable) {
      int64_t count = 0;
      for (int64_t t = begin; t < end; ++t) {
        const int64_t in = first_row + plan_.y.index[t];
        if (in >= 0 && in < p_.y.in) {
          rows_y_[count] = source_row(in);
          taps_y_[count++] = static_cast<A>(plan_.taps_y[plan_.y.tap[t]]);
        }
      }
      prepare(prepared_, [&](A* row) {
        if (joins()) {
          fir(row, rows_y_, taps_y_, count, columns_);
        } else {
          fir(row + margin_ * inner_, rows_y_, taps_y_, count, in_count_ * inner_);
        }
      });
    } else {
      gather_taps(first_row, begin, end);
    }
    write_row(y);
  }

  // An input row in the accumulation type; a padded one where planes are joined.
  const A* source_row(int64_t in) {
    if (joins()) {
      return sources_.get(in, [&](A* row) { read_rows(row, in); });
    }
    if constexpr (Row<T>::in_place) {
      return input_row(in);
    } else {
      return sources_.get(
          in, [&](A* row) { widen<T, A>({row, 0}, {input_row(in), 0}, 1, in_count_ * inner_); });
    }
  }

  // Taps of both axes at once, for a filter that is no product.
  void gather_taps(int64_t first_row, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t r = 0; r < plan_.x.period; ++r) {
      const int64_t before = count;
      for (int64_t ty = begin; ty < end; ++ty) {
        const int64_t in = first_row + plan_.y.index[ty];
        if (in < 0 || in >= p_.y.in) {
          continue;
        }
        const A* prepared =
            sources_.get(in, [&](A* slot) { prepare(slot, [&](A* row) { read_rows(row, in); }); });
        for (int64_t tx = plan_.x.first[r]; tx < plan_.x.first[r + 1]; ++tx) {
          rows_[count] = column(prepared, plan_.x.index[tx]);
          taps_[count++] =
              static_cast<A>(plan_.taps[plan_.y.tap[ty] * plan_.width + plan_.x.tap[tx]]);
        }
      }
      counts_[r] = count - before;
    }
  }

  // The sums along x, and what becomes of them.
  void write_row(int64_t y) {
    const int64_t n = out_count_ * inner_;
    const int64_t at = ((plane_ * p_.y.out + y) * p_.x.out + out_begin_) * inner_;
    T* to = static_cast<T*>(p_.output) + at;
    if (!fused && !joins()) {
      A* row = Row<T>::target(to, output_, streams_);
      filter_columns(row, out_count_);
      return Row<T>::write(to, row, n, streams_);
    }
    filter_columns(output_, joins() ? periods_ * plan_.x.period : out_count_);
    const int64_t step = p_.y.out * p_.x.out, cell = cells_.periods * plan_.x.period;
    if constexpr (!fused) {
      return narrow<T, A>({to, step}, {output_, cell}, planes_, n, streams_);
    } else {
      if (p_.filtered != nullptr) {
        narrow<T, A>({static_cast<T*>(p_.filtered) + at, step}, {output_, cell}, planes_, n,
                     streams_);
      }
      const int64_t p = y * p_.x.out + out_begin_;
      if (p_.channels_last) {
        A* activated = Row<T>::target(to, activated_, streams_);
        activate_pixels_(activated, output_, affine_({plane_, 0, p_.c, p, out_count_}), scalars_,
                         n);
        return Row<T>::write(to, activated, n, streams_);
      }
      const Tile tile{plane_ / p_.c, plane_ % p_.c, planes_, p, out_count_};
      if (Row<T>::in_place && !streams_) {
        return activate_planes_({Row<T>::target(to, activated_), step}, {output_, cell},
                                affine_(tile), scalars_, planes_, n);
      }
      activate_planes_({activated_, cell}, {output_, cell}, affine_(tile), scalars_, planes_, n);
      narrow<T, A>({to, step}, {activated_, cell}, planes_, n, streams_);
    }
  }

  void filter_columns(A* to, int64_t columns) {
    const int64_t period = plan_.x.period;
    if (period == 1) {
      return fir(to, rows_, taps_, counts_[0], columns * inner_);
    }
    if (period == 2 && inner_ == 1 && columns % 2 == 0 && counts_[0] == counts_[1] &&
        filter_pairs(to, columns / 2)) {
      return;
    }
    int64_t before = 0;
    for (int64_t r = 0; r < period; ++r) {
      const int64_t count = (columns + period - 1 - r) / period;
      A* phase = output_phases_ + r * output_phase_size_;
      fir(phase, rows_ + before, taps_ + before, counts_[r], count * inner_);
      copy_columns(to + r * inner_, period, phase, 1, count, inner_);
      before += counts_[r];
    }
  }

  // False if there is no instance for this many taps.
  bool filter_pairs(A* to, int64_t n) {
    switch (counts_[0]) {
      case 1:
        sum_taps_interleaved<1>(to, rows_, taps_, n);
        return true;
      case 2:
        sum_taps_interleaved<2>(to, rows_, taps_, n);
        return true;
      case 3:
        sum_taps_interleaved<3>(to, rows_, taps_, n);
        return true;
      case 6:
        sum_taps_interleaved<6>(to, rows_, taps_, n);
        return true;
      default:
        return false;
    }
  }

  const Upfirdn2d& p_;
  const FirView& plan_;
  Cells cells_;
  bool streams_;
  Scratch scratch_;
  int64_t inner_;       // elements of a column
  int64_t periods_;     // output periods of a tile, or of all cells
  int64_t columns_;     // input columns of a tile
  int64_t phase_size_;  // elements of one phase of a prepared row
  int64_t output_phase_size_;
  int64_t most_taps_;
  RowCache<A> sources_;
  A* stage_;
  A* prepared_;
  A* output_phases_;
  A* output_;
  A* activated_;
  const A** rows_;  // for the sums along x: rows, taps and their number per output phase
  A* taps_;
  const A** rows_y_;
  A* taps_y_;
  int64_t* counts_;
  Images images_;
  Affine<A> affine_;
  Scalars<A> scalars_{fused ? p_.epilogue->activation : Activation{}};
  decltype(&forward_planes<Act::linear, A, A>) activate_planes_ =
      fused ? GPSEG_ROW_FOR(p_.epilogue->activation.act, forward_planes, A, A) : nullptr;
  decltype(&forward_pixels<Act::linear, A, A>) activate_pixels_ =
      fused ? GPSEG_ROW_FOR(p_.epilogue->activation.act, forward_pixels, A, A) : nullptr;

  int64_t plane_ = 0;      // the batch's first
  int64_t planes_ = 1;     // of the batch
  int64_t out_begin_ = 0;  // the tile's output columns
  int64_t out_count_ = 0;
  int64_t in_begin_ = 0;  // the tile's input columns that are inside of the image
  int64_t in_count_ = 0;
  int64_t margin_ = 0;  // zeros before them
};

template <class T>
void upfirdn2d_rows(const Upfirdn2d& p, const FirView& plan) {
  const Cells cells(p, plan.x);
  const int64_t rows = p.n * cells.batches(p) * p.y.out;
  const int64_t row_size = most(1, p.x.out * (p.channels_last ? p.c : cells.planes));
  parallel_for(rows, ceil_div(kGrainElements, row_size), [&](int64_t begin, int64_t end) {
    if (p.epilogue != nullptr) {
      Fir<T, true>(p, plan, cells).run(begin, end);
    } else {
      Fir<T, false>(p, plan, cells).run(begin, end);
    }
  });
}

inline void upfirdn2d(const Upfirdn2d& p, const FirView& plan) {
  GPSEG_FOR_DTYPE(p.dtype, upfirdn2d_rows<T>(p, plan))
}
