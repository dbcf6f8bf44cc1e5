// The products of the backward pass, blocked for the registers; the only sums here that use fused multiply-add.
#pragma once
#include "packed.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

inline constexpr int panel_vectors = 2;
template <class T> inline constexpr int64_t panel = panel_vectors * Vec<T>::lanes;

// out[q][panel] += sum_k d[q][k] w[k][panel] for Q items, k < K; each loaded weight vector meets all of them.
template <int Q, class T> LSNN_INLINE void panel_product(const T* w, int64_t K, const T* d, int64_t d_stride, T* out, int64_t out_stride) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[Q][panel_vectors];
#pragma GCC unroll 8
  for (int q = 0; q < Q; q++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) sum[q][v] = load(out + q * out_stride + v * L);
  for (int64_t k = 0; k < K; k++, w += panel<T>) {
    Vec<T> weight[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) weight[v] = load(w + v * L);
#pragma GCC unroll 8
    for (int q = 0; q < Q; q++) {
      const Vec<T> x = Vec<T>(d[q * d_stride + k]);
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; v++) sum[q][v] = fma_(weight[v], x, sum[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; q++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) store(out + q * out_stride + v * L, sum[q][v]);
}

// out[q][j] += sum_k w_jk d[q][k]; panels [J/panel,K,panel], d [items,d_stride], out [items,out_stride].
template <class T>
LSNN_LOCAL void add_product(const T* panels, int64_t K, int64_t J, const T* d, int64_t d_stride, T* out, int64_t out_stride,
                            int64_t items) {
  for (int64_t j = 0; j < J; j += panel<T>, panels += K * panel<T>) {
    int64_t q = 0;
    auto next = [&](auto product, int64_t many) LSNN_LAMBDA {
      for (; q + many <= items; q += many) product(panels, K, d + q * d_stride, d_stride, out + q * out_stride + j, out_stride);
    };
    next(panel_product<product_items, T>, product_items), next(panel_product<2, T>, 2), next(panel_product<1, T>, 1);
  }
}

// ------------------------------------------------------------------------------------------- where the result is of use
// Rows of weights with the items that they are of use to, row << 16 | items, sorted by the number of these items: the loops
// over them know this number while compiling, and no branch depends on the data.
struct ActiveRows {
  int64_t first_cache;  // bytes
  uint32_t* entries;    // [row_items + 1,N]
  int64_t n[row_items + 1];
};

// The products of R rows of weights with Q items each, while they are computed.
template <int R, int Q, class T> struct RowSums {
  static constexpr int n = R * Q, whole = (n + 7) / 8 * 8;
  int64_t j[R];                // the rows
  uint32_t item[n], to[n];     // where the items of each stand in d, and the results in out
  Vec<T> sum[whole];

  // d and out have rows of d_stride and out_stride numbers.
  LSNN_MEMBER RowSums(const uint32_t* entries, int64_t d_stride, int64_t out_stride) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      uint32_t items = entries[r] & 0xffff;
      j[r] = entries[r] >> 16;
#pragma GCC unroll 16
      for (int q = 0; q < Q; q++, items &= items - 1) {
        const uint32_t i = (uint32_t)__builtin_ctz(items);
        item[r * Q + q] = i * (uint32_t)d_stride, to[r * Q + q] = i * (uint32_t)out_stride + (uint32_t)j[r];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < whole; i++) sum[i] = Vec<T>(0);
  }
  LSNN_MEMBER void add_to(T* out) {
    T total[whole];
#pragma GCC unroll 2
    for (int i = 0; i < n; i += 8) sum_lanes(sum + i, total + i);
#pragma GCC unroll 16
    for (int i = 0; i < n; i++) out[to[i]] += total[i];
  }
};

// R rows with Q items each, columns k0 to k1: every loaded weight vector meets all items.
template <int R, int Q, class T>
LSNN_INLINE void row_products(const uint32_t* entries, const T* w, int64_t k0, int64_t k1, int64_t NP, const T* d, int64_t stride, T* out) {
  constexpr int L = Vec<T>::lanes;
  RowSums<R, Q, T> s(entries, stride, stride);
  for (int64_t k = k0; k < k1; k += L)
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const Vec<T> weight = load(w + s.j[r] * NP + k);
#pragma GCC unroll 16
      for (int q = 0; q < Q; q++) s.sum[r * Q + q] = fma_(weight, load(d + s.item[r * Q + q] + k), s.sum[r * Q + q]);
    }
  s.add_to(out);
}

