// Memory for large results, kept for the next ones.
//
// malloc maps large blocks afresh each time, and the first touch of their pages costs several times
// what a kernel does. Blocks are cut here from regions of huge pages, and a page that a block gave
// back serves the next block that covers it, whatever their sizes.
#pragma once

#include <cstdint>

namespace gpseg::pool {

// At most so many bytes are kept: the environment variable GPSEG_CPU_CACHE_MB, by default a
// sixteenth of the memory, or 1 GiB if that is less. With 0 all is left to malloc.
int64_t limit();

struct Block {
  void* start;
  int64_t bytes;
};

// Uninitialised memory for at least `bytes` > 0, aligned to huge pages; throws std::bad_alloc.
Block take(int64_t bytes);

// Takes a block back. Pages above the limit go back to the system.
void give(const Block& block);

// Bytes that are kept now.
int64_t kept();

// Gives all that is kept back to the system.
void clear();

}  // namespace gpseg::pool
