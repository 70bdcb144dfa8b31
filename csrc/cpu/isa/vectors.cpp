#include "cpu/isa/vectors.h"

#if GPSEG_X86_LEVELS

#if defined(__GNUC__) && !defined(__clang__)
// gcc's own headers, where they ask for a register of any content
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstring>

#define GPSEG_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define GPSEG_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace gpseg::vectors {
namespace {

// Elements before the next address that is a multiple of `alignment`, at most n.
int64_t misaligned(const void* p, int64_t alignment, int64_t element, int64_t n) {
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % alignment);
  const int64_t before = past == 0 ? 0 : (alignment - past) / element;
  return before < n ? before : n;
}

// The first n of 16 lanes.
inline __mmask16 lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

// Row by row, 16 numbers at a time and the rest under a mask.
#define GPSEG_WIDEN(LOAD)                                              \
  for (int64_t row = 0; row < rows; ++row) {                           \
    const auto* source = from.start + row * from.step;                 \
    float* target = to.start + row * to.step;                          \
    int64_t i = 0;                                                     \
    for (; i + 16 <= n; i += 16) {                                     \
      _mm512_storeu_ps(target + i, LOAD(source + i));                  \
    }                                                                  \
    if (i < n) {                                                       \
      const __mmask16 rest = lanes(n - i);                             \
      _mm512_mask_storeu_ps(target + i, rest, LOAD(rest, source + i)); \
    }                                                                  \
  }

#define GPSEG_NARROW(CONVERT)                                                               \
  for (int64_t row = 0; row < rows; ++row) {                                                \
    const float* source = from.start + row * from.step;                                     \
    auto* target = to.start + row * to.step;                                                \
    int64_t i = 0;                                                                          \
    if (streams) {                                                                          \
      i = misaligned(target, 32, 2, n < 15 ? n : 15);                                       \
      const __mmask16 head = lanes(i);                                                      \
      _mm256_mask_storeu_epi16(target, head, CONVERT(_mm512_maskz_loadu_ps(head, source))); \
      for (; i + 16 <= n; i += 16) {                                                        \
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i),                         \
                            CONVERT(_mm512_loadu_ps(source + i)));                          \
      }                                                                                     \
    }                                                                                       \
    for (; i + 16 <= n; i += 16) {                                                          \
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + i),                           \
                          CONVERT(_mm512_loadu_ps(source + i)));                            \
    }                                                                                       \
    if (i < n) {                                                                            \
      const __mmask16 rest = lanes(n - i);                                                  \
      _mm256_mask_storeu_epi16(target + i, rest,                                            \
                               CONVERT(_mm512_maskz_loadu_ps(rest, source + i)));           \
    }                                                                                       \
  }

GPSEG_AVX512 inline __m512 as_it_is(const float* from) { return _mm512_loadu_ps(from); }

GPSEG_AVX512 inline __m512 as_it_is(__mmask16 mask, const float* from) {
  return _mm512_maskz_loadu_ps(mask, from);
}

GPSEG_AVX512 inline __m256i bits(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

GPSEG_AVX512 inline __m512 widened(const Half* from) { return _mm512_cvtph_ps(bits(from)); }

GPSEG_AVX512 inline __m512 widened(__mmask16 mask, const Half* from) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
}

GPSEG_AVX512 inline __m512 upper(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

GPSEG_AVX512 inline __m512 widened(const BFloat16* from) { return upper(bits(from)); }

GPSEG_AVX512 inline __m512 widened(__mmask16 mask, const BFloat16* from) {
  return upper(_mm256_maskz_loadu_epi16(mask, from));
}

GPSEG_AVX512 inline __m256i to_half(__m512 x) {
  return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

GPSEG_AVX512 inline __m256i to_bfloat16(__m512 x) {
  const __m512i all = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(all, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(all, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_mask_or_epi32(rounded, nan, all, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
}

// The instruction takes denormal numbers for zeros, hence those go the other way.
GPSEG_AVX512_BF16 inline __m256i to_bfloat16_natively(__m512 x) {
  constexpr int denormal = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(x, denormal) != 0, 0)) {
    return to_bfloat16(x);
  }
  const __m256bh converted = _mm512_cvtneps_pbh(x);
  __m256i rounded;
  std::memcpy(&rounded, &converted, sizeof(rounded));
  return rounded;
}

GPSEG_AVX512 void narrow_in_steps(Rows<BFloat16> to, Rows<const float> from, int64_t rows,
                                  int64_t n, bool streams){GPSEG_NARROW(to_bfloat16)}

GPSEG_AVX512_BF16 void narrow_natively(Rows<BFloat16> to, Rows<const float> from, int64_t rows,
                                       int64_t n, bool streams) {
  GPSEG_NARROW(to_bfloat16_natively)
}

}  // namespace

void stream(void* to, const void* from, int64_t bytes) {
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
  const int64_t head = misaligned(target, 64, 1, bytes);
  std::memcpy(target, source, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    for (int64_t j = i; j < i + 64; j += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + j)));
    }
  }
  std::memcpy(target + i, source + i, static_cast<size_t>(bytes - i));
}

void end_streaming() { _mm_sfence(); }

GPSEG_AVX512 void widen(Rows<float> to, Rows<const float> from, int64_t rows,
                        int64_t n){GPSEG_WIDEN(as_it_is)}

GPSEG_AVX512
    void widen(Rows<float> to, Rows<const Half> from, int64_t rows, int64_t n){GPSEG_WIDEN(widened)}

GPSEG_AVX512 void widen(Rows<float> to, Rows<const BFloat16> from, int64_t rows,
                        int64_t n){GPSEG_WIDEN(widened)}

GPSEG_AVX512
    void narrow(Rows<Half> to, Rows<const float> from, int64_t rows, int64_t n, bool streams) {
  GPSEG_NARROW(to_half)
}

void narrow(Rows<BFloat16> to, Rows<const float> from, int64_t rows, int64_t n, bool streams) {
  const bool native = isa_level() == IsaLevel::avx512_bf16;
  (native ? narrow_natively : narrow_in_steps)(to, from, rows, n, streams);
}

}  // namespace gpseg::vectors

#endif  // GPSEG_X86_LEVELS
