// Compiles the file GPSEG_KERNEL once per instruction set, in the namespaces baseline, avx2 and
// avx512. In each, kHandVectors says whether the conversions of isa/vectors.h can be used.
//
// No include guard, and the kernel file includes no header: what a header defines must be compiled
// for the baseline only, lest the linker keep a copy that the processor can't run.
#include "cpu/isa/level.h"
#include "cpu/isa/vectors.h"

#define GPSEG_VECTOR_BYTES 16
namespace gpseg::baseline {
constexpr bool kHandVectors = false;
#include GPSEG_KERNEL
}  // namespace gpseg::baseline
#undef GPSEG_VECTOR_BYTES

#if GPSEG_X86_LEVELS

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define GPSEG_VECTOR_BYTES 32
namespace gpseg::avx2 {
constexpr bool kHandVectors = false;
#include GPSEG_KERNEL
}  // namespace gpseg::avx2
#undef GPSEG_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define GPSEG_VECTOR_BYTES 64
namespace gpseg::avx512 {
constexpr bool kHandVectors = true;
#include GPSEG_KERNEL
}  // namespace gpseg::avx512
#undef GPSEG_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // GPSEG_X86_LEVELS

#undef GPSEG_KERNEL
