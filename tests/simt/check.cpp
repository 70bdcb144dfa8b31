// The fault finder: what g++'s -fsanitize=thread instrumentation calls, in place of libtsan, by
// CUDA's rules. Exact and deterministic: no sampling, and no dependence on the order threads ran in
// beyond what the kernel itself makes depend on it.
//
// Two accesses are ordered if one thread makes both, or a barrier of their block or warp lies
// between, or, across blocks, a fence and a chain of atomics (the "last block" pattern).
#include "check.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "simt.h"
#include "state.h"

namespace simt::check {
namespace {

constexpr size_t kMostFaults = 20;
constexpr int kSectorBytes = 32;
constexpr int kBanks = 32;
constexpr int kBankBytes = 4;

// Files that only wrap an access: it is charged to whoever called them.
constexpr std::string_view kWrappers[] = {"memory.cuh", "ptx.cuh"};

struct Accessor {
  bool set = false;
  bool atomic = false;
  uint16_t thread = 0;
  uint32_t block = 0;
  uint32_t barriers = 0;
  uint32_t warp_syncs = 0;
  uint32_t pc = 0;  // from the start of the module
};

// What is remembered of one element.
struct Cell {
  uint32_t launch = 0;  // that the accessors belong to
  bool written = false;
  bool copying = false;   // a cp.async to it is under way
  Accessor writer;        // the last one
  Accessor readers[2];    // since then, two that nothing orders if there are such
  Accessor other_reader;  // since then, of another block
};

struct Region {
  uintptr_t begin;
  uintptr_t end;
  int shift;  // cells of 1 << shift bytes
  bool shared;
  bool initialised;
  std::string name;
  std::vector<Cell> cells;
};

// An access, as it is counted once its warp's others are known.
struct Request {
  uint32_t pc;
  uint32_t occurrence;  // how often its lane had been there
  uint16_t lane;
  Kind kind;
  bool shared;
  uint8_t bytes;
  uintptr_t address;

  auto key() const { return std::tie(pc, kind, bytes, shared, occurrence); }
};

struct Count {
  uint64_t requests = 0;
  uint64_t units = 0;  // sectors or wavefronts
  uint64_t ideal = 0;
  uint64_t moved = 0;
};

// Atomics at one address: by which blocks, and what of each block they made visible.
struct Releases {
  struct Release {
    uint16_t thread;
    uint32_t fence;
  };
  std::unordered_map<uint32_t, Release> by_block;
};

struct Acquired {
  uint16_t thread;
  uint32_t barriers;
};

using CountKey = std::tuple<uint32_t, bool, Kind, uint8_t>;  // pc, shared, kind, bytes
using FaultKey = std::tuple<char, uint32_t, uint32_t>;       // what, and the lines' pcs

struct Fault {
  std::string text;  // {0} and {1} stand for the lines
  uint32_t pcs[2];
};

struct Finder {
  std::vector<std::unique_ptr<Region>> regions;  // by address
  Region* last = nullptr;
  uint32_t launch = 0;
  uint32_t block = 0;
  std::unordered_map<uintptr_t, Releases> releases;  // of this launch
  std::map<uintptr_t, Acquired> acquired;            // by this block

  std::set<FaultKey> seen;
  std::vector<Fault> faults;
  std::string answer;

  bool counting = false;
  std::vector<Request> requests[kMostThreads / kWarpSize];  // of this block
  std::unordered_map<uint64_t, uint32_t> occurrences;       // of this block, by thread, kind and pc
  std::map<CountKey, Count> counts;

