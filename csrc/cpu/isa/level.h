// Instruction sets: one is chosen at run time, and each kernel is compiled for all of them.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define GPSEG_X86_LEVELS 1
#else
#define GPSEG_X86_LEVELS 0
#endif

namespace gpseg {

// avx512_bf16 is avx512 with an instruction for rounding to bfloat16, in isa/vectors.cpp.
enum class IsaLevel { baseline, avx2, avx512, avx512_bf16 };

constexpr IsaLevel kIsaLevels[] = {IsaLevel::baseline, IsaLevel::avx2, IsaLevel::avx512,
                                   IsaLevel::avx512_bf16};
constexpr IsaLevel kHighestIsaLevel = GPSEG_X86_LEVELS ? IsaLevel::avx512_bf16 : IsaLevel::baseline;

constexpr const char* name_of(IsaLevel level) {
  constexpr const char* names[] = {"baseline", "avx2", "avx512", "avx512_bf16"};
  return names[static_cast<int>(level)];
}

// The highest level that this processor has.
IsaLevel supported_isa_level();

// The level in use: the highest supported one, or lower if the environment variable GPSEG_CPU_ISA
// or `set_isa_level` says so.
IsaLevel isa_level();

// A level that the processor lacks is lowered to the highest supported one.
void set_isa_level(IsaLevel level);

}  // namespace gpseg

// Calls function(...) as compiled for the level in use.
#if GPSEG_X86_LEVELS
#define GPSEG_DISPATCH(function, ...)         \
  switch (::gpseg::isa_level()) {             \
    case ::gpseg::IsaLevel::avx512_bf16:      \
    case ::gpseg::IsaLevel::avx512:           \
      return avx512::function(__VA_ARGS__);   \
    case ::gpseg::IsaLevel::avx2:             \
      return avx2::function(__VA_ARGS__);     \
    case ::gpseg::IsaLevel::baseline:         \
      return baseline::function(__VA_ARGS__); \
  }
#else
#define GPSEG_DISPATCH(function, ...) return baseline::function(__VA_ARGS__)
#endif
