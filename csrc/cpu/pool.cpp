#include "cpu/pool.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace gpseg::pool {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t rounded(int64_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

#if defined(__linux__)

// Mapped, so that `unmap` gives it back to the system for certain.
void* map(int64_t bytes) {
  const int64_t room = bytes + kHugePage;
  void* mapped = mmap(nullptr, static_cast<size_t>(room), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    throw std::bad_alloc();
  }
  char* start = static_cast<char*>(mapped);
  const int64_t before = (kHugePage - reinterpret_cast<intptr_t>(start) % kHugePage) % kHugePage;
  if (before > 0) {
    munmap(start, static_cast<size_t>(before));
  }
  munmap(start + before + bytes, static_cast<size_t>(room - before - bytes));
#if defined(MADV_HUGEPAGE)
  madvise(start + before, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a hint: may be refused
#endif
  return start + before;
}

void unmap(void* block, int64_t bytes) { munmap(block, static_cast<size_t>(bytes)); }

#else

void* map(int64_t bytes) {
  return ::operator new(static_cast<size_t>(bytes), std::align_val_t{kHugePage});
}

void unmap(void* block, int64_t) { ::operator delete(block, std::align_val_t{kHugePage}); }

#endif

struct Pool {
  std::mutex mutex;
  std::deque<Block> blocks;  // kept longest first
  int64_t kept = 0;
};

// Never destroyed: tensors may die after the statics do.
Pool& pool() {
  static Pool* const only = new Pool;
#if defined(__linux__)
  // so that no child is born with the mutex held by a thread that it does not have
  static const int registered = pthread_atfork(
      [] { only->mutex.lock(); }, [] { only->mutex.unlock(); }, [] { only->mutex.unlock(); });
  (void)registered;
#endif
  return *only;
}

// Gives blocks back until no more than `most` bytes are kept.
void shrink(Pool& p, int64_t most) {
  while (p.kept > most) {
    const Block oldest = p.blocks.front();
    p.blocks.pop_front();
    p.kept -= oldest.bytes;
    unmap(oldest.start, oldest.bytes);
  }
}

}  // namespace

int64_t limit() {
  static const int64_t bytes = [] {
    const char* megabytes = std::getenv("GPSEG_CPU_CACHE_MB");
    return (megabytes == nullptr ? int64_t{256} : std::max<int64_t>(std::atoll(megabytes), 0))
           << 20;
  }();
  return bytes;
}

Block take(int64_t bytes) {
  bytes = rounded(bytes);
  Pool& p = pool();
  {
    const std::lock_guard lock(p.mutex);
    // the smallest that does, and is not far too large; of equals the one given back last, which is
    // the likeliest to be in the cache still
    auto best = p.blocks.rend();
    for (auto i = p.blocks.rbegin(); i != p.blocks.rend(); ++i) {
      const bool fits = i->bytes >= bytes && i->bytes <= 2 * bytes;
      if (fits && (best == p.blocks.rend() || i->bytes < best->bytes)) {
        best = i;
      }
    }
    if (best != p.blocks.rend()) {
      const Block block = *best;
      p.blocks.erase(std::next(best).base());
      p.kept -= block.bytes;
      return block;
    }
    // what is kept and does not fit makes room, so that less is in use at the worst moment
    shrink(p, std::max<int64_t>(p.kept - bytes, 0));
  }
  return {map(bytes), bytes};
}

void give(const Block& block) {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.blocks.push_back(block);
  p.kept += block.bytes;
  shrink(p, limit());
}

int64_t kept() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  return p.kept;
}

void clear() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  shrink(p, 0);
}

}  // namespace gpseg::pool
