// The product of the backward pass for rows of active neurons only.
#pragma once
#include "layout.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

// Rows of weights with the items in which their neurons are active, row << 16 | items, sorted by
// the number of these items. This number is a constant of the loops over them, and no branch
// depends on data.
struct ActiveRows {
  int64_t l1_size;  // bytes
  uint32_t* entries;    // [row_items + 1,N]
  int64_t n[row_items + 1];
};

// Partial products of R rows of weights with `Items` items each.
template <int R, int Items, class T> struct RowSums {
  static constexpr int n = R * Items, whole = (n + 7) / 8 * 8;
  int64_t j[R];                // the rows
  uint32_t item[n], to[n];     // offsets of the items in d, and of the results in out
  Vec<T> sum[whole];

  // d and out have rows of d_stride and out_stride numbers.
  LSNN_METHOD RowSums(const uint32_t* entries, int64_t d_stride, int64_t out_stride) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      uint32_t items = entries[r] & 0xffff;
      j[r] = entries[r] >> 16;
#pragma GCC unroll 16
      for (int b = 0; b < Items; b++, items &= items - 1) {
        const uint32_t i = (uint32_t)__builtin_ctz(items);
        item[r * Items + b] = i * (uint32_t)d_stride;
        to[r * Items + b] = i * (uint32_t)out_stride + (uint32_t)j[r];
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < whole; i++) sum[i] = Vec<T>(0);
  }
  LSNN_METHOD void add_to(T* out) {
    T total[whole];
#pragma GCC unroll 2
    for (int i = 0; i < n; i += 8) sum_lanes(sum + i, total + i);
#pragma GCC unroll 16
    for (int i = 0; i < n; i++) out[to[i]] += total[i];
  }
};

// R rows with `Items` items each, columns k0 to k1: a loaded weight vector serves all items.
template <int R, int Items, class T>
LSNN_INLINE void row_products(const uint32_t* entries, const T* w, int64_t k0, int64_t k1,
                              int64_t NP, const T* d, int64_t stride, T* out) {
  constexpr int L = Vec<T>::lanes;
  RowSums<R, Items, T> s(entries, stride, stride);
  for (int64_t k = k0; k < k1; k += L)
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const Vec<T> weight = load(w + s.j[r] * NP + k);
#pragma GCC unroll 16
      for (int b = 0; b < Items; b++)
        s.sum[r * Items + b] =
            fma_(weight, load(d + s.item[r * Items + b] + k), s.sum[r * Items + b]);
    }
  s.add_to(out);
}

// Rows that are computed together: with few sums additions would be bound by latency.
inline constexpr int rows_together(int Items) {
  return Items * 4 <= 8 ? 4 : Items * 2 <= row_items ? 2 : 1;
}

// Rows with at most `Items` items, columns k0 to k1.
template <int Items, class T>
LSNN_LOCAL void add_rows_with(const T* w, int64_t N, int64_t k0, int64_t k1, int64_t NP, const T* d,
                              int64_t stride, T* out, const ActiveRows& rows) {
  constexpr int R = rows_together(Items);
  const uint32_t* entries = rows.entries + Items * N;
  int64_t e = 0;
  for (; e + R <= rows.n[Items]; e += R)
    row_products<R, Items>(entries + e, w, k0, k1, NP, d, stride, out);
  if (R > 1)
    for (; e < rows.n[Items]; e++)
      row_products<1, Items>(entries + e, w, k0, k1, NP, d, stride, out);
  if constexpr (Items > 1) add_rows_with<Items - 1>(w, N, k0, k1, NP, d, stride, out, rows);
}

// Calls use(j, words) for the neurons from j0, a multiple of 16, to j1 with marked items: active
// [NP/16,max_items], bit j % 16 of word (j / 16, b) for neuron j and item b, or null: all. words:
// those of j / 16.
template <class F>
LSNN_INLINE void each_active(const uint16_t* active, int64_t j0, int64_t j1, const F& use) {
  for (int64_t j = j0; j < j1; j += 16) {
    const uint16_t* const words = active ? active + j * max_items / 16 : nullptr;
    unsigned any = active ? any_of_words(words) : 0xffff;
    if (j1 - j < 16) any &= (1u << (j1 - j)) - 1;
    for (; any; any &= any - 1) use(j + __builtin_ctz(any), words);
  }
}

// Sorts these neurons by the number of their items.
LSNN_LOCAL void sort_rows(int64_t N, int64_t j0, int64_t j1, const uint16_t* active,
                          ActiveRows& rows) {
  memset(rows.n, 0, sizeof rows.n);
  auto enter = [&](int64_t j, unsigned items, int n_items) LSNN_LAMBDA {
    rows.entries[n_items * N + rows.n[n_items]++] = (uint32_t)j << 16 | items;
  };
  each_active(active, j0, j1, [&](int64_t j, const uint16_t* words) LSNN_LAMBDA {
    unsigned items = column_of_bits(words, j % 16);
    int n_items = __builtin_popcount(items);
    if (n_items > row_items) {  // too many for the registers: two entries
      unsigned rest = items;
      for (int b = 0; b < row_items; b++) rest &= rest - 1;
      enter(j, items & ~rest, row_items);
      items = rest;
      n_items -= row_items;
    }
    enter(j, items, n_items);
  });
}

// Calls add(k0, k1) for blocks of columns whose dL/dc of all items stays in the L1 cache. bytes: of
// a number.
template <class F> LSNN_INLINE void each_block(int64_t N, int64_t l1_size, int64_t bytes,
                                               const F& add) {
  const int64_t most = l1_size * 2 / 3 / (max_items * bytes), blocks = (N + most - 1) / most;
  const int64_t columns = (N / blocks + pad - 1) / pad * pad;
  for (int64_t k = 0; k < N; k += columns) add(k, k + columns < N ? k + columns : N);
}

// As add_product, but only for the items and neurons marked in active, from j0 to j1. w [N,NP], d
// and out [items,stride].
template <class T>
LSNN_LOCAL void add_active_product(const T* w, int64_t N, int64_t NP, const T* d, int64_t stride,
                                   T* out, int64_t j0, int64_t j1, const uint16_t* active,
                                   ActiveRows& rows) {
  sort_rows(N, j0, j1, active, rows);
  each_block(N, rows.l1_size, sizeof(T), [&](int64_t k0, int64_t k1) LSNN_LAMBDA {
    add_rows_with<row_items>(w, N, k0, k1, NP, d, stride, out, rows);
  });
}

}  // namespace
}  // namespace lsnn::cpu
