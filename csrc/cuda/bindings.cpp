// The module gpseg._cuda: with what, and for which GPUs, it was built. Importing it registers the
// ops of ops.cpp; it touches no GPU.
#include <cuda_occupancy.h>
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/kernels.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::list archs;
  std::istringstream names(GPSEG_CUDA_ARCHS);
  for (std::string name; std::getline(names, name, ',');) {
    archs.append(name);
  }
  py::dict info;
  info["nvcc"] = GPSEG_NVCC_VERSION;
  info["cuda"] = CUDART_VERSION;
  info["archs"] = archs;
  return info;
}

// Blocks that a multiprocessor holds at once, and the share of its threads that they are: NVIDIA's
// calculator on what the programming guide says of the data-centre GPUs.
std::pair<int, double> occupancy(std::pair<int, int> capability, int registers, int threads,
                                 int static_shared, int dynamic_shared) {
  const auto [major, minor] = capability;
  if (minor != 0 || (major != 8 && major != 9 && major != 10)) {
    throw std::invalid_argument("occupancy is known for compute capabilities 8.0, 9.0 and 10.0");
  }
  constexpr int kReserved = 1024;  // of each block's shared memory
  cudaOccDeviceProp gpu;
  gpu.computeMajor = major;
  gpu.computeMinor = minor;
  gpu.maxThreadsPerBlock = 1024;
  gpu.maxThreadsPerMultiprocessor = 2048;
  gpu.regsPerBlock = gpu.regsPerMultiprocessor = 64 << 10;
  gpu.warpSize = 32;
  gpu.sharedMemPerBlock = 48 << 10;
  gpu.sharedMemPerMultiprocessor = (major == 8 ? 164 : 228) << 10;
  gpu.sharedMemPerBlockOptin = gpu.sharedMemPerMultiprocessor - kReserved;
  gpu.reservedSharedMemPerBlock = kReserved;
  gpu.numSms = 1;

  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = threads;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = static_shared;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = gpu.sharedMemPerBlockOptin - static_shared;
  kernel.numBlockBarriers = 1;

  const cudaOccDeviceState state;
  cudaOccResult result;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state, threads,
                                              dynamic_shared) != CUDA_OCC_SUCCESS) {
    throw std::invalid_argument("no kernel can have these attributes");
  }
  const int blocks = result.activeBlocksPerMultiprocessor;
  return {blocks, double(blocks) * threads / gpu.maxThreadsPerMultiprocessor};
}

// How upfirdn2d cuts square images that it makes, with a filter of taps x taps, or of `taps` along
// both axes.
py::dict upfirdn2d_plan(const std::string& dtype, bool channels_last, int64_t n, int64_t c,
                        int64_t size, int64_t up, int64_t down, int64_t taps, bool separable) {
  const auto* const name =
      std::find(std::begin(gpseg::kDTypeNames), std::end(gpseg::kDTypeNames), dtype);
  if (name == std::end(gpseg::kDTypeNames)) {
    throw std::invalid_argument("no kernel for " + dtype);
  }
  const double filter = 0;  // that there is one is all that a plan asks
  gpseg::Upfirdn2d p{};
  p.dtype = static_cast<gpseg::DType>(name - std::begin(gpseg::kDTypeNames));
  p.n = n;
  p.c = c;
  p.channels_last = channels_last;
  p.x = p.y = {size * down / up, size, up, down, 0};
  p.filter = &filter;
  p.filter_h = separable ? 0 : taps;
  p.filter_w = taps;
  const auto plan = gpseg::cuda::upfirdn2d_plan(p);
  py::dict result;
  result["instance"] = gpseg::cuda::upfirdn2d_instance(p);
  result["blocks"] = plan.blocks;
  result["threads"] = plan.threads;
  result["shared_bytes"] = plan.shared_bytes;
  return result;
}

// How the tensor-core kernel cuts a 3x3 layer on square images, float16.
py::dict fused_conv_plan(int64_t n, int64_t in_c, int64_t out_c, int64_t size, bool scaled,
                         int multiprocessors) {
  const float style = 0;  // that there is one is all that a plan asks
  gpseg::cuda::FusedConv p{};
  p.dtype = gpseg::DType::float16;
  p.n = n;
  p.in_h = p.in_w = p.out_h = p.out_w = size;
  p.in_c = in_c;
  p.out_c = out_c;
  p.kernel_h = p.kernel_w = 3;
  p.stride = 1;
  p.pad_y = p.pad_x = 1;
  p.style = scaled ? &style : nullptr;
  const auto plan = gpseg::cuda::fused_conv_plan(p, multiprocessors);
  py::dict result;
  result["tile"] = std::pair(plan.tile_pixels, plan.tile_channels);
  result["blocks"] = plan.blocks;
  result["shared_bytes"] = plan.shared_bytes;
  return result;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() =
      "With what, and for which GPUs, the CUDA kernels were built; registers them with torch.";
  m.def("build_info", &build_info,
        "Version of nvcc, of the CUDA runtime linked in (13000 for 13.0), and the architectures: "
        "sm_90 "
        "runs on GPUs of 9.0 and later 9.x, compute_100 is PTX for every GPU from 10.0 on.");
  m.def("occupancy", &occupancy, py::arg("capability"), py::arg("registers"), py::arg("threads"),
        py::arg("static_shared"), py::arg("dynamic_shared"),
        "Blocks of a kernel on one multiprocessor, and the share of its threads that they are.");
  m.def("upfirdn2d_plan", &upfirdn2d_plan, py::arg("dtype"), py::arg("channels_last"), py::arg("n"),
        py::arg("c"), py::arg("size"), py::arg("up"), py::arg("down"), py::arg("taps"),
        py::arg("separable"),
        "The instance that makes images of this size, its blocks, their threads and their bytes of "
        "shared memory.");
  m.def("fused_conv_plan", &fused_conv_plan, py::arg("n"), py::arg("in_c"), py::arg("out_c"),
        py::arg("size"), py::arg("scaled"), py::arg("multiprocessors"),
        "The tile (pixels, channels) of the tensor-core kernel for a 3x3 layer, its blocks and "
        "their "
        "bytes of shared memory.");
}
