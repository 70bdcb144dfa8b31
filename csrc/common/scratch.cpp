#include "common/scratch.h"

#include <cstddef>
#include <new>

namespace gpseg {
namespace {

constexpr std::align_val_t kCacheLine{64};

// Precedes each array, and fills a cache line.
struct alignas(64) Header {
  void* previous;
};

}  // namespace

Scratch::~Scratch() {
  while (last_ != nullptr) {
    void* previous = static_cast<Header*>(last_)->previous;
    ::operator delete(last_, kCacheLine);
    last_ = previous;
  }
}

void* Scratch::take_bytes(int64_t bytes) {
  void* block = ::operator new(sizeof(Header) + static_cast<size_t>(bytes), kCacheLine);
  last_ = new (block) Header{last_};
  return static_cast<Header*>(block) + 1;
}

}  // namespace gpseg
