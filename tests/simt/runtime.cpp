// The scheduler: fibers, barriers, warp collectives, shared memory, asynchronous copies, and the
// part of the host API that launchers use. Not instrumented: the kernels are.
#include "check.h"
#include "simt.h"
#include "state.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx{0, 0, 0};
uint3 blockIdx{0, 0, 0};
dim3 blockDim{1, 1, 1};
dim3 gridDim{1, 1, 1};

// Saves the callee-saved registers and the stack pointer at *from, and takes up what `to` saved.
extern "C" void simt_switch_stacks(void** from, void* to);
asm(R"(
.text
.type simt_switch_stacks, @function
.hidden simt_switch_stacks
.globl simt_switch_stacks
simt_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stacks, .-simt_switch_stacks
)");

namespace simt {

State state;

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kGuardBytes = 4 << 10;
constexpr size_t kSharedWithoutOptIn = 48 << 10;
constexpr size_t kMostShared = 227 << 10;
constexpr size_t kSharedAlignment = 128;  // of dynamic shared memory; arrays have their own
constexpr int kGroupsPerWarp = 4;
constexpr int kProcessors = 132;
// Behind each shared array. None for AddressSanitizer, which guards the end itself; elsewhere an
// overrun must not take the process with it.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kSlackBytes = 0;
#else
constexpr size_t kSlackBytes = 4 << 10;
#endif

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

struct Copy {
  void* to;
  const void* from;
  bool valid;
  void* pc;
  Where at;
};

struct Thread {
  enum class Progress { ready, waiting, done };

  uint3 index{};
  int linear = 0;
  Progress progress = Progress::ready;
  Fiber* fiber = nullptr;  // null until it first runs
  const char* waits_in = "";
  Where waits_at;
  uint32_t warp_syncs = 0;
  uint32_t fence = 0;
  std::vector<Copy> copies;        // under way, oldest first
  std::vector<size_t> group_ends;  // of committed groups, as counts of copies
};

// Lanes that meet in a collective. What is passed alternates between two halves: a lane may enter
// the next collective before others have picked up the results of this one.
struct Group {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  uint32_t met = 0;  // how often
  const char* name = "";
  struct Exchange {
    alignas(16) unsigned char passed[kWarpSize][32];
    alignas(16) unsigned char result[kWarpSize][32];
  } exchange[2];
};

struct Warp {
  Group groups[kGroupsPerWarp];
  int count = 0;
};

struct SharedArray {
  const void* key;
  void* allocated;
  void* memory;
  size_t bytes;
};

std::string line_of(Where at) {
  const std::string_view file = at.file_name();
  return std::string(file.substr(file.rfind('/') + 1)) + ":" + std::to_string(at.line());
}

std::string triple(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

class Scheduler {
 public:
  void launch(const Configuration& configuration, void (*thread)(void*), void* context);
  [[noreturn]] void fail(const std::string& what, Where at);
  [[noreturn]] void abandon(std::string failure);

  Thread& current() { return *current_; }
  int block_barrier(bool predicate, Where at);
  // Waits for the lanes of `mask`; the last to arrive calls `combine`.
  Group::Exchange& meet(uint32_t mask, const char* name, const void* passed, size_t bytes, Where at,
                        void (*combine)(Group::Exchange&) = nullptr, bool orders_memory = false);
  void* shared_memory(const void* key, size_t bytes, size_t alignment, int element_bytes,
                      const char* name);
  size_t dynamic_shared_bytes() const { return configuration_->shared_bytes; }

 private:
  void make_fibers();
  void restart(Fiber& fiber);
  static void fiber_main();
  void run_threads();
  void run_block(uint64_t linear_block);
  void finish(Thread& thread);
  void become(Thread& thread);
  void resume(Fiber& from, Thread& thread);
  void switch_fibers(Fiber& from, Fiber& to);
  void wait(const char* name, Where at);
  void let_others_run();
  void make_ready(Thread& thread);
  Thread& next_ready();
  [[noreturn]] void deadlock();
  uint64_t random();

  const Configuration* configuration_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  std::string failure_;

  std::vector<Fiber> fibers_;
  std::vector<Fiber*> free_fibers_;
  Fiber host_;
  Fiber* running_ = &host_;

  Thread threads_[kMostThreads];
  Warp warps_[kMostThreads / kWarpSize];
  Thread* current_ = nullptr;
  int count_ = 0;
  int alive_ = 0;
  std::vector<Thread*> ready_ = std::vector<Thread*>(kMostThreads);  // a ring
  unsigned first_ready_ = 0;
  unsigned ready_count_ = 0;

  int at_barrier_ = 0;
  Where barrier_at_;
  int predicates_ = 0;
  int predicate_results_[2] = {};

  std::vector<SharedArray> shared_;
  size_t static_shared_bytes_ = 0;

  uint64_t seed_ = 0;
  uint64_t random_state_ = 1;
};

Scheduler scheduler;
std::mutex one_launch_at_a_time;

// --- fibers

void Scheduler::make_fibers() {
  if (!fibers_.empty()) {
    return;
  }
  const size_t each = kStackBytes + kGuardBytes;
  void* stacks = mmap(nullptr, each * kMostThreads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) {
    throw std::runtime_error("simt: no memory for the threads' stacks");
  }
  state.stacks = static_cast<const char*>(stacks);
  state.stacks_bytes = each * kMostThreads;
  fibers_.resize(kMostThreads);
  for (int i = 0; i < kMostThreads; ++i) {
    char* guard = static_cast<char*>(stacks) + i * each;
    mprotect(guard, kGuardBytes, PROT_NONE);  // an overflow is a fault, not a neighbour's bad luck
    fibers_[i].stack = guard + kGuardBytes;
    fibers_[i].stack_bytes = kStackBytes;
  }
}

// The next switch to the fiber enters fiber_main.
void Scheduler::restart(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, fiber.stack_bytes);
#endif
  fiber.fake_stack = nullptr;
  void** top = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes);
  top[-1] = nullptr;  // fiber_main's return address: it has none
  top[-2] = reinterpret_cast<void*>(&fiber_main);
  fiber.stack_pointer = top - 8;  // six registers below
}

