// Scratch memory: one block, handed out in aligned pieces.
#pragma once
#include <cstdint>

#include "platform.h"

namespace lsnn {
namespace {  // a copy for each instruction set of the CPU path, see platform.h

struct Arena {
  char* base;

  // only counts: the pieces must not be accessed
  LSNN_METHOD Arena() : base(reinterpret_cast<char*>(uintptr_t(128))) {}
  LSNN_METHOD explicit Arena(void* block) : base(static_cast<char*>(block)) {}
  int64_t used = 0;
  template <class X> LSNN_METHOD X* take(int64_t n) {
    // No test for null: nvcc could no longer infer that the pieces lie in shared memory.
    X* p = reinterpret_cast<X*>(base + used);
    used += (n * (int64_t)sizeof(X) + 127) / 128 * 128;
    return p;
  }
};

}  // namespace
}  // namespace lsnn
