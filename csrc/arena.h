// Scratch memory: one block, handed out in aligned pieces.
#pragma once
#include <cstdint>

#include "platform.h"

namespace lsnn {
namespace {  // each instruction set of the CPU path has a copy of its own, see platform.h

// With a null block it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class X> LSNN_MEMBER X* take(int64_t n) {
    X* p = base ? reinterpret_cast<X*>(base + used) : nullptr;
    used += (n * (int64_t)sizeof(X) + 127) / 128 * 128;
    return p;
  }
};

}  // namespace
}  // namespace lsnn