void Scheduler::switch_fibers(Fiber& from, Fiber& to) {
  running_ = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
  simt_switch_stacks(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void Scheduler::fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (scheduler.host_.stack == nullptr) {
    scheduler.host_.stack = static_cast<char*>(const_cast<void*>(stack));
    scheduler.host_.stack_bytes = bytes;
  }
#endif
  scheduler.run_threads();
  std::abort();
}

// One thread after another on one fiber, for as long as none has to be left half-way.
void Scheduler::run_threads() {
  Fiber& mine = *running_;
  for (;;) {
    state.in_kernel = true;
    body_(context_);
    state.in_kernel = false;
    finish(*current_);
    if (ready_count_ == 0) {
      if (alive_ != 0) {
        deadlock();
      }
      free_fibers_.push_back(&mine);
      switch_fibers(mine, host_);
    } else if (Thread& next = next_ready(); next.fiber == nullptr) {
      next.fiber = &mine;
      become(next);
    } else {
      free_fibers_.push_back(&mine);
      resume(mine, next);
    }
  }
}

void Scheduler::finish(Thread& thread) {
  thread.progress = Thread::Progress::done;
  --alive_;
  if (!thread.copies.empty()) {
    fail("thread exited with a cp.async that was never waited for", thread.copies.front().at);
  }
  if (at_barrier_ != 0) {
    fail("a thread exited while others of its block wait in __syncthreads", barrier_at_);
  }
}

void Scheduler::become(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  state.thread = thread.linear;
  state.warp_syncs = thread.warp_syncs;
  state.fence = thread.fence;
}

void Scheduler::resume(Fiber& from, Thread& thread) {
  become(thread);
  if (thread.fiber == nullptr) {
    thread.fiber = free_fibers_.back();
    free_fibers_.pop_back();
  }
  switch_fibers(from, *thread.fiber);
}

// --- who runs next

uint64_t Scheduler::random() {
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return random_state_;
}

void Scheduler::make_ready(Thread& thread) {
  thread.progress = Thread::Progress::ready;
  ready_[(first_ready_ + ready_count_++) % kMostThreads] = &thread;
}

Thread& Scheduler::next_ready() {
  if (seed_ != 0 && ready_count_ > 1) {
    unsigned chosen = 0;
    if (seed_ % 2 == 1) {
      chosen = static_cast<unsigned>(random() % ready_count_);
    } else {  // the warp of the highest rank runs until it has to wait
      const auto rank = [this](unsigned i) {
        const int warp = ready_[(first_ready_ + i) % kMostThreads]->linear / kWarpSize;
        return static_cast<unsigned>(warp + seed_) * 2654435761u;
      };
      for (unsigned i = 1; i < ready_count_; ++i) {
        chosen = rank(i) > rank(chosen) ? i : chosen;
      }
    }
    std::swap(ready_[first_ready_ % kMostThreads], ready_[(first_ready_ + chosen) % kMostThreads]);
  }
  --ready_count_;
  return *ready_[first_ready_++ % kMostThreads];
}

void Scheduler::wait(const char* name, Where at) {
  Thread& me = *current_;
  me.progress = Thread::Progress::waiting;
  me.waits_in = name;
  me.waits_at = at;
  if (ready_count_ == 0) {
    deadlock();
  }
  resume(*me.fiber, next_ready());
}

// After a collective that this thread was the last to reach: in another order than "last first".
void Scheduler::let_others_run() {
  if (seed_ == 0) {
    return;
  }
  Thread& me = *current_;
  make_ready(me);
  if (Thread& next = next_ready(); &next != &me) {
    resume(*me.fiber, next);
  }
}

// --- faults

void Scheduler::deadlock() {
  const auto waiting = std::find_if(threads_, threads_ + count_, [](const Thread& t) {
    return t.progress == Thread::Progress::waiting;
  });
  current_ = waiting;
  fail(std::string("deadlock: the others never come to ") + waiting->waits_in, waiting->waits_at);
}

void Scheduler::fail(const std::string& what, Where at) {
  constexpr int most_shown = 6;
  failure_ = "simt: " + what + " at " + line_of(at) + " by thread " + triple(current_->index) +
             " of block " + triple(blockIdx) + " of " + configuration_->kernel;
  int done = 0;
  int waiting = 0;
  for (const Thread* t = threads_; t != threads_ + count_; ++t) {
    done += t->progress == Thread::Progress::done;
    if (t->progress == Thread::Progress::waiting && waiting++ < most_shown) {
      failure_ += "\n  thread " + triple(t->index) + " waits in " + t->waits_in + " at " +
                  line_of(t->waits_at);
    }
  }
  failure_ += "\n  " + std::to_string(waiting) + " of " + std::to_string(count_) +
              " threads wait, " + std::to_string(done) + " have exited\n";
  abandon(std::move(failure_));
}

void Scheduler::abandon(std::string failure) {
  failure_ = std::move(failure);
  state.in_kernel = false;
  switch_fibers(*running_, host_);
  std::abort();
}

// --- blocks

void Scheduler::run_block(uint64_t linear_block) {
  const dim3 grid = configuration_->grid;
  const dim3 block = configuration_->block;
  blockIdx = uint3{static_cast<unsigned>(linear_block % grid.x),
                   static_cast<unsigned>(linear_block / grid.x % grid.y),
                   static_cast<unsigned>(linear_block / grid.x / grid.y)};
  check::begin_block(static_cast<uint32_t>(linear_block));
  for (const SharedArray& array : shared_) {
    std::memset(array.memory, 0xff, array.bytes);
  }
  std::for_each(std::begin(warps_), std::end(warps_), [](Warp& warp) { warp.count = 0; });
  state.barriers = 0;
  at_barrier_ = 0;
  first_ready_ = ready_count_ = 0;
  alive_ = count_;
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    const auto n = static_cast<unsigned>(i);
    thread.index = uint3{n % block.x, n / block.x % block.y, n / block.x / block.y};
    thread.linear = i;
    thread.fiber = nullptr;
    thread.warp_syncs = 0;
    thread.fence = 0;
    thread.copies.clear();
    thread.group_ends.clear();
    make_ready(thread);
  }
  resume(host_, next_ready());
  if (failure_.empty()) {
    check::end_block();
  }
}

