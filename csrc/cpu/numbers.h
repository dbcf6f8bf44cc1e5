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

// sum + row x, not fused
struct AddTerm {
  template <class V> LSNN_METHOD V operator()(V sum, V row, V x) const { return sum + x * row; }
};

// sums[b][panel] += sum_j z[b][j0 + j] w[j][panel], j < n, without fused multiply-add
template <class T> struct NumberSums {
  const T* w;
  int64_t w_stride, n;
  const T* const* z;
  int64_t j0;
  T* sums;
  int64_t stride;

  template <int Items> __attribute__((noinline)) void run(int64_t b) const {
    const T* row[Items];
#pragma GCC unroll 8
    for (int i = 0; i < Items; i++) row[i] = z[b + i] + j0;
    const T* const first = w;
    const int64_t step = w_stride;
    add_block<Items>(
        sums + b * stride, stride, n, [&](int64_t j) LSNN_LAMBDA { return first + j * step; },
        [&](int i, int64_t j) LSNN_LAMBDA { return row[i][j]; }, AddTerm());
  }
};

// to[j][panel] += sum_e z[e][j] from[e][at + panel], e < n, with the arithmetic of add_row
template <class T> struct OuterProducts {
  T* to;
  int64_t stride;
  const T *const *z, *const *from;
  int64_t at, n;

  template <int Rows> __attribute__((noinline)) void run(int64_t j) const {
    const T *const *const x = z, *const *const rows = from;
    const int64_t column = at;
    add_block<Rows>(
        to + j * stride, stride, n, [&](int64_t e) LSNN_LAMBDA { return rows[e] + column; },
        [&](int i, int64_t e) LSNN_LAMBDA { return x[e][j + i]; }, FusedAdd());
  }
};

// to [N,stride] += sum_e z[e] from[e] over n pairs, in the columns [first, end).
template <class T>
LSNN_LOCAL void add_outer_products(T* to, int64_t stride, int64_t N, const T* const* z,
                                   const T* const* from, int64_t n, int64_t first, int64_t end) {
  for (int64_t e = 0; e < n; e += pairs_at_once)
    for (int64_t at = first; at < end; at += panel<T>)
      each_group<product_items>(0, N,
                                OuterProducts<T>{to + at, stride, z + e, from + e, at,
                                                 n - e < pairs_at_once ? n - e : pairs_at_once});
}

}  // namespace
}  // namespace lsnn::cpu
