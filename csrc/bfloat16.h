// The upper half of a float, rounded to nearest even: storage for weights and saved membranes,
// never arithmetic.
#pragma once
#include <cstdint>

#include "platform.h"

namespace lsnn {

struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  LSNN_METHOD explicit bfloat16(float x) {
    union {
      float f;
      uint32_t u;
    } all{x};
    const bool nan = (all.u & 0x7fffffff) > 0x7f800000;
    bits = nan ? 0x7fc0 : (uint16_t)((all.u + 0x7fff + (all.u >> 16 & 1)) >> 16);
  }
  LSNN_METHOD operator float() const {
    union {
      uint32_t u;
      float f;
    } all{(uint32_t)bits << 16};
    return all.f;
  }
};

}  // namespace lsnn
