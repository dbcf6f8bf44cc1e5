// Runs CUDA kernel source on the host, with every CUDA thread as a fiber of the calling OS thread:
// the interface for host programs. That for kernels is cuda.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>

#include "types.h"

namespace emulator {

using Place = std::source_location;

// The order of threads, and of blocks that need not be alive at the same time. A thread runs until
// it waits. forward and reverse let the first and the last warp run ahead of the others as far as
// barriers allow.
enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::forward;
  uint64_t seed = 1;  // of everything random in a launch: the same seed gives the same run
  unsigned yield_in_256 = 0;  // how many of 256 atomic operations let another thread run first
  unsigned late_in_256 = 128;  // how many of 256 store_async() arrive only when a thread waits
  unsigned spurious_in_256 = 32;  // how many of 256 passed_mbarrier() return false for no reason
  // shared memory starts as bytes 0xFF, NaN as a float; else it is not initialized
  bool poison = true;
  // yields without a passed barrier or a returning thread that raise an Error
  uint64_t spin_limit = 10'000'000;
};
Options& options();  // of the launches of the calling OS thread

struct Stats { uint64_t switches = 0, barriers = 0, launches = 0, threads = 0; };
Stats& stats();  // of the calling OS thread, since it started; may be set to {}

// launch() throws an Error for each error in a kernel: what, where in the kernel's source, and
// which thread. Other threads are dropped; destructors of their variables do not run.
struct Error : std::runtime_error { using std::runtime_error::runtime_error; };

struct Launch {
  dim3 grid = 1, block = 1;
  size_t shared = 0;  // bytes of dynamic shared memory of each block
  unsigned registers = 0;  // of a thread, as the compiler for the GPU assigns them; 0: unknown
  unsigned cluster = 1;  // blocks of a cluster, along x
  bool cooperative = false;  // all blocks are alive at the same time, and grid.sync() is allowed
};

void launch(const Launch&, void (*body)(const void*), const void* context, Place);

// Calls body() once for each thread of the launch and returns when all have returned.
template <class F> void launch(const Launch& shape, const F& body, Place place = Place::current()) {
  launch(shape, [](const void* f) { (*static_cast<const F*>(f))(); }, &body, place);
}

}  // namespace emulator
