// Temporary memory for one thread's share of a kernel.
#pragma once

#include <cstdint>

namespace gpseg {

// Hands out uninitialised arrays that start on cache lines and live as long as it does.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  void* take_bytes(int64_t bytes);

  void* last_ = nullptr;
};

}  // namespace gpseg
