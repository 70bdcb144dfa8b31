// Host side of a launch: grids, limits, and errors that say what failed.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"

namespace gpseg::cuda {

constexpr int64_t kMostBlocks = 0x7fffffff;  // along x; kernels cut work along x alone

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline cudaStream_t stream_of(const Queue& queue) {
  return static_cast<cudaStream_t>(queue.stream);
}

// Lends a kernel so much dynamic shared memory; beyond 48 KiB it must ask. Always the same for one
// kernel, whatever it is launched with, so that no thread takes back what another needs.
template <class Kernel>
void lend_shared(Kernel* kernel, const char* name, int bytes) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) {
    return;
  }
  cudaGetLastError();  // forgets it: the next launch is not to be blamed
  throw std::runtime_error("gpseg: kernel " + std::string(name) + " may not have " +
                           std::to_string(bytes) +
                           " bytes of shared memory: " + cudaGetErrorString(error));
}

// To be called right after a launch. `shape` is what the user would know the problem by.
inline void check_launch(const char* kernel, const std::string& shape, dim3 grid, dim3 block,
                         size_t shared_bytes) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) {
    return;
  }
  throw std::runtime_error("gpseg: kernel " + std::string(kernel) + " on " + shape +
                           " did not launch with " + std::to_string(grid.x) + " blocks of " +
                           std::to_string(block.x * block.y * block.z) + " threads and " +
                           std::to_string(shared_bytes) +
                           " bytes of shared memory: " + cudaGetErrorString(error));
}

inline std::string shape_of(DType dtype, const Images& images) {
  return std::string(kDTypeNames[static_cast<int>(dtype)]) + " [" + std::to_string(images.n) +
         ", " + std::to_string(images.c) + ", " + std::to_string(images.hw) + "]" +
         (images.channels_last ? " channels_last" : "");
}

// Calls body with a value of the element type.
template <class Body>
void for_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float16:
      return body(__half{});
    case DType::bfloat16:
      return body(__nv_bfloat16{});
    case DType::float32:
      return body(float{});
    case DType::float64:
      return body(double{});
  }
}

}  // namespace gpseg::cuda
