// mma.sync.m16n8k16, ldmatrix.x4 and cp.async, by the fragment layouts of the PTX manual.
#pragma once

#include "check.h"
#include "simt.h"

namespace simt {

enum class Operand { float16, bfloat16 };

void warp_mma(Operand type, float* d, const uint32_t* a, const uint32_t* b, Where at);
void warp_ldmatrix(uint32_t* r, const void* row, bool transposed, Where at);
void begin_copy(void* to, const void* from, bool valid, void* pc, Where at);

// d += a * b with a [16, 16], b [16, 8], summed in float64 and rounded once.
template <class T>
SIMT_INLINE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Where at = Where::current()) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  warp_mma(std::is_same_v<T, __half> ? Operand::float16 : Operand::bfloat16, d, a, b, at);
}

SIMT_INLINE void ldmatrix_x4(uint32_t (&r)[4], const void* row, Where at = Where::current()) {
  check::access(row, 16, check::Kind::load, check::here());
  warp_ldmatrix(r, row, false, at);
}

SIMT_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Where at = Where::current()) {
  check::access(row, 16, check::Kind::load, check::here());
  warp_ldmatrix(r, row, true, at);
}

// The destination is NaN from here to the wait that completes the copy, so that reading it before
// and refilling it while others read both show in the result.
SIMT_INLINE void cp_async16(void* to, const void* from, bool valid, Where at = Where::current()) {
  begin_copy(to, from, valid, check::here(), at);
}

void cp_async_commit();
void cp_async_wait(int pending);

}  // namespace simt
