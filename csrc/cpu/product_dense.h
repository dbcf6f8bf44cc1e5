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

// to[i][panel] += sum_k row(k)[panel] factor(i, k) for `Rows` rows i, k < n, by add(sum, row,
// factor) in ascending order: a loaded vector serves all of them. For functions that are not
// inlined: callers would compete for registers.
template <int Rows, class T, class Row, class Factor, class Add>
LSNN_INLINE void add_block(T* to, int64_t stride, int64_t n, const Row& row, const Factor& factor,
                           const Add& add) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[Rows][panel_vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) sum[i][v] = load(to + i * stride + v * L);
#pragma GCC unroll 2
  for (int64_t k = 0; k < n; k++) {
    const T* const from = row(k);
    Vec<T> weight[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) weight[v] = load(from + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i++) {
      const Vec<T> x = Vec<T>(factor(i, k));
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; v++) sum[i][v] = add(sum[i][v], weight[v], x);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) store(to + i * stride + v * L, sum[i][v]);
}

// Calls block.run<n>(first) for groups of at most `Rows` of the rows [first, end).
template <int Rows, class F>
LSNN_INLINE void each_group(int64_t first, int64_t end, const F& block) {
  for (; first + Rows <= end; first += Rows) block.template run<Rows>(first);
  if constexpr (Rows > 1)
    if (first < end) each_group<Rows - 1>(first, end, block);
}

// sum + row x, fused
struct FusedAdd {
  template <class V> LSNN_METHOD V operator()(V sum, V row, V x) const { return fma_(row, x, sum); }
};

// out[b][panel] += sum_k d[b][k] w[k][panel], k < K
template <class T> struct PanelProduct {
  const T* w;
  int64_t K;
  const T* d;
  int64_t d_stride;
  T* out;
  int64_t out_stride;

  template <int Items> __attribute__((noinline)) void run(int64_t b) const {
    const T* row[Items];
#pragma GCC unroll 8
    for (int i = 0; i < Items; i++) row[i] = d + (b + i) * d_stride;
    const T* const panels = w;
    add_block<Items>(
        out + b * out_stride, out_stride, K,
        [&](int64_t k) LSNN_LAMBDA { return panels + k * panel<T>; },
        [&](int i, int64_t k) LSNN_LAMBDA { return row[i][k]; }, FusedAdd());
  }
};

// out[b][j] += sum_k w_jk d[b][k]; panels [J/panel,K,panel], d [items,d_stride], out
// [items,out_stride].
template <class T>
LSNN_LOCAL void add_product(const T* panels, int64_t K, int64_t J, const T* d, int64_t d_stride,
                            T* out, int64_t out_stride, int64_t items) {
  for (int64_t k = 0; k < K; k += dense_columns) {
    const int64_t columns = K - k < dense_columns ? K - k : dense_columns;
    for (int64_t j = 0; j < J; j += panel<T>)
      each_group<product_items>(0, items,
                                PanelProduct<T>{panels + j * K + k * panel<T>, columns, d + k,
                                                d_stride, out + j, out_stride});
  }
}

}  // namespace
}  // namespace lsnn::cpu
