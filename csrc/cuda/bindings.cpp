// The module gpseg._cuda: with what, and for which GPUs, it was built. Importing it registers the
// ops of ops.cpp; it touches no GPU.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

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

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() =
      "With what, and for which GPUs, the CUDA kernels were built; registers them with torch.";
  m.def("build_info", &build_info,
        "Version of nvcc, of the CUDA runtime linked in (13000 for 13.0), and the architectures: "
        "sm_90 "
        "runs on GPUs of 9.0 and later 9.x, compute_100 is PTX for every GPU from 10.0 on.");
}