  uintptr_t module_begin = 0;
  uintptr_t module_end = 0;
  uintptr_t host_stack_begin = 0;
  uintptr_t host_stack_end = 0;
  std::string module;
  std::unordered_map<uint32_t, std::string> lines;
};

Finder& finder() {
  static Finder instance;
  return instance;
}

// --- source lines

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_wrapper(std::string_view file) {
  return std::any_of(std::begin(kWrappers), std::end(kWrappers),
                     [&](std::string_view name) { return ends_with(file, name); });
}

// Of the calls inlined at an address, innermost first: the first that a kernel's author wrote.
std::string kernel_line(const std::vector<std::string>& calls) {
  std::string line = "?";
  for (const std::string& call : calls) {
    const std::string_view file = std::string_view(call).substr(0, call.rfind(':'));
    if (file.find("/include/") != file.npos ||
        (file.find("/simt/") != file.npos && ends_with(file, ".h"))) {
      continue;
    }
    line = call.substr(call.rfind('/') + 1);
    if (!is_wrapper(file)) {
      break;
    }
  }
  return line;
}

// Asks addr2line about all of them at once: it takes its time to read the debug information.
void find_lines(const std::set<uint32_t>& pcs) {
  Finder& f = finder();
  std::ostringstream command;
  command << "addr2line -a -i -e '" << f.module << "'" << std::hex;
  bool any = false;
  for (uint32_t pc : pcs) {
    if (f.lines.count(pc) == 0) {
      command << " 0x" << pc - 1;  // the call, not what follows it
      any = true;
    }
  }
  if (!any) {
    return;
  }
  FILE* pipe = popen(command.str().c_str(), "r");
  if (pipe == nullptr) {
    return;
  }
  uint32_t pc = 0;
  std::vector<std::string> calls;
  const auto keep = [&] {
    if (!calls.empty()) {
      f.lines[pc] = kernel_line(calls);
    }
    calls.clear();
  };
  char text[4096];
  while (std::fgets(text, sizeof(text), pipe) != nullptr) {
    std::string line = text;
    line.erase(std::min(line.find(" (discriminator"), line.find('\n')));
    if (line.rfind("0x", 0) == 0) {
      keep();
      pc = static_cast<uint32_t>(std::stoul(line, nullptr, 16)) + 1;
    } else {
      calls.push_back(line);
    }
  }
  keep();
  pclose(pipe);
}

std::string line_of(uint32_t pc) {
  const auto found = finder().lines.find(pc);
  return found == finder().lines.end() ? "?" : found->second;
}

// --- faults

const char* verb(Kind kind) {
  constexpr const char* verbs[] = {"read", "write", "atomic", "cp.async", "cp.async"};
  return verbs[static_cast<int>(kind)];
}

std::string name_of(const Accessor& by) {
  const unsigned t = by.thread;
  const unsigned plane = blockDim.x * blockDim.y;
  const unsigned b = by.block;
  return "thread (" + std::to_string(t % blockDim.x) + "," +
         std::to_string(t / blockDim.x % blockDim.y) + "," + std::to_string(t / plane) +
         ") of block (" + std::to_string(b % gridDim.x) + "," +
         std::to_string(b / gridDim.x % gridDim.y) + "," +
         std::to_string(b / gridDim.x / gridDim.y) + ")";
}

// The first fault of each sort at each line. Lines are looked up when the faults are asked for.
template <class Text>
void report(char what, uint32_t pc, uint32_t other_pc, Text text) {
  Finder& f = finder();
  if (f.faults.size() < kMostFaults && f.seen.emplace(what, pc, other_pc).second) {
    f.faults.push_back({text(), {pc, other_pc}});
  }
}

std::string offset_in(const Region& region, uintptr_t address) {
  return region.name + ", byte " + std::to_string(address - region.begin);
}

// --- order

bool ordered_in_block(const Accessor& a, const Accessor& b) {
  if (a.thread == b.thread || a.barriers < b.barriers) {
    return true;
  }
  return a.barriers == b.barriers && a.thread / kWarpSize == b.thread / kWarpSize &&
         a.warp_syncs < b.warp_syncs;
}

bool ordered_across_blocks(const Accessor& a, const Accessor& b) {
  Finder& f = finder();
  for (const auto& [address, acquired] : f.acquired) {
    const auto& by_block = f.releases[address].by_block;
    const auto release = by_block.find(a.block);
    if (release != by_block.end() &&
        (a.barriers + 1 < release->second.fence ||
         (a.thread == release->second.thread && a.barriers + 1 <= release->second.fence)) &&
        (acquired.barriers < b.barriers || acquired.thread == b.thread)) {
      return true;
    }
  }
  return false;
}

bool ordered(const Accessor& a, const Accessor& b) {
  return a.block == b.block ? ordered_in_block(a, b) : ordered_across_blocks(a, b);
}

void report_race(const Region& region, uintptr_t address, const Accessor& earlier,
                 const char* earlier_verb, const Accessor& later, const char* later_verb) {
  report('r', earlier.pc, later.pc, [&] {
    return std::string("{0}: race: ") + earlier_verb + " by " + name_of(earlier) + " and " +
           later_verb + " at {1} by " + name_of(later) +
           (earlier.block == later.block ? ", no barrier between" : ", different blocks") + ": " +
           offset_in(region, address);
  });
}

void acquire_and_release(uintptr_t address, const Accessor& me) {
  Finder& f = finder();
  f.acquired.try_emplace(address, Acquired{me.thread, me.barriers});
  if (state.fence != 0) {
    f.releases[address].by_block[me.block] = {me.thread, state.fence};
  }
}

void check_cell(const Region& region, Cell& cell, uintptr_t address, const Accessor& me,
                Kind kind) {
  if (cell.launch != finder().launch) {
    const bool keep = !region.shared && cell.written;
    cell = Cell{};
    cell.launch = finder().launch;
    cell.written = keep;
  }
  if (region.shared && cell.writer.set && cell.writer.block != me.block) {
    cell = Cell{};  // another block's array
    cell.launch = finder().launch;
  }
  if (region.shared && cell.readers[0].set && cell.readers[0].block != me.block) {
    cell.readers[0].set = cell.readers[1].set = false;
  }
  const Accessor& writer = cell.writer;
  const bool both_atomic = writer.atomic && me.atomic;
  if (writer.set && !both_atomic && !ordered(writer, me)) {
    report_race(region, address, writer, writer.atomic ? "atomic" : "write", me, verb(kind));
  }
  if (kind == Kind::load) {
    if (cell.copying) {
      report('c', me.pc, writer.pc, [&] {
        return "{0}: read of what the cp.async at {1} has not been waited to bring, by " +
               name_of(me) + ": " + offset_in(region, address);
      });
    } else if (!cell.written && !region.initialised) {
      report('u', me.pc, 0, [&] {
        return "{0}: read of unwritten memory by " + name_of(me) + ": " +
               offset_in(region, address);
      });
    }
    Accessor* readers = cell.readers;
    if (readers[0].set && readers[0].block != me.block) {
      cell.other_reader = readers[0];
      readers[0] = me;
      readers[1].set = false;
    } else if (readers[0].set && !ordered_in_block(readers[0], me)) {
      readers[1] = me;
    } else {
      readers[0] = me;
    }
    return;
  }
  for (const Accessor* reader : {&cell.readers[0], &cell.readers[1], &cell.other_reader}) {
    if (reader->set && !ordered(*reader, me)) {
      report_race(region, address, *reader, "read", me, verb(kind));
    }
  }
  cell.writer = me;
  cell.readers[0].set = cell.readers[1].set = cell.other_reader.set = false;
  cell.copying = kind == Kind::copy_begin;
  cell.written = true;
}

// --- regions

Region* region_at(uintptr_t address) {
  Finder& f = finder();
  if (f.last != nullptr && address >= f.last->begin && address < f.last->end) {
    return f.last;
  }
  const auto after = std::upper_bound(
      f.regions.begin(), f.regions.end(), address,
      [](uintptr_t a, const std::unique_ptr<Region>& region) { return a < region->begin; });
  if (after == f.regions.begin() || address >= (*std::prev(after))->end) {
    return nullptr;
  }
  return f.last = std::prev(after)->get();
}

void add_region(const void* p, size_t bytes, int element_bytes, bool shared, bool initialised,
                std::string name) {
  if (p == nullptr || bytes == 0) {
    return;
  }
  Finder& f = finder();
  Region added{reinterpret_cast<uintptr_t>(p),
               reinterpret_cast<uintptr_t>(p) + bytes,
               element_bytes >= 4   ? 2
               : element_bytes == 2 ? 1
                                    : 0,
               shared,
               initialised,
               std::move(name),
               {}};
  // Memory that is known already, a view say, or freed and used again, becomes one region with it.
  std::erase_if(f.regions, [&added](const std::unique_ptr<Region>& known) {
    const bool overlaps = known->begin < added.end && added.begin < known->end;
    if (overlaps) {
      added.begin = std::min(added.begin, known->begin);
      added.end = std::max(added.end, known->end);
      added.shift = std::min(added.shift, known->shift);
      added.initialised |= known->initialised;
    }
    return overlaps;
  });
  added.cells.resize((added.end - added.begin >> added.shift) + 1);
  const auto place = std::upper_bound(
      f.regions.begin(), f.regions.end(), added.begin,
      [](uintptr_t a, const std::unique_ptr<Region>& region) { return a < region->begin; });
  f.regions.insert(place, std::make_unique<Region>(std::move(added)));
  f.last = nullptr;
}

template <class Condition>
void remove_regions(Condition condition) {
  std::erase_if(finder().regions, [&](const auto& region) { return condition(*region); });
  finder().last = nullptr;
}

// Where this module lies, and the launching thread's stack.
void find_own_memory() {
  Finder& f = finder();
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&find_own_memory), &info);
  f.module = info.dli_fname;
  f.module_begin = reinterpret_cast<uintptr_t>(info.dli_fbase);
  dl_iterate_phdr(
      [](dl_phdr_info* module, size_t, void*) {
        Finder& own = finder();
        if (module->dlpi_addr == own.module_begin) {
          for (int i = 0; i < module->dlpi_phnum; ++i) {
            const auto& header = module->dlpi_phdr[i];
            if (header.p_type == PT_LOAD) {
              own.module_end = std::max<uintptr_t>(
                  own.module_end, own.module_begin + header.p_vaddr + header.p_memsz);
            }
          }
        }
        return 0;
      },
      nullptr);
  pthread_attr_t attributes;
  void* stack;
  size_t bytes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &bytes);
  pthread_attr_destroy(&attributes);
  f.host_stack_begin = reinterpret_cast<uintptr_t>(stack);
  f.host_stack_end = f.host_stack_begin + bytes;
}

