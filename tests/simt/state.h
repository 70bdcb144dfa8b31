// Where the running launch stands, as the fault finder needs to know it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

constexpr int kMostThreads = 1024;  // in a block
constexpr int kWarpSize = 32;

struct State {
  bool in_kernel = false;   // a CUDA thread runs, not the host
  int thread = 0;           // its linear index in the block
  uint32_t barriers = 0;    // how many the block has passed
  uint32_t warp_syncs = 0;  // how many __syncwarp of the whole warp the thread has passed
  uint32_t fence = 0;       // of the thread: 1 + barriers at its last __threadfence, or 0
  const char* stacks = nullptr;
  size_t stacks_bytes = 0;
};

extern State state;

// Ends the launch, which throws std::runtime_error: for who has told the rest elsewhere.
[[noreturn]] void abandon(const char* why);

}  // namespace simt