// How many rows with Q items are computed together: with few sums each addition would wait for the one before.
inline constexpr int rows_together(int Q) { return Q * 4 <= 8 ? 4 : Q * 2 <= row_items ? 2 : 1; }

// The rows with Q items each and with fewer, columns k0 to k1.
template <int Q, class T>
LSNN_LOCAL void add_rows_with(const T* w, int64_t N, int64_t k0, int64_t k1, int64_t NP, const T* d, int64_t stride, T* out,
                              const ActiveRows& rows) {
  constexpr int R = rows_together(Q);
  const uint32_t* entries = rows.entries + Q * N;
  int64_t e = 0;
  for (; e + R <= rows.n[Q]; e += R) row_products<R, Q>(entries + e, w, k0, k1, NP, d, stride, out);
  for (; R > 1 && e < rows.n[Q]; e++) row_products<1, Q>(entries + e, w, k0, k1, NP, d, stride, out);
  if constexpr (Q > 1) add_rows_with<Q - 1>(w, N, k0, k1, NP, d, stride, out, rows);
}

// Sorts the rows from j0 to j1 with marked items: active [NP/16,max_items], bit j % 16 of word (j / 16, q) for neuron j and item q.
LSNN_LOCAL void sort_rows(int64_t N, int64_t j0, int64_t j1, const uint16_t* active, ActiveRows& rows) {
  memset(rows.n, 0, sizeof rows.n);
  auto enter = [&](int64_t j, unsigned items, int many)
                   LSNN_LAMBDA { rows.entries[many * N + rows.n[many]++] = (uint32_t)j << 16 | items; };
  for (int64_t j = j0; j < j1; j++) {
    unsigned items = column_of_bits(active + j / 16 * max_items, j % 16);
    int many = __builtin_popcount(items);
    if (many > row_items) {  // too many for the registers: in two parts
      unsigned rest = items;
      for (int q = 0; q < row_items; q++) rest &= rest - 1;
      enter(j, items & ~rest, row_items);
      items = rest, many -= row_items;
    }
    enter(j, items, many);
  }
}

// Calls add(k0, k1) for blocks of columns, of which dL/dc of all items, `bytes` each, stays in the first cache.
template <class F> LSNN_INLINE void each_block(int64_t N, int64_t first_cache, int64_t bytes, const F& add) {
  const int64_t most = first_cache * 2 / 3 / (max_items * bytes), blocks = (N + most - 1) / most;
  const int64_t columns = (N / blocks + pad - 1) / pad * pad;
  for (int64_t k = 0; k < N; k += columns) add(k, k + columns < N ? k + columns : N);
}

// As add_product, but only for the items and neurons marked in active, from j0 to j1. w [N,NP], d and out [items,stride].
template <class T>
LSNN_LOCAL void add_active_product(const T* w, int64_t N, int64_t NP, const T* d, int64_t stride, T* out, int64_t j0, int64_t j1,
                                   const uint16_t* active, ActiveRows& rows) {
  sort_rows(N, j0, j1, active, rows);
  each_block(N, rows.first_cache, sizeof(T),
             [&](int64_t k0, int64_t k1) LSNN_LAMBDA { add_rows_with<row_items>(w, N, k0, k1, NP, d, stride, out, rows); });
}

// -------------------------------------------------------------------------------------------- the same in bfloat16
#if LSNN_ISA == 512
// Functions for processors with bfloat16 products among those with AVX-512; run.cpp asks the processor before it calls them.
#define LSNN_BF16 __attribute__((target("avx512bf16")))
template <class T> inline constexpr bool has_bf16 = sizeof(T) == 4;

// n numbers, a multiple of 32, rounded to the nearest.
LSNN_BF16 static void to_bf16(const float* from, int64_t n, uint16_t* to) {
  for (int64_t k = 0; k < n; k += 32)
    _mm512_storeu_si512(to + k, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + k + 16), _mm512_loadu_ps(from + k)));
}