// A thread's own variables, kernel arguments, constants.
bool is_private(uintptr_t a) {
  const Finder& f = finder();
  return a - reinterpret_cast<uintptr_t>(state.stacks) < state.stacks_bytes ||
         a - f.host_stack_begin < f.host_stack_end - f.host_stack_begin ||
         a - f.module_begin < f.module_end - f.module_begin;
}

void report_out_of_bounds(uintptr_t address, size_t bytes, Kind kind, const Accessor& me) {
  report('b', me.pc, 0, [&] {
    const Region* nearest = nullptr;
    uintptr_t distance = 0;
    bool before = false;
    for (const auto& region : finder().regions) {
      const bool below = address < region->begin;
      const uintptr_t away = below ? region->begin - address : address + bytes - region->end;
      if (nearest == nullptr || away < distance) {
        nearest = region.get();
        distance = away;
        before = below;
      }
    }
    std::string text = std::string("{0}: out-of-bounds ") + verb(kind) + " of " +
                       std::to_string(bytes) + " bytes by " + name_of(me);
    if (nearest != nullptr) {
      text += ": " + std::to_string(distance) + " bytes " +
              (before ? "before the start of " : "past the end of ") + nearest->name;
    }
    return text;
  });
}

// --- counts

template <class Iterator>
void count_global(Iterator begin, Iterator end, Count& count) {
  std::set<uintptr_t> sectors;
  std::set<uintptr_t> addresses;
  for (auto r = begin; r != end; ++r) {
    addresses.insert(r->address);
    sectors.insert(r->address / kSectorBytes);
    sectors.insert((r->address + r->bytes - 1) / kSectorBytes);
  }
  const uint64_t moved = addresses.size() * begin->bytes;
  count.units += sectors.size();
  count.ideal += (moved + kSectorBytes - 1) / kSectorBytes;
  count.moved += moved;
}

