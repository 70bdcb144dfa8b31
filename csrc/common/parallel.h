// The host's thread pool, as the torch-free kernels see it.
#pragma once

#include <cstdint>

namespace gpseg {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);

// Calls body on ranges that cover [0, count), at least `grain` items each, on the host's threads.
void parallel_ranges(int64_t count, int64_t grain, RangeBody body, void* context);

template <class Body>
inline void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_ranges(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<Body*>(&body));
}

}  // namespace gpseg
