// Accesses of a stated width, atomics and fences.
//
// g++ may split `*p` of a float4 into four loads, which would spoil the counts: under check, these
// record one access of the full width and copy behind the instrumentation's back.
#pragma once

#include <cstring>

#include "check.h"
#include "simt.h"

namespace simt {

template <class T>
SIMT_INLINE void require_alignment(const T* p, Where at) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) {
    fail("misaligned vector access", at);
  }
}

// Bytes, not a T: the address may be misaligned, which has been reported by then.
template <class T>
SIMT_UNCHECKED void copy_unchecked(T* to, const T* from) {
  char* bytes = reinterpret_cast<char*>(to);
  const char* source = reinterpret_cast<const char*>(from);
  asm("" : "+r"(bytes), "+r"(source));
  std::memcpy(bytes, source, sizeof(T));
}

template <class T>
SIMT_INLINE T load(const T* p, [[maybe_unused]] Where at) {
#if defined(GPSEG_SIMT_CHECK)
  check::access(p, sizeof(T), check::Kind::load, check::here());
  T value;
  copy_unchecked(&value, p);
  return value;
#else
  require_alignment(p, at);
  return *p;
#endif
}

template <class T>
SIMT_INLINE void store(T* p, T value, [[maybe_unused]] Where at) {
#if defined(GPSEG_SIMT_CHECK)
  check::access(p, sizeof(T), check::Kind::store, check::here());
  copy_unchecked(p, &value);
#else
  require_alignment(p, at);
  *p = value;
#endif
}

// One OS thread runs all: nothing comes between the two accesses.
template <class T, class Change>
SIMT_UNCHECKED T modify_unchecked(T* p, Change change) {
  const T old = *p;
  *p = change(old);
  return old;
}

template <class T, class Change>
SIMT_INLINE T modify(T* p, Change change) {
#if defined(GPSEG_SIMT_CHECK)
  check::access(p, sizeof(T), check::Kind::atomic, check::here());
#endif
  return modify_unchecked(p, change);
}

}  // namespace simt

#define SIMT_LOAD(name)                                                     \
  template <class T>                                                        \
  SIMT_INLINE T name(const T* p, simt::Where at = simt::Where::current()) { \
    return simt::load(p, at);                                               \
  }
SIMT_LOAD(__ldg)
SIMT_LOAD(__ldca)
SIMT_LOAD(__ldcg)
SIMT_LOAD(__ldcs)
#undef SIMT_LOAD

#define SIMT_STORE(name)                                           \
  template <class T>                                               \
  SIMT_INLINE void name(T* p, std::type_identity_t<T> value,       \
                        simt::Where at = simt::Where::current()) { \
    simt::store(p, value, at);                                     \
  }
SIMT_STORE(__stcg)
SIMT_STORE(__stcs)
SIMT_STORE(__stwb)
SIMT_STORE(__stwt)
#undef SIMT_STORE

template <class T>
SIMT_INLINE T atomicAdd(T* p, std::type_identity_t<T> value) {
  return simt::modify(p, [value](T old) { return static_cast<T>(old + value); });
}

template <class T>
SIMT_INLINE T atomicMax(T* p, std::type_identity_t<T> value) {
  return simt::modify(p, [value](T old) { return old > value ? old : value; });
}

template <class T>
SIMT_INLINE T atomicMin(T* p, std::type_identity_t<T> value) {
  return simt::modify(p, [value](T old) { return old < value ? old : value; });
}

// Counts up to `last`, then starts again at 0.
inline __attribute__((always_inline)) unsigned atomicInc(unsigned* p, unsigned last) {
  return simt::modify(p, [last](unsigned old) { return old >= last ? 0 : old + 1; });
}

template <class T>
SIMT_INLINE T atomicExch(T* p, std::type_identity_t<T> value) {
  return simt::modify(p, [value](T) { return value; });
}

template <class T>
SIMT_INLINE T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return simt::modify(p, [=](T old) { return old == expected ? value : old; });
}

// What the thread wrote before is seen by whoever sees an atomic that it makes after.
void __threadfence();
inline void __threadfence_block() {}