// Accesses of 8 and 16 bytes go half a warp and a quarter of a warp at a time.
template <class Iterator>
void count_shared(Iterator begin, Iterator end, Count& count) {
  const int lanes_at_once = begin->bytes > 8 ? 8 : begin->bytes > 4 ? 16 : 32;
  std::set<uintptr_t> addresses;
  for (int first = 0; first < kWarpSize; first += lanes_at_once) {
    std::set<uintptr_t> words[kBanks];
    for (auto r = begin; r != end; ++r) {
      if (r->lane / lanes_at_once * lanes_at_once != first) {
        continue;
      }
      addresses.insert(r->address);
      for (uintptr_t w = r->address / kBankBytes; w <= (r->address + r->bytes - 1) / kBankBytes;
           ++w) {
        words[w % kBanks].insert(w);
      }
    }
    size_t wavefronts = 0;
    for (const auto& bank : words) {
      wavefronts = std::max(wavefronts, bank.size());
    }
    count.units += wavefronts;
    count.ideal += wavefronts > 0;
  }
  count.moved += addresses.size() * begin->bytes;
}

// A warp's request is its lanes' accesses at one place, the n-th time each was there.
void count_requests() {
  Finder& f = finder();
  for (auto& requests : f.requests) {
    std::stable_sort(requests.begin(), requests.end(),
                     [](const Request& a, const Request& b) { return a.key() < b.key(); });
    for (auto begin = requests.begin(); begin != requests.end();) {
      const auto end = std::find_if(begin, requests.end(),
                                    [&](const Request& r) { return r.key() != begin->key(); });
      Count& count = f.counts[{begin->pc, begin->shared, begin->kind, begin->bytes}];
      ++count.requests;
      begin->shared ? count_shared(begin, end, count) : count_global(begin, end, count);
      begin = end;
    }
    requests.clear();
  }
  f.occurrences.clear();
}

}  // namespace

