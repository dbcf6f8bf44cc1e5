// Sums of matrix rows selected by events, in registers: weight rows in the forward pass, gradient
// rows in the backward pass.
#pragma once
#include "tile.h"

namespace lsnn::cpu {
namespace {

// One bit for each nonzero input; returns whether all of these are 1.
template <class T> LSNN_INLINE bool nonzero(const T* x, int64_t I, uint32_t* bits) {
  constexpr int L = Vec<T>::lanes;
  unsigned others = 0;
  for (int64_t i = 0; i < I; i += L) {
    const Vec<T> v = load_n(x + i, I - i);
    const unsigned set = to_bits(v != Vec<T>(0));
    others |= set & to_bits(v != Vec<T>(1));
    put_bits<T>(bits, i, set);
  }
  return !others;
}

// c[0 .. C vectors) = x + sum of w[rows[e]] (times weights[e]), in ascending order of e and without
// fused multiply-add.
template <int C, bool weighted, class T>
LSNN_INLINE void sum_rows(const T* w, const uint32_t* rows, const T* weights, int64_t n, const T* x,
                          int64_t x_left, T* c) {
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[C];
#pragma GCC unroll 16
  for (int v = 0; v < C; v++)
    sum[v] = v < C - 1 ? load(x + v * L) : load_n(x + v * L, x_left - v * L);
  for (int64_t e = 0; e < n; e++) {
    const T* row = w + rows[e];
#pragma GCC unroll 16
    for (int v = 0; v < C; v++) {
      const Vec<T> term = load(row + v * L);
      sum[v] = sum[v] + (weighted ? Vec<T>(weights[e]) * term : term);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < C; v++) store(c + v * L, sum[v]);
}

template <int C, bool weighted, class T>
LSNN_LOCAL void sum_columns(int64_t vectors, const T* w, const uint32_t* rows, const T* weights,
                            int64_t n, const T* x, int64_t x_left, T* c) {
  if (vectors == C) return sum_rows<C, weighted>(w, rows, weights, n, x, x_left, c);
  if constexpr (C > 1) sum_columns<C - 1, weighted>(vectors, w, rows, weights, n, x, x_left, c);
}

// Calls sum(vectors, n0) for the columns [0, N) in blocks that fit the registers.
template <class T, class F> LSNN_INLINE void each_block(int64_t N, const F& sum) {
  constexpr int L = Vec<T>::lanes;
  const int64_t vectors = (N + L - 1) / L, blocks = (vectors + column_vectors - 1) / column_vectors;
  for (int64_t b = 0, at = 0; b < blocks; b++) {
    const int64_t n_vectors = (vectors - at + blocks - b - 1) / (blocks - b);
    sum(n_vectors, at * L);
    at += n_vectors;
  }
}

// c [N] = x [N] + sum over the events of their rows of w. rows: offsets into w; weights: factors,
// or null. What c holds beyond N, up to a whole vector, is undefined.
template <class T> LSNN_INLINE void sum_events(const T* w, const uint32_t* rows, const T* weights,
                                               int64_t n, const T* x, int64_t N, T* c) {
  each_block<T>(N, [&](int64_t vectors, int64_t n0) LSNN_LAMBDA {
    if (weights)
      sum_columns<column_vectors, true>(vectors, w + n0, rows, weights, n, x + n0, N - n0, c + n0);
    else
      sum_columns<column_vectors, false>(vectors, w + n0, rows, weights, n, x + n0, N - n0, c + n0);
  });
}

// to[n] += x from[n]
template <class T> LSNN_INLINE void add_row(T* to, T x, const T* from, int64_t first, int64_t end) {
  for (int64_t n = first; n < end; n += Vec<T>::lanes)
    store(to + n, fma_(Vec<T>(x), load(from + n), load(to + n)));
}

// to += the sum of the rows at the given offsets (times factors), over the first min(C, vectors)
// vectors, in registers.
template <int C, bool weighted, class T>
LSNN_LOCAL void add_rows(int64_t vectors, T* to, const T* base, const uint32_t* offsets,
                         const T* factors, int64_t n) {
  if constexpr (C > 1)
    if (vectors < C) return add_rows<C - 1, weighted>(vectors, to, base, offsets, factors, n);
  constexpr int L = Vec<T>::lanes;
  Vec<T> sum[C];
#pragma GCC unroll 16
  for (int v = 0; v < C; v++) sum[v] = load(to + v * L);
  for (int64_t e = 0; e < n; e++) {
    const T* row = base + offsets[e];
#pragma GCC unroll 16
    for (int v = 0; v < C; v++)
      sum[v] = weighted ? fma_(Vec<T>(factors[e]), load(row + v * L), sum[v])
                        : sum[v] + load(row + v * L);
  }
#pragma GCC unroll 16
  for (int v = 0; v < C; v++) store(to + v * L, sum[v]);
}

// to[p] += the numbers in columns[p] of the rows at the given offsets, for P of them.
template <int P, class T>
LSNN_INLINE void add_columns(T* to, const uint16_t* columns, const T* base, const uint32_t* offsets,
                             int64_t n) {
  T sum[P];
  const T* column[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; p++) {
    sum[p] = to[p];
    column[p] = base + columns[p];
  }
  for (int64_t e = 0; e < n; e++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) sum[p] += column[p][offsets[e]];
#pragma GCC unroll 4
  for (int p = 0; p < P; p++) to[p] = sum[p];
}
// Not inlined: callers would compete for registers.
template <class T>
LSNN_LOCAL __attribute__((noinline)) void add_entries(T* to, const uint16_t* columns,
                                                      int64_t entries, const T* base,
                                                      const uint32_t* offsets, int64_t n) {
  int64_t i = 0;
  for (; i + 4 <= entries; i += 4) add_columns<4>(to + i, columns + i, base, offsets, n);
  for (; i < entries; i++) add_columns<1>(to + i, columns + i, base, offsets, n);
}

// to += x from, in the listed columns; with the arithmetic of add_row.
template <class T>
LSNN_LOCAL void add_row_to_list(T* to, T x, const T* from, const uint16_t* columns, int64_t n) {
  constexpr int L = Vec<T>::lanes;
  for (int64_t i = 0; i < n; i += L) {
    const int64_t left = n - i < L ? n - i : L;
    T gathered[L] = {}, sum[L] = {};
    for (int64_t lane = 0; lane < left; lane++) {
      gathered[lane] = from[columns[i + lane]];
      sum[lane] = to[i + lane];
    }
    store(sum, fma_(Vec<T>(x), load(gathered), load(sum)));
    for (int64_t lane = 0; lane < left; lane++) to[i + lane] = sum[lane];
  }
}

// The gradient of a matrix from events: event e adds factor * base[slot] to row `row`. Sorted by
// row first, so that each row of the gradient is read and written once.
template <class T, bool weighted> struct RowGradient {
  int64_t R;                        // rows of the matrix
  uint32_t* count;                  // [R + 2]
  uint32_t *row, *slot, *sorted;    // [capacity]
  T *factor, *sorted_factor;        // [capacity] when weighted
  int64_t n;

  LSNN_METHOD RowGradient(Arena& m, int64_t R, int64_t capacity) : R(R), n(0) {
    count = m.take<uint32_t>(R + 2);
    row = m.take<uint32_t>(capacity + 32);
    slot = m.take<uint32_t>(capacity + 32);
    sorted = m.take<uint32_t>(capacity + 32);
    factor = weighted ? m.take<T>(capacity) : nullptr;
    sorted_factor = weighted ? m.take<T>(capacity) : nullptr;
  }
  LSNN_METHOD void clear() {
    n = 0;
    memset(count, 0, (R + 2) * sizeof(uint32_t));
  }

  // One event for each set bit j, into row first + j; when weighted with factor x[j], or 1 where x
  // is null.
  LSNN_METHOD void add_bits(const uint32_t* bits, int64_t n_words, int64_t first, int64_t at,
                            const T* x = nullptr) {
    const int64_t n0 = n;
    n = set_bits(bits, n_words, (uint32_t)first, 1, row, n);
    for (int64_t e = n0; e < n; e++) {
      slot[e] = (uint32_t)at;
      if (weighted) factor[e] = x ? x[row[e] - first] : T(1);
    }
  }
  LSNN_METHOD void add(int64_t r, int64_t at, T x) {
    row[n] = (uint32_t)r;
    slot[n] = (uint32_t)at;
    if (weighted) factor[n] = x;
    n++;
  }
  void sort() {
    for (int64_t e = 0; e < n; e++) count[row[e] + 1]++;
    for (int64_t r = 0; r < R; r++) count[r + 1] += count[r];
    for (int64_t e = 0; e < n; e++) {
      const int64_t to = count[row[e]]++;  // count[r] becomes the end of row r
      sorted[to] = slot[e];
      if (weighted) sorted_factor[to] = factor[e];
    }
  }
  // gradient [matrices,R,NP] += the events, in columns [first, end), whole vectors; base: what the
  // slots point into, for each matrix base_stride further on.
  void add_to(T* gradient, int64_t NP, int64_t first, int64_t end, const T* base,
              int64_t matrices = 1, int64_t base_stride = 0) {
    constexpr int L = Vec<T>::lanes;
    sort();
    for (int64_t m = 0; m < matrices; m++, gradient += R * NP, base += base_stride)
      for (int64_t n0 = first; n0 < end; n0 += column_vectors * L)
        for (int64_t r = 0, begin = 0; r < R; begin = count[r++])
          if (count[r] > begin)
            add_rows<column_vectors, weighted>(
                (end - n0) / L, gradient + r * NP + n0, base + n0, sorted + begin,
                weighted ? sorted_factor + begin : nullptr, count[r] - begin);
  }
  // The same for listed entries of the gradient, bitwise identical: list(r) returns {first, end} of
  // row r in columns. Events have no factors.
  template <class F>
  void add_to_list(T* gradient, const uint16_t* columns, const T* base, const F& list) {
    static_assert(!weighted);
    sort();
    for (int64_t r = 0, begin = 0; r < R; begin = count[r++]) {
      const int64_t events = count[r] - begin;
      if (!events) continue;
      const auto [first, end] = list(r);
      add_entries(gradient + first, columns + first, end - first, base, sorted + begin, events);
    }
  }
};

}  // namespace
}  // namespace lsnn::cpu
