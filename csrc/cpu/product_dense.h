// The dense product of the backward pass, register-blocked. Only these products use fused
// multiply-add in the CPU kernels.
#pragma once
#include "layout.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

inline constexpr int panel_vectors = 2;
template <class T> inline constexpr int64_t panel = panel_vectors * Vec<T>::lanes;

// Columns of d that are multiplied with all panels in turn: a block of all items that stays in the
// L1 cache.
inline constexpr int64_t dense_columns = 256;

// out[b][panel] += sum_k d[b][k] w[k][panel] for `Items` items, k < K; a loaded weight vector
// serves all of them. Not inlined: callers would compete for registers.
template <int Items, class T>
LSNN_LOCAL __attribute__((noinline)) void panel_product(const T* w, int64_t K, const T* d,
                                                        int64_t d_stride, T* out,
                                                        int64_t out_stride) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[Items][panel_vectors];
  const T* row[Items];
#pragma GCC unroll 8
  for (int b = 0; b < Items; b++) {
    row[b] = d + b * d_stride;
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) sum[b][v] = load(out + b * out_stride + v * L);
  }
  auto add = [&](int64_t k, const T* w) LSNN_LAMBDA {
    Vec<T> weight[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) weight[v] = load(w + v * L);
#pragma GCC unroll 8
    for (int b = 0; b < Items; b++) {
      const Vec<T> x = Vec<T>(row[b][k]);
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; v++) sum[b][v] = fma_(weight[v], x, sum[b][v]);
    }
  };
  int64_t k = 0;
  for (; k + 2 <= K; k += 2, w += 2 * panel<T>) {
    add(k, w);
    add(k + 1, w + panel<T>);
  }
  if (k < K) add(k, w);
#pragma GCC unroll 8
  for (int b = 0; b < Items; b++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) store(out + b * out_stride + v * L, sum[b][v]);
}

// One panel with the items from b on, in groups that fit the registers.
template <int Items, class T>
LSNN_INLINE void panel_products(const T* w, int64_t K, const T* d, int64_t d_stride, T* out,
                                int64_t out_stride, int64_t items) {
  for (; items >= Items; items -= Items, d += Items * d_stride, out += Items * out_stride)
    panel_product<Items>(w, K, d, d_stride, out, out_stride);
  if constexpr (Items > 1)
    if (items) panel_products<Items - 1>(w, K, d, d_stride, out, out_stride, items);
}

// out[b][j] += sum_k w_jk d[b][k]; panels [J/panel,K,panel], d [items,d_stride], out
// [items,out_stride].
template <class T>
LSNN_LOCAL void add_product(const T* panels, int64_t K, int64_t J, const T* d, int64_t d_stride,
                            T* out, int64_t out_stride, int64_t items) {
  for (int64_t k = 0; k < K; k += dense_columns) {
    const int64_t columns = K - k < dense_columns ? K - k : dense_columns;
    for (int64_t j = 0; j < J; j += panel<T>)
      panel_products<product_items>(panels + j * K + k * panel<T>, columns, d + k, d_stride,
                                    out + j, out_stride, items);
  }
}

}  // namespace
}  // namespace lsnn::cpu
