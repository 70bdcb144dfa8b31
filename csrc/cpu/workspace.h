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
      : block_(floats == 0 ? pool::Block{nullptr, 0}
                           : pool::take(floats * static_cast<int64_t>(sizeof(float)))) {}
  ~Workspace() {
    if (block_.start != nullptr) {
      pool::give(block_);
    }
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* data() const { return static_cast<float*>(block_.start); }

 private:
  pool::Block block_;
};

}  // namespace gpseg
