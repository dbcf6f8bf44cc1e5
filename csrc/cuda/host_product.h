// The product of the design `step` on the host, in the order of the CPU path: for the emulator.
#pragma once
#include "run.h"

namespace lsnn::cuda {

struct Sizes { int64_t B, N; };  // the context

template <class T> void add_host_product(void* context, const void* a, const void* w,
                                         bool transposed, void* out) {
  const auto [B, N] = *static_cast<Sizes*>(context);
  const int64_t NP = padded(N);
  for (int64_t b = 0; b < B; b++)
    for (int64_t j = 0; j < N; j++) {
      const T x = ((const T*)a)[b * N + j];
      if (x == T(0)) continue;
      for (int64_t n = 0; n < N; n++) {
        T& sum = ((T*)out)[b * N + n];
        sum = sum + x * ((const T*)w)[transposed ? n * NP + j : j * NP + n];
      }
    }
}

}  // namespace lsnn::cuda
