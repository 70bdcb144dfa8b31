// CUDA source as C++ for the CPU: one fiber per CUDA thread, in one process and one OS thread.
//
// Force-included before a file that to_host.py has rewritten. What it brings: the language here,
// collectives.h (barriers, shuffles), memory.h (accesses, atomics), tensor_cores.h (mma, ldmatrix,
// cp.async), intrinsics.h (arithmetic). The scheduler and the host API stand in runtime.cpp; the
// fault finder in check.cpp. Needs g++ 12 on x86-64 and C++20.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <tuple>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

// Always inlined, so that the line an access is charged to is the kernel's.
#define SIMT_INLINE inline __attribute__((always_inline))
// The emulator's own memory accesses are not the kernel's.
#define SIMT_UNCHECKED __attribute__((noinline, no_sanitize("thread")))

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

namespace simt {

using Where = std::source_location;

// Abandons the launch, which throws std::runtime_error.
[[noreturn]] void fail(const char* what, Where at);

// Memory of a `__shared__` array, told apart by the address `key`; new and full of NaN in each
// block.
void* shared_memory(const void* key, size_t bytes, size_t alignment, int element_bytes,
                    const char* name);
void* dynamic_shared_memory(int element_bytes, const char* name);

template <class Array, size_t alignment = alignof(Array)>
Array& shared(const void* key, const char* name) {
  using Element = std::remove_all_extents_t<Array>;
  return *static_cast<Array*>(shared_memory(key, sizeof(Array), alignment, sizeof(Element), name));
}

template <class Element>
Element* dynamic_shared(const char* name) {
  return static_cast<Element*>(dynamic_shared_memory(sizeof(Element), name));
}

struct Configuration {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  Where at;
  const char* kernel;
};

void launch(const Configuration& configuration, const void* kernel, void (*thread)(void*),
            void* context);

// The function that a launch's kernel expression means: the one whose parameters are the
// arguments' types, or the only one it can mean.
template <class... Arguments>
struct Kernel {
  using Exact = void (*)(Arguments...);

  static Exact resolve(Exact kernel) { return kernel; }

  template <class... Parameters>
  static auto resolve(void (*kernel)(Parameters...)) {
    return kernel;
  }
};

// `kernel<<<grid, block, shared_bytes, stream>>>(arguments)` becomes
// `Launch(grid, block, shared_bytes, stream).of("kernel", resolver)(arguments)`.
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t = nullptr,
         Where at = Where::current())
      : configuration_{grid, block, shared_bytes, at, nullptr} {}

  template <class Resolver>
  auto of(const char* name, Resolver resolver) {
    configuration_.kernel = name;
    return [configuration = configuration_, resolver](auto... arguments) {
      run(configuration, resolver(arguments...), arguments...);
    };
  }

 private:
  template <class... Parameters>
  static void run(const Configuration& configuration, void (*kernel)(Parameters...),
                  std::type_identity_t<Parameters>... arguments) {
    struct Call {
      void (*kernel)(Parameters...);
      std::tuple<Parameters...> arguments;
    } call{kernel, {arguments...}};
    launch(
        configuration, reinterpret_cast<const void*>(kernel),
        [](void* context) {
          const Call& made = *static_cast<const Call*>(context);
          std::apply(made.kernel, made.arguments);
        },
        &call);
  }

  Configuration configuration_;
};

}  // namespace simt

// cuda_runtime.h keeps this form for nvcc.
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

#include "collectives.h"
#include "intrinsics.h"
#include "memory.h"
#include "tensor_cores.h"
