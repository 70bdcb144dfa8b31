#include "cpu/workspace.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <mutex>
#include <new>
#include <vector>

namespace gpseg {
namespace {

constexpr std::align_val_t kAlignment{int64_t{2} << 20};  // a large page
constexpr int64_t kKept = int64_t{128} << 20;  // bytes that wait for the next call at most

struct Block {
  void* start;
  int64_t bytes;
};

struct Store {
  std::mutex lock;
  std::vector<Block> blocks;
  int64_t bytes = 0;
};

Store& store() {
  static auto* const kept = new Store;  // never destroyed: a thread may still return its block
  return *kept;
}

}  // namespace

Workspace::Workspace(int64_t floats) : block_(nullptr), bytes_(floats * 4) {
  {
    Store& kept = store();
    const std::lock_guard guard(kept.lock);
    auto best = kept.blocks.end();
    for (auto it = kept.blocks.begin(); it != kept.blocks.end(); ++it) {
      if (it->bytes >= bytes_ && (best == kept.blocks.end() || it->bytes < best->bytes)) {
        best = it;
      }
    }
    if (best != kept.blocks.end()) {
      block_ = best->start;
      bytes_ = best->bytes;
      kept.bytes -= bytes_;
      kept.blocks.erase(best);
      return;
    }
  }
  block_ = ::operator new(static_cast<size_t>(bytes_), kAlignment);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(block_, static_cast<size_t>(bytes_), MADV_HUGEPAGE);  // a hint: may be refused
#endif
}

Workspace::~Workspace() {
  {
    Store& kept = store();
    const std::lock_guard guard(kept.lock);
    if (kept.bytes + bytes_ <= kKept) {
      kept.blocks.push_back({block_, bytes_});
      kept.bytes += bytes_;
      return;
    }
  }
  ::operator delete(block_, kAlignment);
}

}  // namespace gpseg
