// Large temporary memory that outlives the calls that use it.
#pragma once

#include <cstdint>

namespace gpseg {

// An uninitialised block, which starts on a cache line and goes back to a process-wide store when
// its holder goes: the system would hand out fresh pages, zeroed one by one, at every call.
class Workspace {
 public:
  explicit Workspace(int64_t floats);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* data() const { return static_cast<float*>(block_); }

 private:
  void* block_;
  int64_t bytes_;
};

}  // namespace gpseg
