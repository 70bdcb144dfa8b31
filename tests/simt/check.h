// What the emulator tells the fault finder (check.cpp), and what callers ask of it. In builds
// without it every function is there and does nothing.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// A buffer that kernels may touch: exactly `bytes` bytes, in elements of `element_bytes`. One that
// is not `initialised` must be written before it is read. `name` is what faults call it.
void simt_track(const void* p, size_t bytes, int element_bytes, int initialised, const char* name);
void simt_untrack_all(void);

// The faults since the last call, a line each; "" if there are none.
const char* simt_take_faults(void);

// From here on, count what each source line's accesses cost; the table so far, as JSON.
void simt_count_start(void);
const char* simt_count_json(void);
}

namespace simt::check {

// `copy_begin` and `copy_end` are the two ends of a cp.async at its destination.
enum class Kind : uint8_t { load, store, atomic, copy_begin, copy_end };

#if defined(GPSEG_SIMT_CHECK)

// An address within the caller, by which an access finds its source line.
__attribute__((noinline)) void* here();

void access(const void* p, size_t bytes, Kind kind, void* pc);
void begin_launch();
void begin_block(uint32_t linear_block);
void end_block();
void end_launch();
void add_shared(const void* p, size_t bytes, int element_bytes, const char* name);

#else

inline void* here() { return nullptr; }
inline void access(const void*, size_t, Kind, void*) {}
inline void begin_launch() {}
inline void begin_block(uint32_t) {}
inline void end_block() {}
inline void end_launch() {}
inline void add_shared(const void*, size_t, int, const char*) {}

#endif

}  // namespace simt::check