// As row_products and add_rows_with; w [N,NP] and d [items,gradient_stride] in bfloat16, zeros beyond N in w and numbers in d; pairs
// of products are summed in float.
template <int R, int Q>
LSNN_BF16 LSNN_INLINE void bf16_row_products(const uint32_t* entries, const uint16_t* w, int64_t k0, int64_t k1, int64_t NP,
                                             const uint16_t* d, float* out) {
  RowSums<R, Q, float> s(entries, gradient_stride<uint16_t>(NP), gradient_stride<float>(NP));
  for (int64_t k = k0; k < k1; k += 32)
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m512bh weight = (__m512bh)_mm512_loadu_si512(w + s.j[r] * NP + k);
#pragma GCC unroll 16
      for (int q = 0; q < Q; q++) {
        const __m512bh x = (__m512bh)_mm512_loadu_si512(d + s.item[r * Q + q] + k);
        s.sum[r * Q + q].v = _mm512_dpbf16_ps(s.sum[r * Q + q].v, weight, x);
      }
    }
  s.add_to(out);
}
template <int Q>
LSNN_BF16 LSNN_LOCAL void add_bf16_rows_with(const uint16_t* w, int64_t N, int64_t k0, int64_t k1, int64_t NP, const uint16_t* d,
                                             float* out, const ActiveRows& rows) {
  constexpr int R = rows_together(Q);
  const uint32_t* entries = rows.entries + Q * N;
  int64_t e = 0;
  for (; e + R <= rows.n[Q]; e += R) bf16_row_products<R, Q>(entries + e, w, k0, k1, NP, d, out);
  for (; R > 1 && e < rows.n[Q]; e++) bf16_row_products<1, Q>(entries + e, w, k0, k1, NP, d, out);
  if constexpr (Q > 1) add_bf16_rows_with<Q - 1>(w, N, k0, k1, NP, d, out, rows);
}
LSNN_LOCAL void add_bf16_product(const uint16_t* w, int64_t N, int64_t NP, const uint16_t* d, float* out, int64_t j0, int64_t j1,
                                 const uint16_t* active, ActiveRows& rows) {
  sort_rows(N, j0, j1, active, rows);
  each_block(N, rows.first_cache, sizeof(uint16_t),
             [&](int64_t k0, int64_t k1) LSNN_LAMBDA { add_bf16_rows_with<row_items>(w, N, k0, k1, NP, d, out, rows); });
}
#else
template <class T> inline constexpr bool has_bf16 = false;
#endif

// One product, to be timed: half of the results of w [n,n], n at most 256, with d and out [max_items,gradient_stride].
template <class T>
LSNN_LOCAL void trial_product(int64_t n, const T* w, [[maybe_unused]] const uint16_t* w_bf16, const T* d, T* out, uint32_t* entries,
                              [[maybe_unused]] bool bf16) {
  ActiveRows rows{32 << 10, entries, {}};
  uint16_t active[256 / 16 * max_items] = {};
  for (int64_t i = 0; i < n / 16 * max_items; i++) active[i] = i % 2 ? 0xff00 : 0x00ff;
#if LSNN_ISA == 512
  if constexpr (has_bf16<T>)
    if (bf16) {
      uint16_t turned[max_items * gradient_stride<uint16_t>(256)] = {};
      for (int64_t q = 0; q < max_items; q++) to_bf16(d + q * gradient_stride<T>(n), n, turned + q * gradient_stride<uint16_t>(n));
      return add_bf16_product(w_bf16, n, n, turned, out, 0, n, active, rows);
    }
#endif
  add_active_product(w, n, n, d, gradient_stride<T>(n), out, 0, n, active, rows);
}

// Up to which share of marked items and neurons add_active_product is faster than add_product, by measurement, and
// add_bf16_product.
inline constexpr double active_limit_bf16 = 0.85;
inline constexpr double active_limit(int64_t items) { return items >= 16 ? 0.55 : items >= 8 ? 0.33 : 0.25; }

}  // namespace
}  // namespace lsnn::cpu
