// Adds up the partial sums that kernels leave behind, in a fixed order and in float64.
#pragma once

#include <cstdint>

#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace gpseg::cuda {

constexpr int kSumThreads = 1024;

// to[i] = sum over rows r of from[r][i]
template <class A>
struct RowSum {
  const A* from;
  A* to;
  int64_t rows;
  int64_t columns;
  int lanes;  // threads that share a column: a power of two
  unsigned blocks;
};

// The sums that one op leaves to be taken, all in one launch.
template <class A>
struct RowSums {
  static constexpr int most = 3;
  RowSum<A> sum[most];
  int count = 0;
  unsigned blocks = 0;

  // Where to write [rows, columns] for their sums to come out at `to`; null if that is.
  A* add(A* to, int64_t rows, int64_t columns, const Queue& queue) {
    if (to == nullptr || rows == 1 || columns == 0) {
      return to;
    }
    // Tall and narrow partial sums need many threads a column; 8 columns still fill a sector.
    const int lanes = rows > 64 ? kSumThreads / 8 : 1;
    const unsigned needed = static_cast<unsigned>(ceil_div(columns, kSumThreads / lanes));
    A* from = rows == 0 ? nullptr : queue.scratch<A>(rows * columns);
    sum[count++] = {from, to, rows, columns, lanes, needed};
    blocks += needed;
    return from;
  }
};

template <class A>
__global__ void __launch_bounds__(kSumThreads) sum_rows_kernel(RowSums<A> sums) {
  __shared__ double partial[kSumThreads];
  unsigned block = blockIdx.x;
  RowSum<A> s = sums.sum[0];
#pragma unroll
  for (int i = 1; i < RowSums<A>::most; ++i) {
    if (i < sums.count && block >= s.blocks) {
      block -= s.blocks;
      s = sums.sum[i];
    }
  }
  const int thread = threadIdx.x, wide = kSumThreads / s.lanes;
  const int64_t column = static_cast<int64_t>(block) * wide + thread % wide;

  double total = 0;
  if (column < s.columns) {
#pragma unroll 16
    for (int64_t row = thread / wide; row < s.rows; row += s.lanes) {
      total += static_cast<double>(__ldg(s.from + row * s.columns + column));
    }
  }
  for (int lanes = s.lanes; lanes > 1; lanes /= 2) {
    partial[thread] = total;
    __syncthreads();
    if (thread < lanes / 2 * wide) {
      total += partial[thread + lanes / 2 * wide];
    }
    __syncthreads();
  }
  if (thread < wide && column < s.columns) {
    s.to[column] = static_cast<A>(total);
  }
}

template <class A>
void sum_rows(const RowSums<A>& sums, const std::string& shape, const Queue& queue) {
  if (sums.blocks > 0) {
    sum_rows_kernel<A><<<sums.blocks, kSumThreads, 0, stream_of(queue)>>>(sums);
    check_launch("sum_rows_kernel", shape, sums.blocks, kSumThreads, 0);
  }
}

}  // namespace gpseg::cuda
