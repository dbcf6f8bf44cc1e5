// Devices with less than the one at hand, and code for older GPUs.
#pragma once
#include <array>

#include "../../cuda/device.h"
#include "../../cuda/plan.h"
#include "../check.h"

namespace lsnn::test {

// The device; with a single SM; with fewer clusters than its SMs could form; with no clusters and
// little shared memory, as Turing.
inline std::array<cuda::Device, 4> with_variants(const cuda::Device& device) {
  cuda::Device tiny = device, few = device, turing = device;
  tiny.sms = 1;
  few.clusters[0] = few.clusters[1] = 1;
  few.clusters[2] = 0;
  turing.most_ranks = 1;
  turing.shared = 64 << 10;
  return {device, tiny, few, turing};
}

// Code compiled for an older GPU lacks later features.
inline void check_older_code() {
  at_hand = "code for an older GPU";
  const cuda::Device hopper = {90, 4, 227 << 10, 8};
  Layer l{};
  l.S = 1;
  for (int compiled : {75, 80, 90, 120}) {
    const cuda::Device device = cuda::as_compiled(hopper, compiled);
    check(cuda::no_tensor_cores(device, l, false).empty() == (compiled >= 80),
          "tensor cores of code for " + std::to_string(compiled));
    check(device.most_ranks == (compiled >= 90 ? 8 : 1),
          "clusters of code for " + std::to_string(compiled));
  }
}

}  // namespace lsnn::test
