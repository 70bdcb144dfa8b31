// Rows of numbers: conversion to and from the accumulation type, fills and sums.

// Results from this size on are streamed past the caches: no cache holds them for their reader, and
// their lines need not be read before they are written.
constexpr int64_t kStreamedBytes = int64_t{32} << 20;

using vectors::Rows;

// to[i] = from[i] in the accumulation type, for n numbers of each row.
template <class T, class A>
inline void widen(Rows<A> to, Rows<const T> from, int64_t rows, int64_t n) {
  if constexpr (kHandVectors && sizeof(A) == 4) {
    vectors::widen(to, from, rows, n);
  } else {
    for (int64_t row = 0; row < rows; ++row, to.start += to.step, from.start += from.step) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        to.start[i] = load(from.start[i]);
      }
    }
  }
}

// to[i] = from[i], rounded to the nearest, for n numbers of each row.
template <class T, class A>
inline void narrow(Rows<T> to, Rows<const A> from, int64_t rows, int64_t n, bool streams) {
  if constexpr (kHandVectors && sizeof(T) == 2) {
    return vectors::narrow(to, from, rows, n, streams);
  } else if constexpr (kHandVectors && sizeof(T) == 4) {
    if (!streams) {
      return vectors::widen(to, from, rows, n);
    }
  }
  for (int64_t row = 0; row < rows; ++row, to.start += to.step, from.start += from.step) {
    if (streams && sizeof(T) == sizeof(A)) {
      vectors::stream(to.start, from.start, n * static_cast<int64_t>(sizeof(T)));
      continue;
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      store(to.start + i, from.start[i]);
    }
  }
}

// A row of T's as a row of accumulation type: T's own memory where they are the same, else via a
// buffer.
template <class T>
struct Row {
  using A = Accumulate<T>;
  static constexpr bool in_place = sizeof(T) == sizeof(A);
  // What loops over rows are given. They widen bfloat16 themselves, in two instructions.
  using Source = std::conditional_t<std::is_same_v<T, Half>, A, T>;

  // Whether a result of so many elements is streamed past the caches, which it would not fit.
  static bool streams(int64_t elements) {
    return GPSEG_X86_LEVELS && (in_place || kHandVectors) &&
           elements * static_cast<int64_t>(sizeof(T)) >= kStreamedBytes;
  }

  // As X's, T or A; the buffer is for where they are not T's.
  template <class X>
  static const X* read(const T* from, X* buffer, int64_t n) {
    if constexpr (std::is_same_v<T, X>) {
      return from;
    } else {
      widen<T, A>({buffer, 0}, {from, 0}, 1, n);
      return buffer;
    }
  }

  // Where to compute a row that `write` then brings to `to`.
  static A* target(T* to, A* buffer, bool streams = false) {
    if constexpr (in_place) {
      return streams ? buffer : to;
    } else {
      return buffer;
    }
  }

  static void write(T* to, const A* row, int64_t n, bool streams = false) {
    if constexpr (in_place) {
      if (to == row) {
        return;
      }
    }
    narrow<T, A>({to, 0}, {row, 0}, 1, n, streams);
  }
};

template <class A>
inline void fill(A* row, A value, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    row[i] = value;
  }
}

template <class A>
inline void copy(A* to, const A* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    to[i] = from[i];
  }
}

template <class To, class A>
inline void add(To* to, const A* row, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    to[i] += static_cast<To>(row[i]);
  }
}

// Sums run over this many elements in the accumulation type, in as many parts as a vector has
// lanes, before they go on in float64.
constexpr int64_t kSumElements = 1024;
