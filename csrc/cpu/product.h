// The products of the backward pass, blocked for the registers; the only sums here that use fused multiply-add.
#pragma once
#include "packed.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

inline constexpr int panel_vectors = 2;
template <class T> inline constexpr int64_t panel = panel_vectors * Vec<T>::lanes;

// out[q][panel] += sum_k d[q][k] w[k][panel] for Q items; each loaded weight vector meets all of them.
template <int Q, class T> LSNN_INLINE void panel_product(const T* w, int64_t N, int64_t NP, const T* d, T* out) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[Q][panel_vectors];
#pragma GCC unroll 8
  for (int q = 0; q < Q; q++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) sum[q][v] = load(out + q * NP + v * L);
  for (int64_t k = 0; k < N; k++, w += panel<T>) {
    Vec<T> weight[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) weight[v] = load(w + v * L);
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++) {
      const Vec<T> x = Vec<T>(d[q * NP + k]);
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; v++) sum[q][v] = fma_(weight[v], x, sum[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; q++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) store(out + q * NP + v * L, sum[q][v]);
}

// out[q][j] += sum_k w_jk d[q][k]; panels [NP/panel,N,panel], d and out [items,NP].
template <class T> LSNN_LOCAL void add_product(const T* panels, int64_t N, int64_t NP, const T* d, T* out, int64_t items) {
  for (int64_t j = 0; j < NP; j += panel<T>, panels += N * panel<T>) {
    int64_t q = 0;
    for (; q + product_items <= items; q += product_items) panel_product<product_items>(panels, N, NP, d + q * NP, out + q * NP + j);
    for (; q + 2 <= items; q += 2) panel_product<2>(panels, N, NP, d + q * NP, out + q * NP + j);
    for (; q < items; q++) panel_product<1>(panels, N, NP, d + q * NP, out + q * NP + j);
  }
}

// to[n] += x from[n]
template <class T> LSNN_INLINE void add_row(T* to, T x, const T* from, int64_t NP) {
  for (int64_t n = 0; n < NP; n += Vec<T>::lanes) store(to + n, fma_(Vec<T>(x), load(from + n), load(to + n)));
}

// to += the sum of the rows at the given offsets, over the first min(C, vectors) vectors, in registers.
template <int C, class T> LSNN_LOCAL void add_rows(int64_t vectors, T* to, const T* base, const uint32_t* offsets, int64_t n) {
  if constexpr (C > 1)
    if (vectors < C) return add_rows<C - 1>(vectors, to, base, offsets, n);
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[C];
#pragma GCC unroll 16
  for (int v = 0; v < C; v++) sum[v] = load(to + v * L);
  for (int64_t e = 0; e < n; e++) {
    const T* row = base + offsets[e];
#pragma GCC unroll 16
    for (int v = 0; v < C; v++) sum[v] = sum[v] + load(row + v * L);
  }
#pragma GCC unroll 16
  for (int v = 0; v < C; v++) store(to + v * L, sum[v]);
}

}  // namespace
}  // namespace lsnn::cpu
