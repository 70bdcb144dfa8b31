// Where the kernels that ops.cpp binds run: the CPU (gpseg._C), a GPU (gpseg._cuda, GPSEG_CUDA), or
// the CUDA kernels on the CPU, under the tests' emulator (GPSEG_SIMT).
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <type_traits>

#if defined(GPSEG_CUDA) || defined(GPSEG_SIMT)
#define GPSEG_CUDA_KERNELS
#include "cuda/kernels.h"
#else
#include "common/kernels.h"
#include "common/parallel.h"
#endif

#if defined(GPSEG_CUDA)
#include <torch/csrc/stable/accelerator.h>
#elif defined(GPSEG_SIMT)
#include <stdexcept>
#include <string>
#endif

#if defined(GPSEG_CUDA)
#define GPSEG_LIBRARY gpseg_cuda
#define GPSEG_DISPATCH_KEY CUDA
#elif defined(GPSEG_SIMT)
#define GPSEG_LIBRARY gpseg_simt
#define GPSEG_DISPATCH_KEY CPU
#else
#define GPSEG_LIBRARY gpseg_cpp
#define GPSEG_DISPATCH_KEY CPU
#endif

#if defined(GPSEG_SIMT)
// The emulator's fault finder, as in tests/simt/check.h; does nothing in builds without one.
extern "C" {
void simt_track(const void* p, size_t bytes, int element_bytes, int initialised, const char* name);
void simt_untrack_all();
const char* simt_take_faults();
}
#endif

namespace gpseg {
namespace {

using torch::stable::Tensor;

// Tells the emulator, where there is one, about memory that kernels may touch.
inline void announce(const void* p, int64_t bytes, int element_bytes, bool initialised,
                     const char* name) {
#if defined(GPSEG_SIMT)
  simt_track(p, bytes, element_bytes, initialised, name);
#else
  (void)p, (void)bytes, (void)element_bytes, (void)initialised, (void)name;
#endif
}

#if defined(GPSEG_CUDA_KERNELS)

namespace target = cuda;

// Scratch memory for one call, from torch's allocator; freed memory is reused in stream order only.
class ScratchTensors {
 public:
  explicit ScratchTensors(const Tensor& like) : like_(like) {}

  static void* allocate(void* self, int64_t bytes) {
    auto& scratch = *static_cast<ScratchTensors*>(self);
    STD_TORCH_CHECK(scratch.count_ < kMost, "gpseg: too many scratch buffers in one call");
    auto& held = scratch.held_[scratch.count_++];
    held = torch::stable::new_empty(scratch.like_, {bytes}, torch::headeronly::ScalarType::Byte);
    announce(held->data_ptr(), bytes, 4, false, "scratch memory");
    return held->data_ptr();
  }

 private:
  static constexpr int kMost = 4;
  const Tensor& like_;
  std::optional<Tensor> held_[kMost];
  int count_ = 0;
};

#if defined(GPSEG_CUDA)

// On the device of `on`, and its current stream.
template <class P>
void run(void (*kernel)(const P&, const cuda::Queue&), const std::type_identity_t<P>& p,
         const Tensor& on) {
  const int32_t device = on.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto stream = torch::stable::accelerator::getCurrentStream(device);
  ScratchTensors scratch(on);
  kernel(p, {stream.nativeHandle(), &ScratchTensors::allocate, &scratch});
}

#else

template <class P>
void run(void (*kernel)(const P&, const cuda::Queue&), const std::type_identity_t<P>& p,
         const Tensor& on) {
  ScratchTensors scratch(on);
  std::string faults;
  try {
    kernel(p, {nullptr, &ScratchTensors::allocate, &scratch});
  } catch (const std::exception& error) {
    faults = error.what();
  }
  faults += simt_take_faults();
  simt_untrack_all();
  STD_TORCH_CHECK(faults.empty(), faults);
}

#endif

#else

namespace target = ::gpseg;

template <class P>
void run(void (*kernel)(const P&), const std::type_identity_t<P>& p, const Tensor&) {
  kernel(p);
}

#endif

}  // namespace
}  // namespace gpseg
