// The layer in the layout of layout.h. For run.cpp, which no instruction set compiles.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "block_cache.h"
#include "counters.h"
#include "layout.h"

namespace lsnn::cpu {
namespace {

// Bytes of the L1 data cache: those asked for, or its own, or what most processors have.
inline int64_t l1_size(const Options& options) {
  if (options.l1_size) return options.l1_size;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (bytes >= 16 << 10) return bytes;
#endif
  return 32 << 10;
}

inline void one_by_one(int64_t n, void (*body)(int64_t, void*), void* context) {
  for (int64_t i = 0; i < n; i++) body(i, context);
}
// For work on so many numbers: where they are few, waking threads takes longer, and longer still
// where another program has their cores.
inline Parallel worth(Parallel parallel, int64_t numbers) {
  return numbers < 1 << 17 ? Parallel{one_by_one, 1} : parallel;
}

template <class F> void each(Parallel parallel, int64_t n, const F& body) {
  parallel.run(
      n, [](int64_t i, void* context) { (*static_cast<const F*>(context))(i); },
      const_cast<F*>(&body));
}

// get(r, c) for all rows and columns into to(r, c), in squares that fit the L1 cache whichever of
// the two is contiguous.
template <class Get, class To> void copy_squares(Parallel parallel, int64_t rows, int64_t columns,
                                                 const Get& get, const To& to) {
  constexpr int64_t side = 32;
  each(worth(parallel, rows * columns), (rows + side - 1) / side, [&](int64_t square) {
    const int64_t r0 = square * side, r1 = std::min(rows, r0 + side);
    for (int64_t c0 = 0; c0 < columns; c0 += side)
      for (int64_t r = r0, c1 = std::min(columns, c0 + side); r < r1; r++)
        for (int64_t c = c0; c < c1; c++) to(r, c) = get(r, c);
  });
}

// A matrix of any strides into rows of `stride` numbers, zeros beyond its columns.
template <class T>
void copy_rows(Parallel parallel, int64_t rows, int64_t columns, const void* from, int64_t stride_r,
               int64_t stride_c, T* to, int64_t stride) {
  const T* f = (const T*)from;
  for (int64_t r = 0; r < rows; r++)
    std::fill(to + r * stride + columns, to + (r + 1) * stride, T(0));
  if (stride_c == 1)
    each(worth(parallel, rows * columns), rows,
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

// Whether products in bfloat16 are faster here: some processors that have them take longer, so they
// are timed, once. Asked for by name they need not be faster.
template <class T> bool bf16_pays([[maybe_unused]] const Kernels<T>& kernels,
                                  [[maybe_unused]] ProductAlgorithm requested) {
#if defined(__x86_64__)
  if (!kernels.to_bf16 || !__builtin_cpu_supports("avx512bf16")) return false;
  // Without a lock, which a child of fork() could inherit locked: at worst two threads time it.
  static std::atomic<int> known{-1};
  if (known < 0) {
    constexpr int64_t n = 256;
    std::vector<T> w(n * n, T(0.5)), d(max_items * 2 * n, T(0.25)), out(max_items * 2 * n);
    std::vector<uint16_t> w_bf16(n * n);
    std::vector<uint32_t> entries(n * (max_items + 1));
    kernels.to_bf16(w.data(), n * n, w_bf16.data());
    double best[2] = {1e9, 1e9};
    for (int trial = 0; trial < 10; trial++)
      for (bool bf16 : {false, true}) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < 4; i++)
          kernels.trial(n, w.data(), w_bf16.data(), d.data(), out.data(), entries.data(), bf16);
        best[bf16] = std::min(
            best[bf16],
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
    known = best[true] < best[false];
  }
  return known > 0 || requested == ProductAlgorithm::bf16;
#else
  return false;
#endif
}

// The layer in the layout of layout.h, in one block.
template <class T> struct PackedLayer {
  Block block;
  Packed<T> packed;

  struct Sizes {
    int64_t w, bias, panels, w_out, panels_out, coefficients;
    int64_t sum() const { return w + bias + panels + w_out + panels_out + coefficients; }
  };
  static Sizes sizes(const Layer& l, const Projection& in, const Readout& out, bool backward) {
    const int64_t NP = padded(l.N), each = l.N * NP;
    return {in_place(l, in, backward) ? 0 : l.S * each + in.I * NP,
            NP,
            backward ? l.S * each : 0,
            l.N * padded_outputs(out.O),
            backward ? NP * out.O : 0,
            packed_coefficients * NP};
  }

  // Copies of a large matrix would take most of the time of a short call.
  static bool in_place(const Layer& l, const Projection& in, bool backward) {
    return l.w_in_place && l.S == 1 && !in.I && !backward;
  }

  PackedLayer(const Layer& l, const Projection& in, const Readout& out, const GeneralSpec& spec,
              const Kernels<T>& kernels, bool backward, Parallel parallel)
      : block(sizes(l, in, out, backward).sum() * (int64_t)sizeof(T)) {
    const Timed timed(hooks(), backward ? Count::ns_pack_backward : Count::ns_pack_forward);
    const Sizes size = sizes(l, in, out, backward);
    const int64_t N = l.N, NP = padded(N), each = N * NP, OP = padded_outputs(out.O),
                  panel = kernels.panel, lanes = kernels.lanes;
    T* w = (T*)block.data;
    T *bias = w + size.w, *panels = bias + size.bias, *w_out = panels + size.panels,
      *panels_out = w_out + size.w_out, *k = panels_out + size.panels_out;
    const bool is_in_place = in_place(l, in, backward);
    if (!is_in_place)
      for (int64_t s = 0; s < l.S; s++) {
        const T* from = matrix<T>(l, s);
        T* to = w + s * each;
        if (matrices(l) == l.S) {
          copy_rows(parallel, N, N, from, l.w_stride_j, l.w_stride_k, to, NP);
          continue;
        }
        copy_squares(
            parallel, N, NP,
            [&](int64_t j, int64_t n) {
              const bool has_synapse = n < N && acts(l, j, n, l.delays[s]);
              return has_synapse ? from[j * l.w_stride_j + n * l.w_stride_k] : T(0);
            },
            [&](int64_t j, int64_t n) -> T& { return to[j * NP + n]; });
      }
    if (backward)
      for (int64_t s = 0; s < l.S; s++) {
        const T* from = w + s * each;
        T* to = panels + s * each;
        std::fill(to + N / panel * panel * N, to + each, T(0));
        copy_squares(
            parallel, N, N, [=](int64_t j, int64_t n) { return from[j * NP + n]; },
            [=](int64_t j, int64_t n) -> T& {
              return to[(j / panel * N + n) * panel + j % panel];
            });
      }
    if (in.I) copy_rows(parallel, in.I, N, in.w, in.w_stride_i, in.w_stride_n, w + l.S * each, NP);
    for (int64_t n = 0; n < NP; n++)
      bias[n] = in.I && in.bias && n < N ? ((const T*)in.bias)[n] : T(0);
    auto w_oj = [&](int64_t o, int64_t j) {
      return o < out.O && j < N ? ((const T*)out.w)[o * out.w_stride_o + j * out.w_stride_n] : T(0);
    };
    for (int64_t j = 0; j < N; j++)
      for (int64_t o = 0; o < OP; o++) w_out[j * OP + o] = w_oj(o, j);
    if (backward)
      for (int64_t j = 0; j < NP; j++)
        for (int64_t o = 0; o < out.O; o++)
          panels_out[(j / panel * out.O + o) * panel + j % panel] = w_oj(o, j);
    for (int64_t c = 0; c < packed_coefficients; c++)
      for (int64_t n = 0; n < NP; n++)
        k[(n / lanes * packed_coefficients + c) * lanes + n % lanes] = coefficient(l, c, n);
    packed = {.l1_size = l1_size(l.options),
              .NP = NP,
              .W = words(N),
              .w = is_in_place ? (const T*)l.w : w,
              .bias = bias,
              .panels = panels,
              .w_out = w_out,
              .panels_out = panels_out,
              .coefficients = k,
              .w_bf16 = nullptr,
              .sparse = {},
              .sum_sparse = false,
              .algorithm = l.options.product,
              .spec = spec,
              .hooks = hooks()};
    if (!is_in_place) make_sparse(l, kernels, backward, parallel);
    const bool may_round = packed.algorithm == ProductAlgorithm::bf16 ||
                           (packed.algorithm == ProductAlgorithm::automatic && l.allow_bf16);
    if (backward && l.S && kernels.to_bf16 && may_round && bf16_pays(kernels, packed.algorithm)) {
      w_bf16.resize(l.S * each);
      kernels.to_bf16(w, l.S * each, w_bf16.data());
      packed.w_bf16 = w_bf16.data();
    }
  }

 private:
  // Row c of Coefs at neuron n; beyond N harmless: no spike, no division by 0.
  static T coefficient(const Layer& l, int64_t c, int64_t n) {
    if (c == DAMPENING) return T(l.dampening);
    if (c == N_REF) return T(l.n_ref);
    if (c == CUTOFF) return T(l.cutoff);
    if (n >= l.N) return T(c == THETA || c == WIDTH ? 1 : 0);
    const T* k = (const T*)l.coefficients + n;
    if (c == INVERSE_KAPPA) return T(1) / k[KAPPA * l.N];
    if (c == INVERSE_WIDTH) return T(1) / k[WIDTH * l.N];
    return k[c * l.N];
  }

  std::vector<uint16_t> w_bf16;
  std::vector<uint32_t> start;
  std::vector<uint16_t> column;
  std::vector<T> value;

  // The synapses that are not zero, beside the whole matrix, where they are few.
  void make_sparse(const Layer& l, const Kernels<T>& kernels, bool backward, Parallel parallel) {
    const int64_t rows = l.S * l.N, NP = packed.NP;
    const bool requested = packed.algorithm == ProductAlgorithm::sparse;
    if (rows == 0) return;
    // Measured: rows of weights in a cache are added faster than their entries one by one. From
    // memory they are not.
    const bool in_cache = rows * NP * (int64_t)sizeof(T) <= 32 << 20;
    if (!requested && (packed.algorithm != ProductAlgorithm::automatic || (!backward && in_cache)))
      return;
    start.assign(rows + 1, 0);
    each(worth(parallel, rows * NP), rows, [&](int64_t r) {
      uint32_t n_entries = 0;
      for (int64_t k = 0; k < l.N; k++) n_entries += packed.w[r * NP + k] != T(0);
      start[r + 1] = n_entries;
    });
    for (int64_t r = 0; r < rows; r++) start[r + 1] += start[r];
    const int64_t n = start[rows];
    if (!requested && n > rows * l.N * 4 / 10) return;
    column.resize(n);
    value.resize(n);
    each(worth(parallel, rows * NP), rows, [&](int64_t r) {
      const uint32_t end = start[r + 1];
      for (uint32_t k = 0, at = start[r]; at < end; k++) {
        const T x = packed.w[r * NP + k];
        // what is no entry is written over
        column[at] = (uint16_t)k;
        value[at] = x;
        at += x != T(0);
      }
    });
    packed.sparse = {start.data(), column.data(), value.data()};
    const double entries = double(n) / double(rows), vectors = double(NP / kernels.lanes);
    packed.sum_sparse = requested || (!in_cache && entries < 3 * vectors);
  }
};

}  // namespace
}  // namespace lsnn::cpu
