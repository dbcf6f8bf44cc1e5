// Sums and weight gradients of spikes that are numbers, such as rates: most are not 0, so that
// blocks of items or neurons in registers are faster than events. The order of additions is that of
// events, and so are the results, bit for bit, while all numbers are finite.
#pragma once
#include "events.h"
#include "product_dense.h"

namespace lsnn::cpu {
namespace {

// Pairs of a row of spikes z [N] and what it acts on, or what it learns from.
inline constexpr int64_t most_pairs = chunk * max_items;
// Of these, how many are multiplied with a block of columns, which stay in the L1 cache.
inline constexpr int64_t pairs_at_once = 64;

// Whether blocks are faster: a quarter of the numbers of n rows is not 0.
template <class T>
LSNN_LOCAL bool are_dense(const T* const* rows, int64_t n, int64_t N) {
  int64_t found = 0;
  for (int64_t r = 0; r < n; r++)
    for (int64_t i = 0; i < N; i += Vec<T>::lanes)
      found += __builtin_popcount(to_bits(load_n(rows[r] + i, N - i) != Vec<T>(0)));
  return 4 * found >= n * N;
}

// sum[b][panel] += sum_j z[b][j] w[j][panel] for `Items` items, j < n, in ascending order and
// without fused multiply-add.
template <int Items, class T>
LSNN_LOCAL __attribute__((noinline)) void sum_numbers(const T* w, int64_t w_stride, int64_t n,
                                                      const T* const* z, int64_t j0, T* sums,
                                                      int64_t stride) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[Items][panel_vectors];
  const T* row[Items];
#pragma GCC unroll 8
  for (int b = 0; b < Items; b++) {
    row[b] = z[b] + j0;
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) sum[b][v] = load(sums + b * stride + v * L);
  }
  for (int64_t j = 0; j < n; j++, w += w_stride) {
    Vec<T> weight[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) weight[v] = load(w + v * L);
#pragma GCC unroll 8
    for (int b = 0; b < Items; b++) {
      const Vec<T> x = Vec<T>(row[b][j]);
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; v++) sum[b][v] = sum[b][v] + x * weight[v];
    }
  }
#pragma GCC unroll 8
  for (int b = 0; b < Items; b++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) store(sums + b * stride + v * L, sum[b][v]);
}

// The same for any number of items, in groups that fit the registers.
template <int Items, class T>
LSNN_INLINE void sum_numbers_of(int64_t items, const T* w, int64_t w_stride, int64_t n,
                                const T* const* z, int64_t j0, T* sums, int64_t stride) {
  for (; items >= Items; items -= Items, z += Items, sums += Items * stride)
    sum_numbers<Items>(w, w_stride, n, z, j0, sums, stride);
  if constexpr (Items > 1)
    if (items) sum_numbers_of<Items - 1>(items, w, w_stride, n, z, j0, sums, stride);
}

// to[j][panel] += sum_e z[e][j] from[e][panel] for `Rows` neurons j, e < n; with the arithmetic of
// add_row.
template <int Rows, class T>
LSNN_LOCAL __attribute__((noinline)) void add_outer(T* to, int64_t stride, const T* const* z,
                                                    int64_t j, const T* const* from, int64_t at,
                                                    int64_t n) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[Rows][panel_vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) sum[i][v] = load(to + i * stride + v * L);
  for (int64_t e = 0; e < n; e++) {
    const T* const x = z[e] + j;
    Vec<T> row[panel_vectors];
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) row[v] = load(from[e] + at + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i++)
#pragma GCC unroll 2
      for (int v = 0; v < panel_vectors; v++) sum[i][v] = fma_(Vec<T>(x[i]), row[v], sum[i][v]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < panel_vectors; v++) store(to + i * stride + v * L, sum[i][v]);
}

// The same for the neurons [j, N).
template <int Rows, class T>
LSNN_INLINE void add_outer_of(int64_t j, int64_t N, T* to, int64_t stride, const T* const* z,
                              const T* const* from, int64_t at, int64_t n) {
  for (; j + Rows <= N; j += Rows) add_outer<Rows>(to + j * stride, stride, z, j, from, at, n);
  if constexpr (Rows > 1)
    if (j < N) add_outer_of<Rows - 1>(j, N, to, stride, z, from, at, n);
}

// to [N,stride] += sum_e z[e] from[e] over n pairs, in the columns [first, end).
template <class T>
LSNN_LOCAL void add_outer_products(T* to, int64_t stride, int64_t N, const T* const* z,
                                   const T* const* from, int64_t n, int64_t first, int64_t end) {
  for (int64_t e = 0; e < n; e += pairs_at_once)
    for (int64_t at = first; at < end; at += panel<T>)
      add_outer_of<product_items>(0, N, to + at, stride, z + e, from + e, at,
                                  n - e < pairs_at_once ? n - e : pairs_at_once);
}

}  // namespace
}  // namespace lsnn::cpu
