// Sums and products over the synapses that are not zero, where they are few.
#pragma once
#include "packed.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

// c[k] += the entries of the rows (times weights), row after row, without fused multiply-add: the bits of sum_events, as a
// synapse that is zero adds nothing.
template <class T> LSNN_LOCAL void add_sparse_events(const Sparse<T>& w, const uint32_t* rows, const T* weights, int64_t n, T* c) {
  for (int64_t e = 0; e < n; e++) {
    const uint32_t end = w.start[rows[e] + 1];
    if (weights)
      for (uint32_t i = w.start[rows[e]]; i < end; i++) c[w.column[i]] += weights[e] * w.value[i];
    else
      for (uint32_t i = w.start[rows[e]]; i < end; i++) c[w.column[i]] += w.value[i];
  }
}

// d [items,d_stride] -> turned [N,max_items], zeros beyond the items.
template <class T> LSNN_LOCAL void turn_items(const T* d, int64_t d_stride, int64_t items, int64_t N, T* turned) {
  for (int64_t k = 0; k < N; k++)
    for (int64_t q = 0; q < max_items; q++) turned[k * max_items + q] = q < items ? d[q * d_stride + k] : T(0);
}

// C vectors of items at a time; several sums of each, so that one need not wait for the other.
template <int C, class T>
LSNN_INLINE void sparse_row(const Sparse<T>& w, uint32_t begin, uint32_t end, const T* turned, T* out) {
  constexpr int L = Vec<T>::lanes, parts = C == 1 ? 4 : C == 2 ? 3 : C == 4 ? 2 : 1;
  Vec<T> sum[parts][C];
#pragma GCC unroll 4
  for (int p = 0; p < parts; p++)
#pragma GCC unroll 8
    for (int v = 0; v < C; v++) sum[p][v] = Vec<T>(0);
  auto add = [&](uint32_t i, Vec<T>* to) LSNN_LAMBDA {
    const T* d = turned + (int64_t)w.column[i] * max_items;
    const Vec<T> x = Vec<T>(w.value[i]);
#pragma GCC unroll 8
    for (int v = 0; v < C; v++) to[v] = fma_(x, load(d + v * L), to[v]);
  };
  uint32_t i = begin;
  for (; i + parts <= end; i += parts)
#pragma GCC unroll 4
    for (int p = 0; p < parts; p++) add(i + (uint32_t)p, sum[p]);
  for (; i < end; i++) add(i, sum[0]);
#pragma GCC unroll 8
  for (int v = 0; v < C; v++) {
#pragma GCC unroll 4
    for (int p = 1; p < parts; p++) sum[0][v] = sum[0][v] + sum[p][v];
    store(out + v * L, sum[0][v]);
  }
}

// out[q][j] += sum_k w_jk d[q][k] over the entries of rows [first, first + N). active: as of add_active_product, or null: all.
// turned [N,max_items] is scratch memory; d [items,d_stride], out [items,NP].
template <class T>
LSNN_LOCAL void add_sparse_product(const Sparse<T>& w, int64_t first, int64_t N, int64_t NP, const T* d, int64_t d_stride, T* out,
                                   int64_t items, const uint16_t* active, T* turned) {
  constexpr int L = Vec<T>::lanes, most = (int)max_items / L;
  turn_items(d, d_stride, items, N, turned);
  for (int64_t j = 0; j < N; j++) {
    if (active && !column_of_bits(active + j / 16 * max_items, j % 16)) continue;
    const uint32_t begin = w.start[first + j], end = w.start[first + j + 1];
    T sum[max_items];
    if (items * 2 <= max_items && most > 1) sparse_row<(most + 1) / 2>(w, begin, end, turned, sum);
    else sparse_row<most>(w, begin, end, turned, sum);
    for (int64_t q = 0; q < items; q++) out[q * NP + j] += sum[q];
  }
}

}  // namespace
}  // namespace lsnn::cpu
