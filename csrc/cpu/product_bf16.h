// The product of active neurons in bfloat16, and a product to be timed.
#pragma once
#include "product_active.h"

namespace lsnn::cpu {
namespace {

#if LSNN_TARGET == LSNN_TARGET_AVX512
// For processors with AVX512_BF16, which pack.h checks at run time.
#define LSNN_BF16 __attribute__((target("avx512bf16")))
template <class T> inline constexpr bool has_bf16 = sizeof(T) == 4;

// n numbers, a multiple of 32, rounded to the nearest.
LSNN_BF16 static void to_bf16(const float* from, int64_t n, uint16_t* to) {
  for (int64_t k = 0; k < n; k += 32)
    _mm512_storeu_si512(to + k, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + k + 16),
                                                             _mm512_loadu_ps(from + k)));
}

// As row_products and add_rows_with; w [N,NP] and d [items,gradient_stride] in bfloat16, beyond N
// zero in w and finite in d; pairs of products are summed in float.
template <int R, int Items>
LSNN_BF16 LSNN_INLINE void bf16_row_products(const uint32_t* entries, const uint16_t* w, int64_t k0,
                                             int64_t k1, int64_t NP, const uint16_t* d,
                                             float* out) {
  RowSums<R, Items, float> s(entries, gradient_stride<uint16_t>(NP), gradient_stride<float>(NP));
  for (int64_t k = k0; k < k1; k += 32)
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m512bh weight = (__m512bh)_mm512_loadu_si512(w + s.j[r] * NP + k);
#pragma GCC unroll 16
      for (int b = 0; b < Items; b++) {
        const __m512bh x = (__m512bh)_mm512_loadu_si512(d + s.item[r * Items + b] + k);
        s.sum[r * Items + b].v = _mm512_dpbf16_ps(s.sum[r * Items + b].v, weight, x);
      }
    }
  s.add_to(out);
}
template <int Items>
LSNN_BF16 LSNN_LOCAL void add_bf16_rows_with(const uint16_t* w, int64_t N, int64_t k0, int64_t k1,
                                             int64_t NP, const uint16_t* d, float* out,
                                             const ActiveRows& rows) {
  constexpr int R = rows_together(Items);
  const uint32_t* entries = rows.entries + Items * N;
  int64_t e = 0;
  for (; e + R <= rows.n[Items]; e += R)
    bf16_row_products<R, Items>(entries + e, w, k0, k1, NP, d, out);
  if (R > 1)
    for (; e < rows.n[Items]; e++) bf16_row_products<1, Items>(entries + e, w, k0, k1, NP, d, out);
  if constexpr (Items > 1) add_bf16_rows_with<Items - 1>(w, N, k0, k1, NP, d, out, rows);
}
LSNN_LOCAL void add_bf16_product(const uint16_t* w, int64_t N, int64_t NP, const uint16_t* d,
                                 float* out, int64_t j0, int64_t j1, const uint16_t* active,
                                 ActiveRows& rows) {
  sort_rows(N, j0, j1, active, rows);
  each_block(N, rows.l1_size, sizeof(uint16_t), [&](int64_t k0, int64_t k1) LSNN_LAMBDA {
    add_bf16_rows_with<row_items>(w, N, k0, k1, NP, d, out, rows);
  });
}
#else
template <class T> inline constexpr bool has_bf16 = false;
#endif

// A product to be timed: half of the results of w [n,n], n at most 256, with d and out
// [max_items,gradient_stride].
template <class T>
LSNN_LOCAL void trial_product(int64_t n, const T* w, [[maybe_unused]] const uint16_t* w_bf16,
                              const T* d, T* out, uint32_t* entries, [[maybe_unused]] bool bf16) {
  ActiveRows rows{32 << 10, entries, {}};
  uint16_t active[256 / 16 * max_items] = {};
  for (int64_t i = 0; i < n / 16 * max_items; i++) active[i] = i % 2 ? 0xff00 : 0x00ff;
#if LSNN_TARGET == LSNN_TARGET_AVX512
  if constexpr (has_bf16<T>)
    if (bf16) {
      uint16_t d_bf16[max_items * gradient_stride<uint16_t>(256)] = {};
      for (int64_t b = 0; b < max_items; b++)
        to_bf16(d + b * gradient_stride<T>(n), n, d_bf16 + b * gradient_stride<uint16_t>(n));
      return add_bf16_product(w_bf16, n, n, d_bf16, out, 0, n, active, rows);
    }
#endif
  add_active_product(w, n, n, d, gradient_stride<T>(n), out, 0, n, active, rows);
}

}  // namespace
}  // namespace lsnn::cpu