// --- what the emulator tells

void* here() {
  asm volatile("");
  return __builtin_return_address(0);
}

void begin_launch() {
  Finder& f = finder();
  find_own_memory();
  ++f.launch;
  f.releases.clear();
}

void begin_block(uint32_t linear_block) {
  finder().block = linear_block;
  finder().acquired.clear();
}

void end_block() {
  if (finder().counting) {
    count_requests();
  }
}

void end_launch() {
  for (auto& requests : finder().requests) {
    requests.clear();
  }
  finder().occurrences.clear();
  remove_regions([](const Region& region) { return region.shared; });
}

void add_shared(const void* p, size_t bytes, int element_bytes, const char* name) {
  add_region(p, bytes, element_bytes, true, false, std::string("shared memory ") + name);
}

void access(const void* p, size_t bytes, Kind kind, void* pc) {
  if (!state.in_kernel) {
    return;
  }
  Finder& f = finder();
  const auto address = reinterpret_cast<uintptr_t>(p);
  Region* region = region_at(address);
  if (region == nullptr && is_private(address)) {
    return;
  }
  const Accessor me{true,
                    kind == Kind::atomic,
                    static_cast<uint16_t>(state.thread),
                    f.block,
                    state.barriers,
                    state.warp_syncs,
                    static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc) - f.module_begin)};
  if (region == nullptr || address + bytes > region->end) {
    report_out_of_bounds(address, bytes, kind, me);
    abandon("the launch ends at an access outside every buffer");  // before it does damage
  }
  if (address % bytes != 0) {
    report('a', me.pc, 0, [&] {
      return std::string("{0}: misaligned ") + verb(kind) + " of " + std::to_string(bytes) +
             " bytes by " + name_of(me) + ": " + offset_in(*region, address);
    });
  }
  if (kind == Kind::atomic) {
    acquire_and_release(address, me);
  }
  const uintptr_t first = (address - region->begin) >> region->shift;
  const uintptr_t last = (address + bytes - 1 - region->begin) >> region->shift;
  for (uintptr_t i = first; i <= last; ++i) {
    check_cell(*region, region->cells[i], region->begin + (i << region->shift), me, kind);
  }
  if (f.counting && kind != Kind::copy_end) {
    // one call makes two accesses, of different kinds, where it is a cp.async's
    const uint64_t place = (uint64_t{me.thread} * 8 + static_cast<int>(kind)) << 32 | me.pc;
    f.requests[me.thread / kWarpSize].push_back(
        {me.pc, f.occurrences[place]++, static_cast<uint16_t>(me.thread % kWarpSize),
         kind == Kind::copy_begin ? Kind::store : kind, region->shared, static_cast<uint8_t>(bytes),
         address});
  }
}

