// A stack and the point at which what ran on it stopped. This folder is compiled without sanitizers
// even where kernels are compiled with them: the functions below tell them of fibers
// (EMULATOR_ASAN, EMULATOR_TSAN) and of what orders memory.
#pragma once

namespace emulator {

struct Fiber {
  void* context = nullptr;  // where it stopped; what it points to is the affair of fiber.cpp
  char* stack = nullptr;  // lowest address; null: the OS thread's own
  void (*entry)() = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* sanitizer_fiber = nullptr;  // ThreadSanitizer's
};

void adopt_thread(Fiber& main);  // main stands for the OS thread that calls

// The next switch to the fiber calls entry(), which never returns. False: there is no memory for
// its stack.
bool start(Fiber&, void (*entry)(), bool guard_page);
void switch_fiber(Fiber& from, Fiber& to);
void abandon(Fiber&);  // it stopped in the middle and will not continue; it can be started anew
void free_stack(Fiber&);

// What happened before a release is ordered before what follows an acquire at the same address.
#ifdef EMULATOR_TSAN
constexpr bool watches_order = true;
void release(void* address);
void acquire(void* address);
#else
constexpr bool watches_order = false;
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// Memory that AddressSanitizer lets nobody touch, until it is opened again.
void close_memory(void* address, unsigned long size);
void open_memory(void* address, unsigned long size);

}  // namespace emulator
