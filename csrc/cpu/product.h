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

// ------------------------------------------------------------------------------------------- where the result is of use
// out[item[q] + j] += sum_k w[k] d[item[q] + k] for Q items; each loaded weight vector meets all of them.
template <int Q, class T> LSNN_INLINE void row_product(const T* w, int64_t N, const T* d, const uint32_t* item, T* out) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[8];
#pragma GCC unroll 8
  for (int q = 0; q < 8; q++) sum[q] = Vec<T>(0);
  for (int64_t k = 0; k < N; k += L) {
    const Vec<T> weight = load(w + k);
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++) sum[q] = fma_(weight, load(d + item[q] + k), sum[q]);
  }
  T total[8];
  sum_lanes(sum, total);
#pragma GCC unroll 8
  for (int q = 0; q < Q; q++) out[item[q]] += total[q];
}
template <class T> LSNN_INLINE void rows_product(const T* w, int64_t N, const T* d, const uint32_t* item, int64_t n, T* out) {
  for (; n >= 8; n -= 8, item += 8) row_product<8>(w, N, d, item, out);
  switch (n) {
    case 7: return row_product<7>(w, N, d, item, out);
    case 6: return row_product<6>(w, N, d, item, out);
    case 5: return row_product<5>(w, N, d, item, out);
    case 4: return row_product<4>(w, N, d, item, out);
    case 3: return row_product<3>(w, N, d, item, out);
    case 2: return row_product<2>(w, N, d, item, out);
    case 1: return row_product<1>(w, N, d, item, out);
  }
}

// As add_product, but only for the items and neurons marked in active [NP/16,max_items]: bit j % 16 of word (j / 16, q).
// w [N,NP], d and out [items,NP].
template <class T> LSNN_LOCAL void add_active_product(const T* w, int64_t N, int64_t NP, const T* d, T* out, const uint16_t* active) {
  uint32_t item[max_items + 32];
  for (int64_t j = 0; j < N; j++, w += NP) {
    const uint32_t items = column_of_bits(active + j / 16 * max_items, j % 16);
    if (items) rows_product(w, N, d, item, set_bits(&items, 1, 0, (uint32_t)NP, item, 0), out + j);
  }
}

// Up to which share of marked items and neurons add_active_product is the faster one, by measurement.
inline constexpr double active_limit(int64_t items) { return items >= 16 ? 0.5 : items >= 8 ? 0.33 : 0.25; }

}  // namespace
}  // namespace lsnn::cpu
