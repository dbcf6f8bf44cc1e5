#include "fiber.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

// The only machine-dependent file of the emulator. EMULATOR_UCONTEXT forces the portable switch.
#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT 1
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATOR_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned flags);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif

namespace emulator {
namespace {

#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN)
// instrumented frames are larger, and reports are written on the fiber's stack
constexpr size_t stack_size = 256 << 10;
#else
constexpr size_t stack_size = 64 << 10;
#endif
constexpr size_t guard_size = 4096;

// Set right before a switch: the fiber that continues.
constinit thread_local Fiber* continued = nullptr;
#ifdef EMULATOR_ASAN
constinit thread_local const void* main_stack = nullptr;
constinit thread_local size_t main_stack_size = 0;
#endif

// The first function on each fiber's stack.
void enter() {
  Fiber& self = *continued;
#ifdef EMULATOR_ASAN
  const void* from_stack = nullptr;
  size_t from_size = 0;
  // reused, as creation is slow
  __sanitizer_finish_switch_fiber(self.fake_stack, &from_stack, &from_size);
  // the first fiber is entered from there
  if (!main_stack) {
    main_stack = from_stack;
    main_stack_size = from_size;
  }
#endif
  self.entry();
  __builtin_unreachable();
}

}  // namespace

// ------------------------------------------------------------------------------- the switch itself
#ifdef EMULATOR_UCONTEXT

namespace {
// A fiber's context lies at the upper end of its stack.
ucontext_t* context_of(Fiber& fiber) { return static_cast<ucontext_t*>(fiber.context); }

void set_entry(Fiber& fiber) {
  const size_t room = (sizeof(ucontext_t) + 63) / 64 * 64;
  fiber.context = fiber.stack + stack_size - room;
  ucontext_t* c = context_of(fiber);
  getcontext(c);
  c->uc_stack.ss_sp = fiber.stack;
  c->uc_stack.ss_size = stack_size - room;
  c->uc_link = nullptr;
  makecontext(c, enter, 0);
}

void set_main(Fiber& main) {
  static thread_local ucontext_t context;
  main.context = &context;
}

void switch_context(Fiber& from, Fiber& to) { swapcontext(context_of(from), context_of(to)); }
}  // namespace

#else

// Saves the registers that a call must preserve on the stack, and continues with those on the other
// stack.
extern "C" void emulator_switch_stack(void** save, void* load);
asm(R"(
.text
.type emulator_switch_stack, @function
emulator_switch_stack:
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
.size emulator_switch_stack, . - emulator_switch_stack
)");

namespace {
void set_entry(Fiber& fiber) {
  void** top = reinterpret_cast<void**>(fiber.stack + stack_size - 64);
  // enter()'s return address: the end of the stack for debuggers, and the alignment that a call
  // leaves
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(enter);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.context = top;
}

void set_main(Fiber&) {}
void switch_context(Fiber& from, Fiber& to) { emulator_switch_stack(&from.context, to.context); }
}  // namespace

#endif

// -------------------------------------------------------------------------------------- sanitizers
#ifdef EMULATOR_TSAN
void release(void* address) { __tsan_release(address); }
void acquire(void* address) { __tsan_acquire(address); }
#endif

void close_memory([[maybe_unused]] void* address, [[maybe_unused]] size_t size) {
#ifdef EMULATOR_ASAN
  __asan_poison_memory_region(address, size);
#endif
}

void open_memory([[maybe_unused]] void* address, [[maybe_unused]] size_t size) {
#ifdef EMULATOR_ASAN
  __asan_unpoison_memory_region(address, size);
#endif
}

// ------------------------------------------------------------------------------------------ fibers
void adopt_thread(Fiber& main) {
  set_main(main);
#ifdef EMULATOR_TSAN
  main.sanitizer_fiber = __tsan_get_current_fiber();
#endif
}

static bool get_stack(Fiber& fiber, bool guard) {
  const int protection = PROT_READ | PROT_WRITE,
            flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  if (!fiber.stack) {
    void* memory = mmap(nullptr, guard_size + stack_size, protection, flags, -1, 0);
    if (memory == MAP_FAILED) return false;
    fiber.stack = static_cast<char*>(memory) + guard_size;
    return !guard || mprotect(memory, guard_size, PROT_NONE) == 0;
  }
  // A used stack. Accesses of the former thread would race with those of the next one, which is not
  // ordered after it: fresh memory resets ThreadSanitizer.
  return !watches_order ||
         mmap(fiber.stack, stack_size, protection, flags | MAP_FIXED, -1, 0) == fiber.stack;
}

bool start(Fiber& fiber, void (*entry)(), bool guard) {
  if (!get_stack(fiber, guard)) return false;
  fiber.entry = entry;
  set_entry(fiber);
#ifdef EMULATOR_TSAN
  if (fiber.sanitizer_fiber) __tsan_destroy_fiber(fiber.sanitizer_fiber);
  fiber.sanitizer_fiber = __tsan_create_fiber(0);  // ordered after the caller's earlier operations
#endif
  return true;
}

void switch_fiber(Fiber& from, Fiber& to) {
  continued = &to;
#ifdef EMULATOR_TSAN
  constexpr unsigned orders_nothing = 1;
  __tsan_switch_to_fiber(to.sanitizer_fiber, orders_nothing);
#endif
#ifdef EMULATOR_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack ? to.stack : main_stack,
                                 to.stack ? stack_size : main_stack_size);
#endif
  switch_context(from, to);
#ifdef EMULATOR_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void abandon(Fiber& fiber) {
  if (!fiber.stack) return;
  open_memory(fiber.stack, stack_size);
#ifdef EMULATOR_TSAN
  if (!fiber.sanitizer_fiber) return;
  // operations of the fiber are ordered before the caller's next ones
  constexpr unsigned orders_all = 0;
  void* caller = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.sanitizer_fiber, orders_all);
  __tsan_switch_to_fiber(caller, orders_all);
#endif
}

void free_stack(Fiber& fiber) {
  if (!fiber.stack) return;
#ifdef EMULATOR_TSAN
  if (fiber.sanitizer_fiber) __tsan_destroy_fiber(fiber.sanitizer_fiber);
#endif
  open_memory(fiber.stack, stack_size);
  munmap(fiber.stack - guard_size, guard_size + stack_size);
  fiber = {};
}

}  // namespace emulator
