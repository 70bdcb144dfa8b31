// Barriers and warp collectives. Each call's line is kept for the message when threads don't meet.
#pragma once

#include "simt.h"

namespace simt {

constexpr uint32_t kFullMask = 0xffffffffu;

// Waits for the whole block; returns for how many threads `predicate` held.
int barrier(bool predicate, Where at);

// The value that lane `source` passed.
void shuffle(uint32_t mask, const char* name, void* value, size_t bytes, int source, Where at);
uint32_t ballot(uint32_t mask, const char* name, bool predicate, Where at);
void warp_barrier(uint32_t mask, Where at);

int lane();

template <class T>
T shuffled(uint32_t mask, const char* name, T value, int source, Where at) {
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  shuffle(mask, name, &value, sizeof(T), source, at);
  return value;
}

// The first lane of this lane's segment of `width` lanes.
inline int segment(int width) { return lane() & ~(width - 1); }

}  // namespace simt

inline void __syncthreads(simt::Where at = simt::Where::current()) { simt::barrier(false, at); }

inline int __syncthreads_count(int predicate, simt::Where at = simt::Where::current()) {
  return simt::barrier(predicate != 0, at);
}

inline int __syncthreads_or(int predicate, simt::Where at = simt::Where::current()) {
  return simt::barrier(predicate != 0, at) != 0;
}

inline int __syncthreads_and(int predicate, simt::Where at = simt::Where::current()) {
  return simt::barrier(predicate == 0, at) == 0;
}

inline void __syncwarp(uint32_t mask = simt::kFullMask, simt::Where at = simt::Where::current()) {
  simt::warp_barrier(mask, at);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
              simt::Where at = simt::Where::current()) {
  const int from = simt::segment(width) + (source & (width - 1));
  return simt::shuffled(mask, "__shfl_sync", value, from, at);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 simt::Where at = simt::Where::current()) {
  const int from = simt::lane() - static_cast<int>(delta);
  return simt::shuffled(mask, "__shfl_up_sync", value,
                        from < simt::segment(width) ? simt::lane() : from, at);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   simt::Where at = simt::Where::current()) {
  const int from = simt::lane() + static_cast<int>(delta);
  return simt::shuffled(mask, "__shfl_down_sync", value,
                        from >= simt::segment(width) + width ? simt::lane() : from, at);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32,
                  simt::Where at = simt::Where::current()) {
  const int from = simt::lane() ^ bits;
  return simt::shuffled(mask, "__shfl_xor_sync", value,
                        from >= simt::segment(width) + width ? simt::lane() : from, at);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              simt::Where at = simt::Where::current()) {
  return simt::ballot(mask, "__ballot_sync", predicate != 0, at);
}

inline int __any_sync(uint32_t mask, int predicate, simt::Where at = simt::Where::current()) {
  return simt::ballot(mask, "__any_sync", predicate != 0, at) != 0;
}

inline int __all_sync(uint32_t mask, int predicate, simt::Where at = simt::Where::current()) {
  return simt::ballot(mask, "__all_sync", predicate == 0, at) == 0;
}
