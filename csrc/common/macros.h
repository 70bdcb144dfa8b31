#pragma once

// Small functions that every instruction set's kernels inline into themselves.
#if defined(__GNUC__) || defined(__clang__)
#define GPSEG_INLINE inline __attribute__((always_inline))
#else
#define GPSEG_INLINE inline
#endif