namespace {

// As many accesses as a copy of the compiler's own would make.
void access_range(const void* p, size_t bytes, Kind kind, void* pc) {
  for (auto at = static_cast<const char*>(p); bytes > 0;) {
    size_t step = 16;
    while (step > bytes || reinterpret_cast<uintptr_t>(at) % step != 0) {
      step /= 2;
    }
    access(at, step, kind, pc);
    at += step;
    bytes -= step;
  }
}

}  // namespace
}  // namespace simt::check

// --- what callers ask

using simt::check::finder;

void simt_track(const void* p, size_t bytes, int element_bytes, int initialised, const char* name) {
  simt::check::add_region(p, bytes, element_bytes, false, initialised != 0, name);
}

void simt_untrack_all() {
  simt::check::remove_regions([](const auto& region) { return !region.shared; });
}

const char* simt_take_faults() {
  auto& f = finder();
  std::set<uint32_t> pcs;
  for (const auto& fault : f.faults) {
    pcs.insert(std::begin(fault.pcs), std::end(fault.pcs));
  }
  pcs.erase(0);
  simt::check::find_lines(pcs);
  std::set<std::string> told;  // several instructions of a line make one fault
  f.answer.clear();
  for (const auto& fault : f.faults) {
    std::string text = fault.text;
    std::string key(1, text[5]);
    for (int i = 0; i < 2; ++i) {
      const std::string mark = "{" + std::to_string(i) + "}";
      const std::string line = simt::check::line_of(fault.pcs[i]);
      if (const auto at = text.find(mark); at != text.npos) {
        text.replace(at, mark.size(), line);
        key += line;
      }
    }
    if (told.insert(key).second) {
      f.answer += text + "\n";
    }
  }
  f.faults.clear();
  f.seen.clear();
  return f.answer.c_str();
}

void simt_count_start() {
  finder().counts.clear();
  finder().counting = true;
}

