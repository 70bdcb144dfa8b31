#include "cpu/isa/level.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace gpseg {
namespace {

IsaLevel initial_level() {
  const char* wanted = std::getenv("GPSEG_CPU_ISA");
  for (const IsaLevel level : kIsaLevels) {
    if (wanted != nullptr && std::strcmp(wanted, name_of(level)) == 0) {
      return std::min(level, supported_isa_level());
    }
  }
  return supported_isa_level();
}

std::atomic<IsaLevel>& current_level() {
  static std::atomic<IsaLevel> level{initial_level()};
  return level;
}

}  // namespace

IsaLevel supported_isa_level() {
#if GPSEG_X86_LEVELS
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return IsaLevel::baseline;
  }
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) {
    return IsaLevel::avx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? IsaLevel::avx512_bf16 : IsaLevel::avx512;
#else
  return IsaLevel::baseline;
#endif
}

IsaLevel isa_level() { return current_level().load(std::memory_order_relaxed); }

void set_isa_level(IsaLevel level) { current_level() = std::min(level, supported_isa_level()); }

}  // namespace gpseg
