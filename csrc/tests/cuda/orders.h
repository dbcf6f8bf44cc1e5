// The orders of the threads of emulated kernels.
#pragma once
#include "../../cuda/device.h"

namespace lsnn::test {

// In turn forward, reverse and random.
inline void set_order([[maybe_unused]] int which) {
#if !LSNN_NVCC
  emulator::options().order = emulator::Order(which % 3);
  emulator::options().seed = (uint64_t)which + 1;
  emulator::options().yield_in_256 = which % 3 == 2 ? 32 : 0;
  // shared memory starts as NaN, or as the block before left it
  emulator::options().poison = which % 3 != 1;
#endif
}

}  // namespace lsnn::test
