// What compilers do not vectorise well, by hand for x86. The caller sees to it that the processor
// has the instructions.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/isa/level.h"

namespace gpseg::vectors {

#if GPSEG_X86_LEVELS

// Copies past the caches; any processor.
void stream(void* to, const void* from, int64_t bytes);

// To be called between `stream` or a streaming `narrow` and the end of a thread's work.
void end_streaming();

// Conversions, from avx512 on: those of dtype.h to the bit, but that NaN may keep its payload.
// Streaming goes past the caches.
void widen(float* to, const Half* from, int64_t n);
void widen(float* to, const BFloat16* from, int64_t n);
void narrow(Half* to, const float* from, int64_t n, bool streams);
void narrow(BFloat16* to, const float* from, int64_t n, bool streams);

#else

inline void stream(void*, const void*, int64_t) {}
inline void end_streaming() {}
inline void widen(float*, const Half*, int64_t) {}
inline void widen(float*, const BFloat16*, int64_t) {}
inline void narrow(Half*, const float*, int64_t, bool) {}
inline void narrow(BFloat16*, const float*, int64_t, bool) {}

#endif

}  // namespace gpseg::vectors
