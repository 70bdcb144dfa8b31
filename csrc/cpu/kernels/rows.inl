// Rows of numbers: conversion to and from the accumulation type, fills and sums.

// A row of T's as a row of accumulation type: T's own memory where they are the same, else via a
// buffer.
template <class T>
struct Row {
  using A = Accumulate<T>;
  static constexpr bool in_place = sizeof(T) == sizeof(A);

  static const A* read(const T* from, A* buffer, int64_t n) {
    if constexpr (in_place) {
      return from;
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        buffer[i] = load(from[i]);
      }
      return buffer;
    }
  }

  // Where to compute a row that `write` then brings to `to`.
  static A* target(T* to, A* buffer) {
    if constexpr (in_place) {
      return to;
    } else {
      return buffer;
    }
  }

  static void write(T* to, const A* row, int64_t n) {
    if constexpr (in_place) {
      if (to == row) {
        return;
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      store(to + i, row[i]);
    }
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
