// Parallel loops, and copies of matrices. For run.cpp, which is compiled once.
#pragma once
#include <algorithm>

#include "../alif.h"

namespace lsnn::cpu {
namespace {

inline void run_serially(int64_t n, void (*body)(int64_t, void*), void* context) {
  for (int64_t i = 0; i < n; i++) body(i, context);
}
// Serial for few numbers, where waking threads takes longer than the work.
inline Parallel serial_if_few(Parallel parallel, int64_t numbers) {
  return numbers < 1 << 17 ? Parallel{run_serially, 1} : parallel;
}

template <class F> void parallel_for(Parallel parallel, int64_t n, const F& body) {
  parallel.run(
      n, [](int64_t i, void* context) { (*static_cast<const F*>(context))(i); },
      const_cast<F*>(&body));
}

// to(r, c) = get(r, c) for all rows and columns, in squares that fit the L1 cache in either layout.
template <class Get, class To> void copy_squares(Parallel parallel, int64_t rows, int64_t columns,
                                                 const Get& get, const To& to) {
  constexpr int64_t side = 32;
  parallel_for(serial_if_few(parallel, rows * columns), (rows + side - 1) / side,
               [&](int64_t square) {
                 const int64_t r0 = square * side, r1 = std::min(rows, r0 + side);
                 for (int64_t c0 = 0; c0 < columns; c0 += side)
                   for (int64_t r = r0, c1 = std::min(columns, c0 + side); r < r1; r++)
                     for (int64_t c = c0; c < c1; c++) to(r, c) = get(r, c);
               });
}

// A strided matrix into rows of `stride` numbers, padded with zeros.
template <class T>
void copy_rows(Parallel parallel, int64_t rows, int64_t columns, const void* from, int64_t stride_r,
               int64_t stride_c, T* to, int64_t stride) {
  const T* f = (const T*)from;
  for (int64_t r = 0; r < rows; r++)
    std::fill(to + r * stride + columns, to + (r + 1) * stride, T(0));
  if (stride_c == 1)
    parallel_for(serial_if_few(parallel, rows * columns), rows,
                 [&](int64_t r) { std::copy_n(f + r * stride_r, columns, to + r * stride); });
  else if (stride_r == 1)
    copy_squares(
        parallel, rows, columns, [=](int64_t r, int64_t c) { return f[r + c * stride_c]; },
        [=](int64_t r, int64_t c) -> T& { return to[r * stride + c]; });
  else
    copy_squares(
        parallel, rows, columns,
        [=](int64_t r, int64_t c) { return f[r * stride_r + c * stride_c]; },
        [=](int64_t r, int64_t c) -> T& { return to[r * stride + c]; });
}

}  // namespace
}  // namespace lsnn::cpu
