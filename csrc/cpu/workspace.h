// Temporary memory from the pool of large results: fresh pages would cost more than what is done
// in them.
#pragma once

#include <cstdint>

#include "cpu/pool.h"

namespace gpseg {

// Uninitialised, and given back with its holder; aligned to huge pages.
class Workspace {
 public:
  explicit Workspace(int64_t floats)
      : bytes_(floats * static_cast<int64_t>(sizeof(float))),
        start_(bytes_ == 0 ? nullptr : pool::take(bytes_)) {}
  ~Workspace() {
    if (start_ != nullptr) {
      pool::give(start_, bytes_);
    }
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* data() const { return static_cast<float*>(start_); }

 private:
  int64_t bytes_;
  void* start_;
};

}  // namespace gpseg
