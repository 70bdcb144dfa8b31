// What compilers do not vectorise well, by hand for x86. The caller sees to it that the processor
// has the instructions.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/isa/level.h"

namespace gpseg::vectors {

// Rows of numbers, each `step` after the one before.
template <class T>
struct Rows {
  T* start;
  int64_t step;
};

#if GPSEG_X86_LEVELS

// Copies past the caches; any processor.
void stream(void* to, const void* from, int64_t bytes);

// To be called between `stream` or a streaming `narrow` and the end of a thread's work.
void end_streaming();

#else

inline void stream(void*, const void*, int64_t) {}
inline void end_streaming() {}

#endif

// Copies and conversions, from avx512 on (elsewhere they are not defined): those of dtype.h to the
// bit, but that NaN may keep its payload. Streaming goes past the caches.
void widen(Rows<float> to, Rows<const float> from, int64_t rows, int64_t n);
void widen(Rows<float> to, Rows<const Half> from, int64_t rows, int64_t n);
void widen(Rows<float> to, Rows<const BFloat16> from, int64_t rows, int64_t n);
void narrow(Rows<Half> to, Rows<const float> from, int64_t rows, int64_t n, bool streams);
void narrow(Rows<BFloat16> to, Rows<const float> from, int64_t rows, int64_t n, bool streams);

}  // namespace gpseg::vectors