uint64_t environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

struct Range {
  uint64_t first;
  uint64_t count;
};

// SIMT_BLOCKS=first:count, within the launch's blocks; a negative first counts from the end.
Range blocks_to_run(uint64_t blocks) {
  const char* text = std::getenv("SIMT_BLOCKS");
  if (text == nullptr || *text == '\0') {
    return {0, blocks};
  }
  char* rest;
  const int64_t given = std::strtoll(text, &rest, 10);
  if (*rest != ':') {
    throw std::runtime_error("simt: SIMT_BLOCKS is first:count");
  }
  const auto all = static_cast<int64_t>(blocks);
  const int64_t first = std::clamp<int64_t>(given < 0 ? all + given : given, 0, all);
  const int64_t count = std::clamp<int64_t>(std::strtoll(rest + 1, nullptr, 10), 0, all - first);
  return {static_cast<uint64_t>(first), static_cast<uint64_t>(count)};
}

void Scheduler::launch(const Configuration& configuration, void (*thread)(void*), void* context) {
  make_fibers();
  configuration_ = &configuration;
  body_ = thread;
  context_ = context;
  blockDim = configuration.block;
  gridDim = configuration.grid;
  count_ = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  seed_ = environment("SIMT_SEED", 0);
  random_state_ = seed_ * 0x9e3779b97f4a7c15u + 1;
  host_.stack = nullptr;  // another OS thread may have launched before
  free_fibers_.clear();
  for (Fiber& fiber : fibers_) {
    restart(fiber);
    free_fibers_.push_back(&fiber);
  }

  const uint64_t blocks = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  const Range range = blocks_to_run(blocks);
  uint64_t step = 1;  // without a common factor with the count, every block comes once
  if (seed_ != 0 && range.count > 2) {
    for (step = random() % range.count; std::gcd(step, range.count) != 1;) {
      ++step;
    }
  }
  check::begin_launch();
  for (uint64_t i = 0; i < range.count && failure_.empty(); ++i) {
    run_block(range.first + (i * step + seed_) % range.count);
  }
  check::end_launch();
  for (const SharedArray& array : shared_) {
    std::free(array.allocated);
  }
  shared_.clear();
  static_shared_bytes_ = 0;
  if (!failure_.empty()) {
    throw std::runtime_error(std::exchange(failure_, {}));
  }
}

