// Sums and products over nonzero synapses, where these are few.
#pragma once
#include "product_active.h"

namespace lsnn::cpu {
namespace {

// The first entry of a row from column n on, or its end.
template <class T> LSNN_INLINE uint32_t entry_from(const Sparse<T>& w, uint32_t row, int64_t n) {
  uint32_t from = w.start[row], to = w.start[row + 1];
  while (from < to) {
    const uint32_t middle = from + (to - from) / 2;
    if (w.column[middle] < n) from = middle + 1;
    else to = middle;
  }
  return from;
}

// The entries of a row in columns [n0, n1) of N.
struct Entries { uint32_t first, end; };
template <class T>
LSNN_INLINE Entries entries_of(const Sparse<T>& w, int64_t N, uint32_t row, int64_t n0,
                               int64_t n1) {
  return {n0 ? entry_from(w, row, n0) : w.start[row],
          n1 < N ? entry_from(w, row, n1) : w.start[row + 1]};
}

// c[k] += the entries of the rows (times weights) in columns [n0, n1), row after row, without fused
// multiply-add: bitwise identical to sum_events, as zero synapses add nothing.
template <class T>
LSNN_LOCAL void add_sparse_events(const Sparse<T>& w, int64_t N, const uint32_t* rows,
                                  const T* weights, int64_t n, T* c, int64_t n0, int64_t n1) {
  for (int64_t e = 0; e < n; e++) {
    auto [i, end] = entries_of(w, N, rows[e], n0, n1);
    if (weights)
      for (; i < end; i++) c[w.column[i]] += weights[e] * w.value[i];
    else
      for (; i < end; i++) c[w.column[i]] += w.value[i];
  }
}

// d [items,d_stride] -> rows [n0, n1) of transposed [N,max_items]; columns beyond the items are not
// written.
template <class T> LSNN_LOCAL void transpose_items(const T* d, int64_t d_stride, int64_t items,
                                                   int64_t n0, int64_t n1, T* transposed) {
  for (int64_t k = n0; k < n1; k++)
    for (int64_t b = 0; b < items; b++) transposed[k * max_items + b] = d[b * d_stride + k];
}

// Four consecutive weights, each broadcast to all lanes, with few loads: loads limit a sparse
// product.
template <class T> struct FourWeights {
  const T* value;
  LSNN_METHOD explicit FourWeights(const T* v) : value(v) {}
  LSNN_METHOD Vec<T> operator[](int p) const { return Vec<T>(value[p]); }
};
#if LSNN_TARGET == LSNN_TARGET_AVX512
template <> struct FourWeights<float> {
  __m512 value;
  LSNN_METHOD explicit FourWeights(const float* v)
      : value(_mm512_castps128_ps512(_mm_loadu_ps(v))) {}
  LSNN_METHOD Vec<float> operator[](int p) const {
    return _mm512_permutexvar_ps(_mm512_set1_epi32(p), value);
  }
};
#endif

// The sums of a neuron over its synapses, C vectors of items, each in several partial sums to hide
// latency.
template <int C, class T> struct SparseSums {
  static constexpr int L = Vec<T>::lanes, accumulators = C == 1 ? 4 : C == 2 ? 3 : C == 4 ? 2 : 1;
  Vec<T> sum[accumulators][C];

  LSNN_METHOD SparseSums() {
#pragma GCC unroll 4
    for (int p = 0; p < accumulators; p++)
#pragma GCC unroll 8
      for (int v = 0; v < C; v++) sum[p][v] = Vec<T>(0);
  }
  LSNN_METHOD void add_one(uint64_t place, Vec<T> x, const T* transposed, Vec<T>* to) const {
    const T* d = transposed + place * max_items;
#pragma GCC unroll 8
    for (int v = 0; v < C; v++) to[v] = fma_(x, load(d + v * L), to[v]);
  }
  LSNN_METHOD void add(const Sparse<T>& w, int64_t row, const T* transposed) {
    uint32_t i = w.start[row];
    const uint32_t end = w.start[row + 1];
    if constexpr (accumulators == 4)
      for (; i + 4 <= end; i += 4) {
        uint64_t places;
        memcpy(&places, w.column + i, sizeof places);
        const FourWeights<T> weights(w.value + i);
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++)
          add_one(places >> 16 * p & 0xffff, weights[p], transposed, sum[p]);
      }
    for (; i + accumulators <= end; i += accumulators)
#pragma GCC unroll 4
      for (int p = 0; p < accumulators; p++)
        add_one(w.column[i + p], Vec<T>(w.value[i + p]), transposed, sum[p]);
    for (; i < end; i++) add_one(w.column[i], Vec<T>(w.value[i]), transposed, sum[0]);
  }
  LSNN_METHOD void write(T* out) {
#pragma GCC unroll 8
    for (int v = 0; v < C; v++) {
#pragma GCC unroll 4
      for (int p = 1; p < accumulators; p++) sum[0][v] = sum[0][v] + sum[p][v];
      store(out + v * L, sum[0][v]);
    }
  }
};

// out[b][j] += sum over delays d and synapses jk of w_jk dc_d[b][k], for the neurons j from n0 to
// n1 that are marked in active, see each_active. transposed: for each group of w the dc_d of its
// delays from the least one on, [span,N,max_items]. out [items,stride].
template <int C, class T>
LSNN_LOCAL void add_sparse_rows(const SparseGroups<T>& w, int64_t N, int64_t stride,
                                const T* const* transposed, T* out, int64_t items,
                                const uint16_t* active, int64_t n0, int64_t n1) {
  each_active(active, n0, n1, [&](int64_t j, const uint16_t*) LSNN_LAMBDA {
    SparseSums<C, T> sums;
    for (int64_t g = 0; g < w.groups; g++) sums.add(w.rows, g * N + j, transposed[g]);
    T sum[max_items] = {};
    sums.write(sum);
    for (int64_t b = 0; b < items; b++) out[b * stride + j] += sum[b];
  });
}
template <class T>
LSNN_INLINE void add_sparse_product(const SparseGroups<T>& w, int64_t N, int64_t stride,
                                    const T* const* transposed, T* out, int64_t items,
                                    const uint16_t* active, int64_t n0, int64_t n1) {
  constexpr int most = (int)max_items / Vec<T>::lanes, half = (most + 1) / 2;
  if (items * 2 <= max_items)
    add_sparse_rows<half>(w, N, stride, transposed, out, items, active, n0, n1);
  else add_sparse_rows<most>(w, N, stride, transposed, out, items, active, n0, n1);
}

}  // namespace
}  // namespace lsnn::cpu
