// Packs a layer into the layout of layout.h. For run.cpp, which is compiled once.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "block_cache.h"
#include "costs.h"
#include "counters.h"
#include "layout.h"
#include "synapse_lists.h"

namespace lsnn::cpu {
namespace {

// Bytes of the L1 data cache: the option, the size that the system reports, or 32 KiB.
inline int64_t l1_size(const Options& options) {
  if (options.l1_size) return options.l1_size;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (bytes >= 16 << 10) return bytes;
#endif
  return 32 << 10;
}

// Whether to use products in bfloat16. They are slower on some processors, so they are timed once,
// unless the option requests them.
template <class T> bool bf16_pays([[maybe_unused]] const Kernels<T>& kernels,
                                  [[maybe_unused]] ProductAlgorithm requested) {
#if defined(__x86_64__)
  if (!kernels.to_bf16 || !__builtin_cpu_supports("avx512bf16")) return false;
  // No lock, which a child of fork() could inherit locked: at worst two threads time the products.
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

// Uses of the layer in a call: sums of (1), products of the backward pass, and the weight gradient;
// existing: only that of nonzero weights.
struct Uses { bool sums = false, products = false, gradient = false, existing = false; };

// A packed layer in one block, with lists of synapses where they are faster.
template <class T> struct PackedLayer {
  Packed<T> packed = {};

  // Copying a large matrix would dominate a short call.
  static bool in_place(const Layer& l, const Projection& in, const Uses& uses) {
    return l.w_in_place && l.S == 1 && !in.I && !uses.products;
  }

  PackedLayer(const Layer& l, const Projection& in, const Readout& out, const GeneralSpec& spec,
              const Kernels<T>& kernels, const Uses& uses, Parallel parallel) {
    const Timed timed(hooks(), uses.products ? Count::ns_pack_backward : Count::ns_pack_forward);
    const int64_t N = l.N, NP = padded(N), each_matrix = N * NP, OP = padded_outputs(out.O),
                  panel = kernels.panel, lanes = kernels.lanes, K = l.sizes.currents;
    const auto* const table = (const neuron::NeuronTable<T>*)l.neuron;
    const int64_t n_coefficients = table ? table->packed : packed_coefficients;
    packed.l1_size = l1_size(l.options);
    packed.NP = NP;
    packed.W = words(N);
    packed.algorithm = l.options.product;
    packed.spec = spec;
    packed.hooks = hooks();
    const bool is_in_place = in_place(l, in, uses);
    const Needed needed =
        is_in_place || !l.S ? Needed{} : list_synapses(l, kernels, uses, parallel);

    packed.w_stride = needed.w ? l.S * each_matrix : 0;
    packed.panels_stride = needed.panels ? l.S * each_matrix : 0;
    const int64_t n_w = K * packed.w_stride, n_in = in.I * NP, n_panels = K * packed.panels_stride,
                  n_out = N * OP, n_panels_out = uses.products ? NP * out.O : 0,
                  n_kernel = l.n_taps * NP;
    block.take(
        (n_w + n_in + NP + n_panels + n_out + n_panels_out + n_coefficients * NP + n_kernel) *
        (int64_t)sizeof(T));
    T* const w = (T*)block.data;
    T *w_in = w + n_w, *bias = w_in + n_in, *panels = bias + NP, *w_out = panels + n_panels,
      *panels_out = w_out + n_out, *k = panels_out + n_panels_out,
      *kernel = k + n_coefficients * NP;
    for (int64_t k = 0; needed.w && k < K; k++)
      pack_w(layer_of_current(l, k, sizeof(T)), parallel, w + k * packed.w_stride);
    if (needed.panels)
      for (int64_t s = 0; s < K * l.S; s++) {
        const T* from = w + s * each_matrix;
        T* to = panels + s * each_matrix;
        std::fill(to + N / panel * panel * N, to + each_matrix, T(0));
        copy_squares(
            parallel, N, N, [=](int64_t j, int64_t n) { return from[j * NP + n]; },
            [=](int64_t j, int64_t n) -> T& {
              return to[(j / panel * N + n) * panel + j % panel];
            });
      }
    if (in.I) copy_rows(parallel, in.I, N, in.w, in.w_stride_i, in.w_stride_n, w_in, NP);
    for (int64_t n = 0; n < NP; n++)
      bias[n] = in.I && in.bias && n < N ? ((const T*)in.bias)[n] : T(0);
    auto w_oj = [&](int64_t o, int64_t j) {
      return o < out.O && j < N ? ((const T*)out.w)[o * out.w_stride_o + j * out.w_stride_n] : T(0);
    };
    for (int64_t j = 0; j < N; j++)
      for (int64_t o = 0; o < OP; o++) w_out[j * OP + o] = w_oj(o, j);
    if (uses.products)
      for (int64_t j = 0; j < NP; j++)
        for (int64_t o = 0; o < out.O; o++)
          panels_out[(j / panel * out.O + o) * panel + j % panel] = w_oj(o, j);
    // Beyond N a registered neuron has the coefficients of neuron N - 1.
    auto coefficient_of = [&](int64_t c, int64_t n) {
      return table ? ((const T*)l.coefficients)[c * N + std::min(n, N - 1)] : coefficient(l, c, n);
    };
    for (int64_t c = 0; c < n_coefficients; c++)
      for (int64_t n = 0; n < NP; n++)
        k[(n / lanes * n_coefficients + c) * lanes + n % lanes] = coefficient_of(c, n);
    for (int64_t s = 0; s < l.n_taps; s++)
      for (int64_t n = 0; n < NP; n++)
        kernel[(n / lanes * l.n_taps + s) * lanes + n % lanes] =
            n < N ? ((const T*)l.kernel)[s * N + n] : T(0);
    packed.beta_is_zero = !table;
    for (int64_t n = 0; !table && n < N; n++)
      packed.beta_is_zero &= ((const T*)l.coefficients)[BETA * N + n] == T(0);
    packed.w = is_in_place ? (const T*)l.w : needed.w ? w : nullptr;
    packed.w_in = w_in;
    packed.bias = bias;
    packed.panels = needed.panels ? panels : nullptr;
    packed.w_out = w_out;
    packed.panels_out = panels_out;
    packed.coefficients = k;
    packed.kernel = kernel;
    if (needed.bf16) {
      w_bf16.resize(l.S * each_matrix);
      kernels.to_bf16(w, l.S * each_matrix, w_bf16.data());
      packed.w_bf16 = w_bf16.data();
    }
  }

 private:
  // copies of the matrix
  struct Needed { bool w = false, panels = false, bf16 = false; };
  SynapseLists<T> not_zero, acting;
  Block block;
  std::vector<uint16_t> w_bf16;

  // Row c of Coefs at neuron n; padding neither spikes nor divides by 0.
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

  // w [S * N,NP] of Packed.
  static void pack_w(const Layer& l, Parallel parallel, T* w) {
    const int64_t N = l.N, NP = padded(N);
    if (matrices(l) == l.S) {
      for (int64_t s = 0; s < l.S; s++) {
        T* const to = w + s * N * NP;
        copy_rows(parallel, N, N, matrix<T>(l, s), l.w_stride_j, l.w_stride_k, to, NP);
        for (int64_t j = 0; !l.autapses && j < N; j++) to[j * NP + j] = T(0);
      }
      return;
    }
    const DelayIndex index(l);
    each_row_of_weights<T>(l, parallel, [&](int64_t, int64_t j, const T* row) {
      for (int64_t s = 0; s < l.S; s++) std::fill_n(w + (s * N + j) * NP, NP, T(0));
      for (int64_t k = 0; k < N; k++)
        if (const int64_t s = index(j, k); s >= 0) w[(s * N + j) * NP + k] = row[k];
    });
  }

  // Lists synapses where products, sums or gradients are faster by list; returns the copies that
  // are needed as well.
  Needed list_synapses(const Layer& l, const Kernels<T>& kernels, const Uses& uses,
                       Parallel parallel) {
    const int64_t N = l.N, NP = packed.NP, rows = l.S * N;
    const ProductAlgorithm algorithm = packed.algorithm;
    const bool automatic = algorithm == ProductAlgorithm::automatic,
               requested = algorithm == ProductAlgorithm::sparse,
               may_round = algorithm == ProductAlgorithm::bf16 || (automatic && l.bf16_parts == 1),
               bf16 =
                   uses.products && kernels.to_bf16 && may_round && bf16_pays(kernels, algorithm);
    const int64_t bytes = rows * NP * (int64_t)sizeof(T);
    const bool in_cache = bytes <= 32 << 20;
    const bool has_own_delays = matrices(l) != l.S;
    const Needed all{true, uses.products, bf16};
    if (l.sizes.currents > 1) return {true, uses.products};
    if (N > 1 << 16) return all;  // lists have columns of 16 bits
    const bool all_learn = uses.gradient && !uses.existing && has_own_delays &&
                           entries_learn_faster((double)N / (double)l.S, NP, bytes);
    if (all_learn) {
      acting.count(l, true, parallel);
      acting.list(l, parallel);
      packed.learning = acting.rows();
    }
    const bool existing_learn = uses.gradient && uses.existing;
    if (!(automatic || requested || existing_learn)) return all;
    not_zero.count(l, false, parallel);
    const double per_row = (double)not_zero.entries() / (double)rows;
    ProductCosts costs(l, NP, kernels.lanes, kernels.lanes * (int64_t)sizeof(T));
    costs.entries = per_row * (double)l.S;
    costs.groups = (double)not_zero.count_groups(l);
    bool may_be_sparse = requested, may_be_active = false, may_be_dense = false;
    const int64_t full = tile_items(l.B), rest = l.B % full;  // sizes of tiles
    for (int64_t items : {l.B >= full ? full : rest, rest ? rest : full})
      for (double share : {0.01, 0.03, 0.1, 0.3, 0.6, 1.0}) {
        const double sparse = costs.sparse(items, share), dense = costs.dense(items),
                     active = costs.active(items, share, bf16);
        may_be_sparse |= automatic && sparse < dense && sparse < active;
        may_be_active |= automatic && active < dense && active <= sparse;
        may_be_dense |= automatic && dense <= sparse;  // active neurons may be unknown
      }
    may_be_sparse &= uses.products;
    packed.sum_sparse =
        uses.sums && (requested || (automatic && entries_are_summed_faster(per_row, NP, in_cache)));
    const bool they_learn = existing_learn && entries_learn_faster(per_row, NP, bytes);
    if (!may_be_sparse && !packed.sum_sparse && !they_learn) return all;
    not_zero.list(l, parallel);
    packed.sparse = not_zero.rows();
    if (they_learn) packed.learning = packed.sparse;
    if (!may_be_sparse) return {!packed.sum_sparse || uses.products, uses.products, bf16};
    not_zero.group(l, parallel);
    packed.product = not_zero.groups();
    // Not by w alone, which a pass that recomputes sums has too: gradients would round otherwise.
    packed.has_active_products = may_be_active;
    const bool w = may_be_active || may_be_dense || (uses.sums && !packed.sum_sparse);
    return {w, may_be_dense, bf16 && may_be_active};
  }
};

}  // namespace
}  // namespace lsnn::cpu