void* Scheduler::shared_memory(const void* key, size_t bytes, size_t alignment, int element_bytes,
                               const char* name) {
  for (const SharedArray& array : shared_) {
    if (array.key == key) {
      return array.memory;
    }
  }
  if (key != nullptr && (static_shared_bytes_ += bytes) > kSharedWithoutOptIn) {
    fail(std::string("more than 48 KiB of static shared memory with ") + name, configuration_->at);
  }
  void* allocated = nullptr;
  if (posix_memalign(&allocated, kSharedAlignment,
                     alignment + std::max<size_t>(bytes, 1) + kSlackBytes) != 0) {
    fail("no memory for a shared array", configuration_->at);
  }
  // aligned no better than was asked for, so that a vector access that needs more is found
  void* const memory = static_cast<char*>(allocated) + alignment;
  std::memset(memory, 0xff, bytes);
  check::add_shared(memory, bytes, element_bytes, name);
  shared_.push_back({key, allocated, memory, bytes});
  return memory;
}

// --- meeting

int Scheduler::block_barrier(bool predicate, Where at) {
  if (at_barrier_ == 0) {
    barrier_at_ = at;
    predicates_ = 0;
  } else if (at.line() != barrier_at_.line() ||
             std::string_view(at.file_name()) != barrier_at_.file_name()) {
    fail("threads of one block meet in different __syncthreads, the other one at " +
             line_of(barrier_at_),
         at);
  }
  if (alive_ != count_) {
    fail("__syncthreads is reached after threads of the block have exited", at);
  }
  const uint32_t phase = state.barriers % 2;
  predicates_ += predicate;
  if (++at_barrier_ == alive_) {
    at_barrier_ = 0;
    predicate_results_[phase] = predicates_;
    ++state.barriers;
    for (int i = 0; i < count_; ++i) {
      if (threads_[i].progress == Thread::Progress::waiting) {
        make_ready(threads_[i]);
      }
    }
    let_others_run();
  } else {
    wait("__syncthreads", at);
  }
  return predicate_results_[phase];
}

