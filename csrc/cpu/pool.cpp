#include "cpu/pool.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace gpseg::pool {
namespace {

constexpr int64_t kPage = int64_t{2} << 20;  // bytes of a huge page

int64_t pages_of(int64_t bytes) { return (bytes + kPage - 1) / kPage; }

Block allocated(int64_t bytes) {
  return {::operator new(static_cast<size_t>(bytes), std::align_val_t{kPage}), bytes};
}

void free_allocated(const Block& block) { ::operator delete(block.start, std::align_val_t{kPage}); }

int64_t default_limit() {
  constexpr int64_t most = int64_t{1} << 30;
#if defined(__linux__)
  return std::min(most, int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE) / 16);
#else
  return most;
#endif
}

}  // namespace

int64_t limit() {
  static const int64_t bytes = [] {
    const char* megabytes = std::getenv("GPSEG_CPU_CACHE_MB");
    return megabytes == nullptr ? default_limit()
                                : std::max<int64_t>(std::atoll(megabytes), 0) << 20;
  }();
  return bytes;
}

#if defined(__linux__)

namespace {

constexpr int64_t kRegion =
    128;  // pages of a region, unless a block needs more; mapped, not yet memory

// What a page is: kUsed by a block; kFresh, no block's and no memory behind it; else no block's but
// touched, and given back as the so-manieth.
using Page = int64_t;
constexpr Page kUsed = -1, kFresh = 0;

struct Region {
  char* start;
  std::vector<Page> pages;
};

struct Place {
  size_t region;
  int64_t page;
};

class Pool {
 public:
  std::mutex mutex;

  int64_t kept() const { return kept_ * kPage; }

  Block take(int64_t pages) {
    const Place place = find(pages);
    Region& region = regions_[place.region];
    const auto first = region.pages.begin() + place.page;
    const int64_t fresh = std::count(first, first + pages, kFresh);
    kept_ -= pages - fresh;
    std::fill(first, first + pages, kUsed);
    return {region.start + place.page * kPage, pages * kPage};
  }

  void give(const Block& block) {
    const auto region = std::find_if(regions_.begin(), regions_.end(), [&](const Region& r) {
      const auto at = static_cast<char*>(block.start) - r.start;
      return at >= 0 && at < static_cast<int64_t>(r.pages.size()) * kPage;
    });
    const int64_t pages = block.bytes / kPage;
    const auto first =
        region->pages.begin() + (static_cast<char*>(block.start) - region->start) / kPage;
    std::fill(first, first + pages, ++given_);
    kept_ += pages;
    shrink(limit() / kPage);
  }

  // Gives pages back to the system, the last ones first, until no more than `most` are kept.
  void shrink(int64_t most) {
    for (size_t i = regions_.size(); i-- > 0 && kept_ > most;) {
      Region& region = regions_[i];
      for (auto end = static_cast<int64_t>(region.pages.size()); end > 0 && kept_ > most;) {
        int64_t first = end;
        while (first > 0 && region.pages[first - 1] > kFresh && kept_ > most) {
          region.pages[--first] = kFresh;
          --kept_;
        }
        if (first < end) {
          madvise(region.start + first * kPage, (end - first) * kPage, MADV_DONTNEED);
        }
        end = std::min(first, end - 1);
      }
      if (std::count(region.pages.begin(), region.pages.end(), kFresh) ==
          static_cast<int64_t>(region.pages.size())) {
        munmap(region.start, region.pages.size() * kPage);
        regions_.erase(regions_.begin() + static_cast<int64_t>(i));
      }
    }
  }

 private:
  // Where a block needs the fewest fresh pages; of equals where the page given back first was given
  // back last, and is the likeliest to be in the cache still.
  Place find(int64_t pages) {
    Place best{0, -1};
    auto least = std::make_tuple(pages + 1, Page{0});
    for (size_t i = 0; i < regions_.size(); ++i) {
      const std::vector<Page>& all = regions_[i].pages;
      const auto count = static_cast<int64_t>(all.size());
      int64_t free = 0, fresh = 0;
      for (int64_t page = 0; page < count; ++page) {
        if (all[page] == kUsed) {
          free = fresh = 0;
          continue;
        }
        fresh += all[page] == kFresh;
        if (++free < pages) {
          continue;
        }
        const auto first = all.begin() + (page - pages + 1);
        if (fresh <= std::get<0>(least)) {
          const auto cost = std::make_tuple(fresh, -*std::min_element(first, first + pages));
          if (cost < least) {
            least = cost;
            best = {i, page - pages + 1};
          }
        }
        fresh -= *first == kFresh;
      }
    }
    return best.page >= 0 ? best : Place{map(pages), 0};
  }

  // A new region for a block; its index. Where memory is tight, no larger than it has to be.
  size_t map(int64_t needed) {
    int64_t pages = std::max(needed, kRegion);
    void* mapped = mapped_pages(pages + 1);
    if (mapped == MAP_FAILED) {
      shrink(0);
      pages = needed;
      mapped = mapped_pages(pages + 1);
    }
    if (mapped == MAP_FAILED) {
      throw std::bad_alloc();
    }
    const int64_t bytes = pages * kPage, room = bytes + kPage;
    char* start = static_cast<char*>(mapped);
    const int64_t before = (kPage - reinterpret_cast<intptr_t>(start) % kPage) % kPage;
    if (before > 0) {
      munmap(start, static_cast<size_t>(before));
    }
    start += before;
    munmap(start + bytes, static_cast<size_t>(room - before - bytes));
#if defined(MADV_HUGEPAGE)
    madvise(start, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a hint: may be refused
#endif
    regions_.push_back({start, std::vector<Page>(static_cast<size_t>(pages), kFresh)});
    return regions_.size() - 1;
  }

  static void* mapped_pages(int64_t pages) {
    return mmap(nullptr, static_cast<size_t>(pages * kPage), PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }

  std::vector<Region> regions_;
  int64_t kept_ = 0;  // pages
  Page given_ = 0;    // blocks given back so far
};

// Never destroyed: tensors may die after the statics do.
Pool& pool() {
  static Pool* const only = new Pool;
  // so that no child is born with the mutex held by a thread that it does not have
  static const int registered = pthread_atfork(
      [] { only->mutex.lock(); }, [] { only->mutex.unlock(); }, [] { only->mutex.unlock(); });
  (void)registered;
  return *only;
}

}  // namespace

Block take(int64_t bytes) {
  if (limit() == 0) {
    return allocated(bytes);
  }
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  return p.take(pages_of(bytes));
}

void give(const Block& block) {
  if (limit() == 0) {
    return free_allocated(block);
  }
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.give(block);
}

int64_t kept() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  return p.kept();
}

void clear() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  p.shrink(0);
}

#else  // elsewhere nothing is kept

Block take(int64_t bytes) { return allocated(bytes); }

void give(const Block& block) { free_allocated(block); }

int64_t kept() { return 0; }

void clear() {}

#endif

}  // namespace gpseg::pool
