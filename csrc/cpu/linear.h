// A linear map of sparse rows, such as spikes: y = x W^T + bias adds only the weight rows of
// nonzero inputs, and the gradient of W comes from the same events. Included by kernels.cpp once
// for each instruction set.
#pragma once
#include "events.h"

namespace lsnn::cpu {
namespace {

inline constexpr int64_t linear_rows = 64;  // rows of a block

template <class T> struct LinearScratch {
  uint32_t *bits, *rows;  // [words(I)], [I]
  T *values, *out;        // [I], [linear_rows,N] or [linear_rows,NP]
  RowGradient<T, true> gradient;
  LinearScratch(Arena& m, const Linear& l)
      : bits(m.take<uint32_t>(words(l.I) + 1)),
        rows(m.take<uint32_t>(l.I + pad)),
        values(m.take<T>(l.I)),
        out(m.take<T>(linear_rows * padded(l.N) + pad)),
        gradient(m, l.I + 1, linear_rows * (l.I + 1)) {}
};

// A bit for each nonzero input of row r.
template <class T> LSNN_INLINE const uint32_t* nonzero_of_row(const Linear& l, int64_t r,
                                                              const LinearScratch<T>& s) {
  if (l.bits) return l.bits + r * words(l.I);
  nonzero((const T*)l.x + r * l.I, l.I, s.bits);
  return s.bits;
}
// The inputs of row r as numbers, or null: they are 0 or 1.
template <class T> LSNN_INLINE const T* numbers_of_row(const Linear& l, int64_t r) {
  return l.bits ? nullptr : (const T*)l.x + r * l.I;
}

// Bits of rows [r0, r1) of spikes x [R,I]; false if any number is not 0 or 1.
template <class T> LSNN_LOCAL bool spike_bits_of_rows(const T* x, int64_t I, int64_t r0, int64_t r1,
                                                      uint32_t* bits) {
  bool spikes = true;
  for (int64_t r = r0; r < r1 && spikes; r++) spikes = nonzero(x + r * I, I, bits + r * words(I));
  return spikes;
}

// Rows [r0, r1) of y. w: [I,NP] transposed and padded; bias: [NP].
template <class T> LSNN_LOCAL void linear_forward_rows(const Linear& l, const T* w, const T* bias,
                                                       int64_t r0, int64_t r1, void* memory) {
  Arena arena(memory);
  const LinearScratch<T> s(arena, l);
  const int64_t I = l.I, N = l.N, NP = padded(N);
  for (int64_t r = r0; r < r1;) {
    const int64_t end = r + linear_rows < r1 ? r + linear_rows : r1, start = r;
    for (; r < end; r++) {
      const T* x = numbers_of_row<T>(l, r);
      const int64_t n = set_bits(nonzero_of_row(l, r, s), words(I), 0, 1, s.rows, 0);
      for (int64_t e = 0; e < n; e++) {
        if (x) s.values[e] = x[s.rows[e]];
        s.rows[e] *= (uint32_t)NP;
      }
      // columns beyond N are overwritten by the next row
      sum_events(w, s.rows, x ? s.values : nullptr, n, bias, N, s.out + (r - start) * N);
    }
    stream_copy((T*)l.y + start * N, s.out, (end - start) * N);
  }
  stream_end();
}

// Zeros beyond N. row: [NP].
template <class T> LSNN_INLINE void load_gradient(const Linear& l, int64_t r, int64_t NP, T* row) {
  const T* g = (const T*)l.g + r % l.g_rows * l.N;
  for (int64_t n = 0; n < NP; n++) row[n] = n < l.N ? g[n] : T(0);
}

// A small gradient stays in cache: events are added directly.
inline constexpr int64_t small_gradient = 128 << 10;  // bytes
template <class T> LSNN_LOCAL void small_gradient_rows(const Linear& l, int64_t r0, int64_t r1,
                                                       T* gw, const LinearScratch<T>& s) {
  const int64_t I = l.I, NP = padded(l.N),
                end = (l.N + Vec<T>::lanes - 1) / Vec<T>::lanes * Vec<T>::lanes;
  for (int64_t r = r0; r < r1; r++) {
    const T* x = numbers_of_row<T>(l, r);
    load_gradient(l, r, NP, s.out);
    const int64_t n = set_bits(nonzero_of_row(l, r, s), words(I), 0, 1, s.rows, 0);
    for (int64_t e = 0; e < n; e++)
      add_row(gw + s.rows[e] * NP, x ? x[s.rows[e]] : T(1), s.out, 0, end);
    if (l.gbias) add_row(gw + I * NP, T(1), s.out, 0, end);
  }
}

// counts [g_rows,I]: spikes of each input in the rows r, r + g_rows, ... of bits, for columns [c0,
// c1) of the g_rows words(I) words of g_rows rows. A positional population count: sum[k] has bit k
// of the 32 counts of each word, and a ripple-carry adder of logical operations adds 32 spikes at a
// time.
inline constexpr int64_t columns_together = 16, bits_of_count = 8;
template <class T>
LSNN_LOCAL void spike_counts_of_columns(const Linear& l, int64_t c0, int64_t c1, T* counts) {
  constexpr int64_t wide = columns_together, most = (1 << bits_of_count) - 1;
  const int64_t W = words(l.I), columns = l.g_rows * W, steps = l.R / l.g_rows;
  for (int64_t c = c0; c < c1; c += wide) {
    const int64_t n = c1 - c < wide ? c1 - c : wide;
    for (int64_t start = 0; start < steps; start += most) {
      const int64_t end = start + most < steps ? start + most : steps;
      uint32_t sum[bits_of_count][wide] = {}, carry[wide] = {};
      for (int64_t step = start; step < end; step++) {
        memcpy(carry, l.bits + step * columns + c, n * sizeof *carry);
        for (auto& bit : sum)
          for (int64_t j = 0; j < wide; j++) {
            const uint32_t next = bit[j] & carry[j];
            bit[j] ^= carry[j];
            carry[j] = next;
          }
      }
      for (int64_t j = 0; j < n; j++) {
        uint32_t count[32] = {};
        for (int64_t k = 0; k < bits_of_count; k++)
          for (int64_t i = 0; i < 32; i++) count[i] |= (sum[k][j] >> i & 1) << k;
        const int64_t first = (c + j) % W * 32;
        T* total = counts + (c + j) / W * l.I + first;
        for (int64_t i = 0; i < 32 && first + i < l.I; i++)
          total[i] = (start ? total[i] : T(0)) + T(count[i]);
      }
    }
  }
}

// Adds rows [r0, r1) to gw [I + 1,NP]: the gradient of W^T, and of the bias in the last row.
template <class T> LSNN_LOCAL void linear_gradient_rows(const Linear& l, int64_t r0, int64_t r1,
                                                        T* gw, void* memory) {
  Arena arena(memory);
  LinearScratch<T> s(arena, l);
  const int64_t I = l.I, NP = padded(l.N);
  if ((I + 1) * NP * (int64_t)sizeof(T) <= small_gradient)
    return small_gradient_rows(l, r0, r1, gw, s);
  for (int64_t start = r0; start < r1; start += linear_rows) {
    const int64_t end = start + linear_rows < r1 ? start + linear_rows : r1;
    s.gradient.clear();
    for (int64_t r = start; r < end; r++) {
      T* row = s.out + (r - start) * NP;
      load_gradient(l, r, NP, row);
      s.gradient.add_bits(nonzero_of_row(l, r, s), words(I), 0, row - s.out,
                          numbers_of_row<T>(l, r));
      if (l.gbias) s.gradient.add(I, row - s.out, T(1));
    }
    s.gradient.add_to(gw, NP, 0, NP, s.out);
  }
}

}  // namespace
}  // namespace lsnn::cpu