Group::Exchange& Scheduler::meet(uint32_t mask, const char* name, const void* passed, size_t bytes,
                                 Where at, void (*combine)(Group::Exchange&), bool orders_memory) {
  Thread& me = *current_;
  const int first = me.linear / kWarpSize * kWarpSize;
  const int lane = me.linear % kWarpSize;
  Warp& warp = warps_[me.linear / kWarpSize];
  const int lanes = std::min(kWarpSize, count_ - first);
  const uint32_t whole = lanes == kWarpSize ? kFullMask : (1u << lanes) - 1;
  mask &= whole;
  if ((mask >> lane & 1) == 0) {
    fail(std::string("the calling lane is not in the mask of ") + name, at);
  }
  Group* group = std::find_if(warp.groups, warp.groups + warp.count,
                              [mask](const Group& g) { return g.mask == mask; });
  if (group == warp.groups + warp.count) {
    if (warp.count < kGroupsPerWarp) {
      ++warp.count;
    } else {
      group = std::find_if(warp.groups, warp.groups + warp.count,
                           [](const Group& g) { return g.arrived == 0; });
      if (group == warp.groups + warp.count) {
        fail("lanes of one warp wait with too many different masks", at);
      }
    }
    group->mask = mask;
    group->arrived = 0;
  }
  if (group->arrived == 0) {
    group->name = name;
  } else if (std::string_view(group->name) != name) {
    fail(std::string("lanes of one warp meet in different collectives, ") + group->name + " and " +
             name,
         at);
  }
  Group::Exchange& exchange = group->exchange[group->met % 2];
  std::memcpy(exchange.passed[lane], passed, bytes);
  group->arrived |= 1u << lane;
  if (group->arrived != mask) {
    wait(name, at);
    return exchange;
  }
  group->arrived = 0;
  ++group->met;
  if (combine != nullptr) {
    combine(exchange);
  }
  for (int i = 0; i < lanes; ++i) {
    Thread& thread = threads_[first + i];
    thread.warp_syncs += orders_memory && mask == whole;
    if ((mask >> i & 1) != 0 && i != lane) {
      make_ready(thread);
    }
  }
  state.warp_syncs = me.warp_syncs;
  let_others_run();
  return exchange;
}

const std::vector<float>& half_values() {
  static const std::vector<float> values = [] {
    std::vector<float> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i)));
    }
    return all;
  }();
  return values;
}

float value_of(Operand type, uint32_t word, int high) {
  const uint32_t bits = high ? word >> 16 : word & 0xffff;
  return type == Operand::float16 ? half_values()[bits] : __builtin_bit_cast(float, bits << 16);
}

// The whole warp's product at once, from every lane's six words; each lane's four sums.
template <Operand type>
void multiply(Group::Exchange& exchange) {
  float a[16][16];
  float b[8][16];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto* words = reinterpret_cast<const uint32_t*>(exchange.passed[lane]);
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int high = 0; high < 2; ++high) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][pair + i / 2 * 8 + high] = value_of(type, words[i], high);
      }
      for (int i = 0; i < 2; ++i) {
        b[group][pair + i * 8 + high] = value_of(type, words[4 + i], high);
      }
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const float* row = a[lane / 4 + i / 2 * 8];
      const float* column = b[lane % 4 * 2 + i % 2];
      double sum = 0;
      for (int k = 0; k < 16; ++k) {
        sum += static_cast<double>(row[k]) * column[k];
      }
      reinterpret_cast<double*>(exchange.result[lane])[i] = sum;
    }
  }
}

