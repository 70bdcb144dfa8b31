// Rows of numbers: conversion to and from the accumulation type, fills and sums.

// Results from this size on are streamed past the caches: no cache holds them for their reader, and
// their lines need not be read before they are written.
constexpr int64_t kStreamedBytes = int64_t{32} << 20;

// to[i] = from[i], in the accumulation type.
template <class T, class A>
inline void widen(A* to, const T* from, int64_t n) {
  if constexpr (kHandVectors) {
    return vectors::widen(to, from, n);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      to[i] = load(from[i]);
    }
  }
}

// to[i] = from[i], rounded to the nearest.
template <class T, class A>
inline void narrow(T* to, const A* from, int64_t n, bool streams) {
  if constexpr (sizeof(T) == sizeof(A)) {
    if (streams) {
      return vectors::stream(to, from, n * static_cast<int64_t>(sizeof(T)));
    }
  } else if constexpr (kHandVectors) {
    return vectors::narrow(to, from, n, streams);
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    store(to + i, from[i]);
  }
}

// A row of T's as a row of accumulation type: T's own memory where they are the same, else via a
// buffer.
template <class T>
struct Row {
  using A = Accumulate<T>;
  static constexpr bool in_place = sizeof(T) == sizeof(A);

  // Whether a result of so many elements is streamed past the caches, which it would not fit.
  static bool streams(int64_t elements) {
    return GPSEG_X86_LEVELS && (in_place || kHandVectors) &&
           elements * static_cast<int64_t>(sizeof(T)) >= kStreamedBytes;
  }

  // For `read`: none if it needs none.
  static A* buffer(int64_t n, Scratch& scratch) { return in_place ? nullptr : scratch.take<A>(n); }

  static const A* read(const T* from, A* buffer, int64_t n) {
    if constexpr (in_place) {
      return from;
    } else {
      widen(buffer, from, n);
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
    narrow(to, row, n, streams);
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

template <class A>
inline void add_product(A* to, const A* a, const A* b, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    to[i] += a[i] * b[i];
  }
}

// Sums run over this many elements in the accumulation type before they go on in float64.
constexpr int64_t kSumElements = 256;

template <class A>
inline double sum(const A* row, int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumElements) {
    const int64_t end = n < begin + kSumElements ? n : begin + kSumElements;
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      part += row[i];
    }
    total += static_cast<double>(part);
  }
  return total;
}

template <class A>
inline double dot(const A* a, const A* b, int64_t n) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumElements) {
    const int64_t end = n < begin + kSumElements ? n : begin + kSumElements;
    A part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) {
      part += a[i] * b[i];
    }
    total += static_cast<double>(part);
  }
  return total;
}
