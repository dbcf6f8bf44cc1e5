// The dense product of the backward pass, blocked for the registers. The products are the only sums
// of the CPU kernels that use fused multiply-add.
#pragma once
#include "layout.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

inline constexpr int panel_vectors = 2;
template <class T> inline constexpr int64_t panel = panel_vectors * Vec<T>::lanes;

// out[b][panel] += sum_k d[b][k] w[k][panel] for so many items, k < K; each loaded weight vector
// meets all of them.
template <int Items, class T> LSNN_INLINE void panel_product(const T* w, int64_t K, const T* d,
                                                             int64_t d_stride, T* out,
                                                             int64_t out_stride) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[Items][panel_vectors];
#pragma GCC unroll 8
  for (int b = 0; b < Items; b++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) sum[b][v] = load(out + b * out_stride + v * L);
  for (int64_t k = 0; k < K; k++, w += panel<T>) {
    Vec<T> weight[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) weight[v] = load(w + v * L);
#pragma GCC unroll 8
    for (int b = 0; b < Items; b++) {
      const Vec<T> x = Vec<T>(d[b * d_stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; v++) sum[b][v] = fma_(weight[v], x, sum[b][v]);
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < Items; b++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) store(out + b * out_stride + v * L, sum[b][v]);
}

// out[b][j] += sum_k w_jk d[b][k]; panels [J/panel,K,panel], d [items,d_stride], out
// [items,out_stride].
template <class T>
LSNN_LOCAL void add_product(const T* panels, int64_t K, int64_t J, const T* d, int64_t d_stride,
                            T* out, int64_t out_stride, int64_t items) {
  for (int64_t j = 0; j < J; j += panel<T>, panels += K * panel<T>) {
    int64_t b = 0;
    auto next = [&](auto product, int64_t n_items) LSNN_LAMBDA {
      for (; b + n_items <= items; b += n_items)
        product(panels, K, d + b * d_stride, d_stride, out + b * out_stride + j, out_stride);
    };
    next(panel_product<product_items, T>, product_items);
    next(panel_product<2, T>, 2);
    next(panel_product<1, T>, 1);
  }
}

}  // namespace
}  // namespace lsnn::cpu