void complete(const Copy& copy) {
  check::access(copy.to, 16, check::Kind::copy_end, copy.pc);
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

// Calls into the scheduler are the emulator's, not the kernel's.
class OutsideKernel {
 public:
  OutsideKernel() { state.in_kernel = false; }
  ~OutsideKernel() { state.in_kernel = true; }
};

std::map<const void*, size_t>& opted_in() {
  static std::map<const void*, size_t> bytes;
  return bytes;
}

}  // namespace

void fail(const char* what, Where at) { scheduler.fail(what, at); }
void abandon(const char* why) { scheduler.abandon(std::string("simt: ") + why + "\n"); }

void* shared_memory(const void* key, size_t bytes, size_t alignment, int element_bytes,
                    const char* name) {
  return scheduler.shared_memory(key, bytes, alignment, element_bytes, name);
}

void* dynamic_shared_memory(int element_bytes, const char* name) {
  // whatever it is declared as, a kernel cuts it up: into nothing smaller than halves
  return scheduler.shared_memory(nullptr, scheduler.dynamic_shared_bytes(), kSharedAlignment,
                                 std::min(element_bytes, 2), name);
}

int lane() { return state.thread % kWarpSize; }

int barrier(bool predicate, Where at) {
  const OutsideKernel outside;
  return scheduler.block_barrier(predicate, at);
}

void warp_barrier(uint32_t mask, Where at) {
  const OutsideKernel outside;
  scheduler.meet(mask, "__syncwarp", nullptr, 0, at, nullptr, true);
}

void shuffle(uint32_t mask, const char* name, void* value, size_t bytes, int source, Where at) {
  const OutsideKernel outside;
  const Group::Exchange& exchange = scheduler.meet(mask, name, value, bytes, at);
  if (source != lane() && (mask >> source & 1) == 0) {
    scheduler.fail(std::string(name) + " reads a lane outside its mask", at);
  }
  std::memcpy(value, exchange.passed[source], bytes);
}

uint32_t ballot(uint32_t mask, const char* name, bool predicate, Where at) {
  const OutsideKernel outside;
  const Group::Exchange& exchange = scheduler.meet(mask, name, &predicate, 1, at);
  uint32_t votes = 0;
  const int lanes = std::min(kWarpSize, static_cast<int>(blockDim.x * blockDim.y * blockDim.z) -
                                            state.thread / kWarpSize * kWarpSize);
  for (int i = 0; i < lanes; ++i) {
    votes |= (mask >> i & 1) != 0 && exchange.passed[i][0] != 0 ? 1u << i : 0;
  }
  return votes;
}

void warp_mma(Operand type, float* d, const uint32_t* a, const uint32_t* b, Where at) {
  const OutsideKernel outside;
  uint32_t words[6];
  std::copy_n(a, 4, words);
  std::copy_n(b, 2, words + 4);
  const Group::Exchange& exchange = scheduler.meet(
      kFullMask, "mma.sync", words, sizeof(words), at,
      type == Operand::float16 ? multiply<Operand::float16> : multiply<Operand::bfloat16>);
  const auto* sums = reinterpret_cast<const double*>(exchange.result[lane()]);
  for (int i = 0; i < 4; ++i) {
    d[i] = static_cast<float>(d[i] + sums[i]);
  }
}

void warp_ldmatrix(uint32_t* r, const void* row, bool transposed, Where at) {
  const OutsideKernel outside;
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    scheduler.fail("misaligned row of ldmatrix", at);
  }
  const Group::Exchange& exchange = scheduler.meet(kFullMask, "ldmatrix", &row, sizeof(row), at);
  const int group = lane() / 4;
  const int pair = lane() % 4 * 2;
  const auto element = [&](int matrix, int y, int x) -> uint32_t {
    const uint16_t* from;
    std::memcpy(&from, exchange.passed[matrix * 8 + y], sizeof(from));
    return from[x];
  };
  for (int i = 0; i < 4; ++i) {
    r[i] = transposed ? element(i, pair, group) | element(i, pair + 1, group) << 16
                      : element(i, group, pair) | element(i, group, pair + 1) << 16;
  }
}

