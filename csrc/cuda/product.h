// The products of the design `step`, by a library of the caller.
#pragma once
#include <cstdint>

namespace lsnn::cuda {

// A factor of a product, with the strides of its rows and columns.
struct Factor {
  const void* data;
  int64_t row, column;
};
// out [M,N] += a [M,K] b [K,N], with contiguous rows of out.
struct Product {
  void (*add)(void* context, int64_t M, int64_t K, int64_t N, const Factor& a, const Factor& b,
              void* out);
  void* context;
};

// On the host, in the order of the CPU path: results are bitwise identical.
template <class T> void add_on_host(void*, int64_t M, int64_t K, int64_t N, const Factor& a,
                                    const Factor& b, void* out) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t k = 0; k < K; k++) {
      const T x = ((const T*)a.data)[m * a.row + k * a.column];
      if (x == T(0)) continue;
      for (int64_t n = 0; n < N; n++)
        ((T*)out)[m * N + n] += x * ((const T*)b.data)[k * b.row + n * b.column];
    }
}

}  // namespace lsnn::cuda