const char* simt_count_json() {
  using simt::check::Count;
  using simt::check::Kind;
  auto& f = finder();
  std::set<uint32_t> pcs;
  for (const auto& entry : f.counts) {
    pcs.insert(std::get<0>(entry.first));
  }
  simt::check::find_lines(pcs);
  std::map<std::tuple<std::string, bool, Kind, uint8_t>, Count> by_line;
  for (const auto& [key, count] : f.counts) {
    const auto& [pc, shared, kind, bytes] = key;
    Count& sum = by_line[{simt::check::line_of(pc), shared, kind, bytes}];
    sum.requests += count.requests;
    sum.units += count.units;
    sum.ideal += count.ideal;
    sum.moved += count.moved;
  }
  std::ostringstream json;
  json << "[";
  for (const auto& [key, count] : by_line) {
    const auto& [line, shared, kind, bytes] = key;
    json << (json.tellp() > 1 ? ",\n" : "") << R"({"line": ")" << line << R"(", "space": ")"
         << (shared ? "shared" : "global") << R"(", "kind": ")"
         << (kind == Kind::load    ? "load"
             : kind == Kind::store ? "store"
                                   : "atomic")
         << R"(", "bytes": )" << int{bytes} << R"(, "requests": )" << count.requests
         << R"(, "units": )" << count.units << R"(, "ideal": )" << count.ideal << R"(, "moved": )"
         << count.moved << "}";
  }
  json << "]";
  f.answer = json.str();
  return f.answer.c_str();
}

// --- what instrumented code calls

#define CALLER __builtin_return_address(0)
#define ACCESSES(prefix, bytes)                                      \
  void prefix##read##bytes(void* p) {                                \
    simt::check::access(p, bytes, simt::check::Kind::load, CALLER);  \
  }                                                                  \
  void prefix##write##bytes(void* p) {                               \
    simt::check::access(p, bytes, simt::check::Kind::store, CALLER); \
  }

extern "C" {

ACCESSES(__tsan_, 1)
ACCESSES(__tsan_, 2)
ACCESSES(__tsan_, 4)
ACCESSES(__tsan_, 8)
ACCESSES(__tsan_, 16)
ACCESSES(__tsan_unaligned_, 2)
ACCESSES(__tsan_unaligned_, 4)
ACCESSES(__tsan_unaligned_, 8)
ACCESSES(__tsan_unaligned_, 16)

void __tsan_read_range(void* p, size_t bytes) {
  simt::check::access_range(p, bytes, simt::check::Kind::load, CALLER);
}

void __tsan_write_range(void* p, size_t bytes) {
  simt::check::access_range(p, bytes, simt::check::Kind::store, CALLER);
}

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  simt::check::access_range(from, bytes, simt::check::Kind::load, CALLER);
  simt::check::access_range(to, bytes, simt::check::Kind::store, CALLER);
  return std::memcpy(to, from, bytes);
}

void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  simt::check::access_range(from, bytes, simt::check::Kind::load, CALLER);
  simt::check::access_range(to, bytes, simt::check::Kind::store, CALLER);
  return std::memmove(to, from, bytes);
}

void* __tsan_memset(void* to, int value, size_t bytes) {
  simt::check::access_range(to, bytes, simt::check::Kind::store, CALLER);
  return std::memset(to, value, bytes);
}

void __tsan_init() {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// std::atomic and the guards of static variables, on the host's side: kernels have CUDA's atomics.
#define HOST_ATOMICS(bits, Word)                                                                  \
  Word __tsan_atomic##bits##_load(const volatile Word* p, int) {                                  \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile Word* p, Word value, int) {                           \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                               \
  Word __tsan_atomic##bits##_exchange(volatile Word* p, Word value, int) {                        \
    return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                               \
  Word __tsan_atomic##bits##_fetch_add(volatile Word* p, Word value, int) {                       \
    return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);                                        \
  }                                                                                               \
  Word __tsan_atomic##bits##_fetch_or(volatile Word* p, Word value, int) {                        \
    return __atomic_fetch_or(p, value, __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile Word* p, Word* expected, Word value, \
                                                    int, int) {                                   \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile Word* p, Word* expected, Word value,   \
                                                  int, int) {                                     \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                         \
  }

HOST_ATOMICS(8, uint8_t)
HOST_ATOMICS(32, uint32_t)
HOST_ATOMICS(64, uint64_t)
}