void begin_copy(void* to, const void* from, bool valid, void* pc, Where at) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
    scheduler.fail("misaligned cp.async", at);
  }
  if (valid) {
    check::access(from, 16, check::Kind::load, pc);
  }
  check::access(to, 16, check::Kind::copy_begin, pc);
  const OutsideKernel outside;
  std::memset(to, 0xff, 16);
  scheduler.current().copies.push_back({to, from, valid, pc, at});
}

void cp_async_commit() {
  Thread& me = scheduler.current();
  me.group_ends.push_back(me.copies.size());
}

void cp_async_wait(int pending) {
  Thread& me = scheduler.current();
  const int groups = static_cast<int>(me.group_ends.size()) - pending;
  if (groups <= 0) {
    return;
  }
  const size_t end = me.group_ends[groups - 1];
  std::for_each(me.copies.begin(), me.copies.begin() + end, complete);
  me.copies.erase(me.copies.begin(), me.copies.begin() + end);
  me.group_ends.erase(me.group_ends.begin(), me.group_ends.begin() + groups);
  for (size_t& later : me.group_ends) {
    later -= end;
  }
}

// What a call that is refused leaves for cudaGetLastError.
thread_local cudaError_t last_error = cudaSuccess;

bool is_to_be_refused(std::string_view call) {
  const char* const refused = std::getenv("SIMT_REFUSE");
  return refused != nullptr && refused == call;
}

void launch(const Configuration& configuration, const void* kernel, void (*thread)(void*),
            void* context) {
  if (is_to_be_refused("launch")) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  const std::lock_guard lock(one_launch_at_a_time);
  const dim3 grid = configuration.grid;
  const dim3 block = configuration.block;
  const auto refuse = [&](const std::string& why) {
    throw std::runtime_error("simt: bad launch configuration: " + why + ", of " +
                             configuration.kernel + " at " + line_of(configuration.at) + "\n");
  };
  if (uint64_t{grid.x} * grid.y * grid.z == 0 || uint64_t{block.x} * block.y * block.z == 0) {
    refuse("no blocks or no threads");
  }
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) {
    refuse("grid beyond 2147483647 x 65535 x 65535");
  }
  if (uint64_t{block.x} * block.y * block.z > kMostThreads || block.z > 64) {
    refuse("block beyond 1024 threads or 64 along z");
  }
  if (configuration.shared_bytes > kMostShared) {
    refuse("more than 227 KiB of shared memory");
  }
  const auto opt_in = opted_in().find(kernel);
  const size_t allowed =
      std::max(kSharedWithoutOptIn, opt_in == opted_in().end() ? 0 : opt_in->second);
  if (configuration.shared_bytes > allowed) {
    refuse(std::to_string(configuration.shared_bytes) +
           " bytes of shared memory without cudaFuncSetAttribute");
  }
  scheduler.launch(configuration, thread, context);
}

}  // namespace simt

void __threadfence() {
  simt::state.fence = simt::state.barriers + 1;
  simt::scheduler.current().fence = simt::state.fence;
}

// --- the host API, as an H100 would answer

cudaError_t cudaGetLastError() { return std::exchange(simt::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return simt::last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                     ? "no error"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                  : "invalid argument";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = simt::kProcessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(simt::kMostShared);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || static_cast<size_t>(value) > simt::kMostShared ||
        simt::is_to_be_refused("shared")) {
      return simt::last_error = cudaErrorInvalidValue;
    }
    simt::opted_in()[kernel] = static_cast<size_t>(value);
  }
  return cudaSuccess;
}

#if !defined(GPSEG_SIMT_CHECK)
void simt_track(const void*, size_t, int, int, const char*) {}
void simt_untrack_all() {}
const char* simt_take_faults() { return ""; }
void simt_count_start() {}
const char* simt_count_json() { return "[]"; }
#endif
