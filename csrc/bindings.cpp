// The module gpseg._C: what was built, and for which processors. Importing it registers the ops of
// ops.cpp.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/isa/level.h"
#include "cpu/pool.h"

namespace py = pybind11;

namespace {

using gpseg::IsaLevel;

py::list compiled_isa_levels() {
  py::list levels;
  for (const IsaLevel level : gpseg::kIsaLevels) {
    if (level <= gpseg::kHighestIsaLevel) {
      levels.append(gpseg::name_of(level));
    }
  }
  return levels;
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["isa_compiled"] = compiled_isa_levels();
  info["isa_supported"] = gpseg::name_of(gpseg::supported_isa_level());
  info["isa"] = gpseg::name_of(gpseg::isa_level());
  return info;
}

void set_isa(const std::string& name) {
  for (const IsaLevel level : gpseg::kIsaLevels) {
    if (name == gpseg::name_of(level) && level <= gpseg::supported_isa_level()) {
      gpseg::set_isa_level(level);
      return;
    }
  }
  throw py::value_error("no instruction set \"" + name + "\" here");
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "What was built, and for which processors; registers the C++ kernels with torch.";
  m.def("build_info", &build_info,
        "Compiler, and instruction sets: compiled, supported here and in use.");
  m.def(
      "set_isa", &set_isa, py::arg("name"),
      "Use the kernels for this instruction set; raises ValueError where the processor lacks it.");
  m.def("cache_limit", &gpseg::pool::limit, "Bytes of freed results that are kept at most.");
  m.def("cached_bytes", &gpseg::pool::kept, "Bytes of freed results that are kept now.");
  m.def("empty_cache", &gpseg::pool::clear, "Give the memory of freed results back to the system.");
}
