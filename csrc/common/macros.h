#pragma once

// Small functions that every instruction set's kernels inline into themselves, and the GPU's too.
#if defined(__CUDACC__)
#define GPSEG_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define GPSEG_INLINE inline __attribute__((always_inline))
#else
#define GPSEG_INLINE inline
#endif
