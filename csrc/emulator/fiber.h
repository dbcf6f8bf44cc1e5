// A stack and the point at which its execution stopped. This folder is compiled without sanitizers
// even if kernels are compiled with them: the functions below inform sanitizers about fibers
// (EMULATOR_ASAN, EMULATOR_TSAN) and memory order.
#pragma once

namespace emulator {

struct Fiber {
  void* context = nullptr;  // where it stopped; private to fiber.cpp
  char* stack = nullptr;  // lowest address; null: the OS thread's own
  void (*entry)() = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* sanitizer_fiber = nullptr;  // ThreadSanitizer's
};

void adopt_thread(Fiber& main);  // main represents the calling OS thread

// The next switch to the fiber calls entry(), which never returns. False: no memory for its stack.
bool start(Fiber&, void (*entry)(), bool guard_page);
void switch_fiber(Fiber& from, Fiber& to);
void abandon(Fiber&);  // stopped in the middle and will not continue; may be started again
void free_stack(Fiber&);

// Operations before a release are ordered before those after an acquire at the same address.
#ifdef EMULATOR_TSAN
constexpr bool watches_order = true;
void release(void* address);
void acquire(void* address);
#else
constexpr bool watches_order = false;
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// Poisons memory for AddressSanitizer until it is opened again.
void close_memory(void* address, unsigned long size);
void open_memory(void* address, unsigned long size);

}  // namespace emulator
