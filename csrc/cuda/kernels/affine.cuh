// scale * x + shift, the preactivation of an Epilogue, for the vectors of a sweep.
#pragma once

#include <cstdint>

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/memory.cuh"
#include "cuda/kernels/sweep.cuh"

namespace gpseg::cuda {

// What a row's elements have in common.
template <class A>
struct RowTerms {
  A scale;
  A shift;
};

// Holds the terms of a thread's columns; those of its rows are fetched as it gets there.
template <Walk walk, bool scaled, class A, int length>
class Affine {
 public:
  __device__ __forceinline__ Affine(const EpilogueView<A>& epilogue, const Sweep& sweep,
                                    const Path& path)
      : channels_(sweep.channels), bias_(epilogue.bias) {
    if constexpr (scaled) {
      noise_ = epilogue.noise == nullptr ? nullptr
                                         : epilogue.noise + path.sample * epilogue.noise_stride;
      const int64_t of_sample = walk == Walk::across_pixels ? sweep.channels : sweep.rows;
      scale_ = epilogue.scale == nullptr ? nullptr : epilogue.scale + path.sample * of_sample;
    }
    if constexpr (walk == Walk::across_pixels) {
      if constexpr (scaled) {
        fetch_column_terms(sweep, path, scale_, A(1), column_scale_);
      }
      fetch_column_terms(sweep, path, bias_, A(0), column_shift_);
    } else if constexpr (walk == Walk::across_channels) {
      fetch_column_terms(sweep, path, noise_, A(0), column_shift_);
    }
  }

  __device__ __forceinline__ RowTerms<A> row(int64_t row) const {
    if constexpr (walk == Walk::across_pixels) {
      return {A(1), value_at(noise_, row, A(0))};
    } else {
      const int64_t channel = walk == Walk::along_channel ? row % channels_ : row;
      return {value_at(scale_, row, A(1)), value_at(bias_, channel, A(0))};
    }
  }

  __device__ __forceinline__ A scale(int j, const RowTerms<A>& row) const {
    if constexpr (!scaled) {
      return A(1);
    } else if constexpr (walk == Walk::across_pixels) {
      return column_scale_[j];
    } else {
      return row.scale;
    }
  }

  __device__ __forceinline__ A operator()(A x, int j, const RowTerms<A>& row) const {
    const A shift = walk == Walk::along_channel ? row.shift : row.shift + column_shift_[j];
    return scaled ? scale(j, row) * x + shift : x + shift;
  }

 private:
  static __device__ __forceinline__ A value_at(const A* from, int64_t i, A otherwise) {
    return from == nullptr ? otherwise : __ldg(from + i);
  }

  int64_t channels_;
  const A* bias_;
  const A* noise_ = nullptr;
  const A* scale_ = nullptr;
  A column_scale_[length];
  A column_shift_[length];
};

}  // namespace gpseg::cuda
