// The product of the backward pass, dL/dz of past spikes from dL/dc: with one of several
// algorithms, directly into dL/dz, or through a mask and the kernel of axonal delays.
//
// With a kernel dL/dz_j[t] = sum_s kernel_sj g_j[t+1+taps_s] with g = W dL/dc: one product a step,
// whose results are kept for as many steps as the taps reach.
#pragma once
#include "backward_scratch.h"
#include "costs.h"
#include "product_bf16.h"
#include "product_sparse.h"

namespace lsnn::cpu {
namespace {

template <class T> struct Product : Tile {
  static constexpr int L = Vec<T>::lanes;
  const Packed<T>& p;
  BackwardScratch<T>& s;
  const Layer& l;
  const Replay<T>& past;
  const Sources<T>& sources;
  const int64_t ND, ring, K;  // K: currents
  ProductCosts costs;

  LSNN_METHOD Product(const Replay<T>& past, const Packed<T>& packed, BackwardScratch<T>& scratch,
                      int64_t tile, const Member& member)
      : Tile(past.l, tile, member),
        p(packed),
        s(scratch),
        l(past.l),
        past(past),
        sources(past.steps.sources),
        ND(gradient_stride<T>(NP)),
        ring(chunk + l.kept()),
        K(l.sizes.currents),
        costs(l, NP, L, L * sizeof(T)) {
    if (p.product.span) {
      costs.groups = (double)p.product.groups;
      costs.entries = (double)p.product.rows.start[p.product.groups * l.N] / (double)l.N;
    }
  }

  LSNN_METHOD T* gc(int64_t t) const { return s.gc + t % ring * K * full_items * ND; }  // current 0
  LSNN_METHOD T* gc_transposed(int64_t t) const {
    return s.gc_transposed + (t + l.D + 1) % (l.kept() + 1) * N * max_items;  // t > -l.D
  }
  LSNN_METHOD uint16_t* gc_bf16(int64_t t) const {
    return s.gc_bf16 + t % (l.kept() + 1) * full_items * gradient_stride<uint16_t>(NP);
  }

  // Zeros in this member's part of [slots,items,stride].
  template <class X> LSNN_METHOD void clear_own(X* to, int64_t slots, int64_t stride) const {
    for (int64_t row = 0; row < slots * full_items; row++)
      memset(to + row * stride + n0, 0, (n_end - n0) * sizeof(X));
  }

  // Zeros wherever a product may read what was not written.
  LSNN_METHOD void start() const {
    if (p.product.span)
      for (int64_t slot = 0; slot < l.kept() + p.product.span; slot++)
        memset(s.gc_transposed + (slot * N + n0) * max_items, 0, (n1 - n0) * max_items * sizeof(T));
    for (int64_t n = n0; l.n_taps && n < n_end; n += L)
      memset(received(0, n), 0, l.D * full_items * L * sizeof(T));
    // An item enters at its last step: dL/dc of later steps is 0, in each layout.
    if (shortest() < longest) {
      clear_own(s.gc, ring * K, ND);
      if (p.w_bf16) clear_own(s.gc_bf16, l.kept() + 1, gradient_stride<uint16_t>(NP));
    }
  }
  // dL/dc of step t in the layouts of the algorithms in use.
  LSNN_METHOD void keep(int64_t t) const {
    if (p.product.span) store_gc_transposed(t);
    if (p.w_bf16) store_gc_bf16(t);
  }

  // The fastest algorithm for a step that the layer is packed for, by the share of active neurons.
  // The share is unknown before the first step, and where all neurons count as active.
  LSNN_METHOD ProductAlgorithm fastest(int64_t step, int64_t items) const {
    const bool known = past.choose && step >= 0, bf16 = p.w_bf16 != nullptr,
               by_rows = known && p.w && p.has_active_products;
    if (p.algorithm != ProductAlgorithm::automatic && p.algorithm != ProductAlgorithm::bf16)
      return p.algorithm == ProductAlgorithm::active && !known ? ProductAlgorithm::dense
                                                               : p.algorithm;
    const double share = known ? (double)s.replay.all_active[step] / (double)(items * N) : 1;
    const double dense = p.panels ? costs.dense(items) : HUGE_VAL,
                 sparse = p.product.span ? costs.sparse(items, share) : HUGE_VAL,
                 active = by_rows ? costs.active(items, share, bf16) : HUGE_VAL;
    const bool forced = by_rows && p.algorithm == ProductAlgorithm::bf16;
    if (forced || (active < dense && active < sparse))
      return bf16 ? ProductAlgorithm::bf16 : ProductAlgorithm::active;
    return sparse < dense ? ProductAlgorithm::sparse : ProductAlgorithm::dense;
  }

  // dz += the gradient of the spikes of step t from the steps that they reached through (1).
  // step: index of t in the chunk, -1: none. gkernel: sums to add to, or null.
  void add_to(T* dz, int64_t t, int64_t step, T* gkernel) const {
    if (l.S == 0 || !(past.steps.neuron.has_product || gkernel)) return;
    if (!l.n_taps && !l.mask) return add_products(t, step, dz);
    if (t >= -1 || !l.n_taps) {
      clear_own(s.product, 1, ND);
      // With a kernel the results of a step reach neurons that are active in others.
      add_products(t, l.n_taps ? -1 : step, s.product);
      if (l.n_taps) store_received(t + 1);
    }
    const int64_t alive = items_alive(t);
    if (l.n_taps)
      for (int64_t n = n0; n < n_end; n += L) {
        if (past.steps.neuron.has_product)
          for (int64_t b = 0; b < alive; b += 8)
            spread<8>(dz, t, n, b, alive - b < 8 ? alive - b : 8);
        // Padding has no neurons, and spikes as numbers end with the last one.
        if (gkernel && n < n1) kernel_gradient(t, n, alive, gkernel + n * l.n_taps);
      }
    else
      for (int64_t b = 0; b < alive; b++)
        for (int64_t n = n0; n < n1; n++)
          if (sources.acts(b, n)) dz[b * ND + n] += s.product[b * ND + n];
  }

  // [items,lanes] of W dL/dc of step t for the neurons [n, n + lanes), 0 where the mask is
  LSNN_METHOD T* received(int64_t t, int64_t n) const {
    return s.received + (n * l.D + t % l.D * L) * full_items;
  }
  LSNN_METHOD void store_received(int64_t t) const {
    for (int64_t b = 0; b < items; b++)
      for (int64_t n = n0; n < n_end; n += L) {
        const Vec<T> from = load(s.product + b * ND + n);
        store(received(t, n) + b * L,
              l.mask ? select(get_bits<T>(sources.mask_of(b), n), from, Vec<T>(0)) : from);
      }
  }
  // The taps whose spikes of step t reached a step of the tile: [first, end).
  LSNN_METHOD int64_t first_tap(int64_t t) const {
    int64_t tap = 0;
    while (tap < l.n_taps && t + 1 + l.taps[tap] < 0) tap++;
    return tap;
  }
  LSNN_METHOD int64_t end_tap(int64_t t) const {
    int64_t tap = l.n_taps;
    while (tap > 0 && t + 1 + l.taps[tap - 1] >= longest) tap--;
    return tap;
  }
  // dz += the sum over taps of kernel W dL/dc for neurons [n, n + lanes) of items [b, b + Items).
  template <int Items> LSNN_METHOD void spread(T* dz, int64_t t, int64_t n, int64_t b,
                                               int64_t items) const {
    if constexpr (Items > 1)
      if (items < Items) return spread<Items - 1>(dz, t, n, b, items);
    Vec<T> sum[Items];
#pragma GCC unroll 8
    for (int i = 0; i < Items; i++) sum[i] = load(dz + (b + i) * ND + n);
    for (int64_t tap = first_tap(t), end = end_tap(t); tap < end; tap++) {
      const Vec<T> k = load(p.kernel + n * l.n_taps + tap * L);
      const T* const from = received(t + 1 + l.taps[tap], n) + b * L;
#pragma GCC unroll 8
      for (int i = 0; i < Items; i++) sum[i] = fma_(k, load(from + i * L), sum[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Items; i++) store(dz + (b + i) * ND + n, sum[i]);
  }
  // to [n_taps,lanes] += z_t W dL/dc of the steps that the taps reached.
  LSNN_METHOD void kernel_gradient(int64_t t, int64_t n, int64_t alive, T* to) const {
    for (int64_t b = 0; b < alive; b++) {
      const Vec<T> z = load_spikes(past.spikes(t, b), n);
      if (!to_bits(z != Vec<T>(0))) continue;
      for (int64_t tap = first_tap(t), end = end_tap(t); tap < end; tap++)
        store(to + tap * L,
              fma_(z, load(received(t + 1 + l.taps[tap], n) + b * L), load(to + tap * L)));
    }
  }

  // out += sum over delays of W dL/dc of the steps that the spikes of step t reached. step: as of
  // product; with few active neurons only their results are computed; -1: all.
  void add_products(int64_t t, int64_t step, T* out) const {
    const int64_t alive = items_alive(t);
    const ProductAlgorithm algorithm = fastest(step, alive);
    const uint16_t* active =
        past.choose && step >= 0 ? s.replay.active + step * NP / 16 * max_items : nullptr;
    for (int64_t d = 0; d < l.S && algorithm != ProductAlgorithm::sparse; d++) {
      const int64_t reached = t + 1 + l.delays[d];
      if (reached < 0 || reached >= longest) continue;
#if LSNN_TARGET == LSNN_TARGET_AVX512
      if constexpr (has_bf16<T>)
        if (algorithm == ProductAlgorithm::bf16) {
          add_bf16_product(p.w_bf16 + d * N * NP, N, NP, gc_bf16(reached), out, n0, n1, active,
                           s.active);
          continue;
        }
#endif
      for (int64_t k = 0; k < K; k++) {
        const T* const dc = gc(reached) + k * full_items * ND;
        if (algorithm == ProductAlgorithm::active)
          add_active_product(p.w + k * p.w_stride + d * N * NP, N, NP, dc, ND, out, n0, n1, active,
                             s.active);
        else
          add_product(p.panels + k * p.panels_stride + (d * NP + n0) * N, N, n_end - n0, dc, ND,
                      out + n0, ND, alive);
      }
    }
    if (algorithm == ProductAlgorithm::sparse) {
      for (int64_t g = 0; g < p.product.groups; g++)
        s.slices[g] = gc_transposed(t + 1 + p.product.delay[g]);
      add_sparse_product(p.product, N, ND, s.slices, out, alive, active, n0, n1);
    }
    const bool dense = algorithm == ProductAlgorithm::dense,
               sparse = algorithm == ProductAlgorithm::sparse;  // bf16 is counted as active
    past.steps.meter.lap(dense    ? Count::ns_product_dense
                         : sparse ? Count::ns_product_sparse
                                  : Count::ns_product_active);
    if (leads())
      past.steps.meter.count(dense    ? Count::product_steps_dense
                             : sparse ? Count::product_steps_sparse
                                      : Count::product_steps_active,
                             t >= 0);
  }

  // This member's part of a slot of gc_transposed, and of the copy of the slot if there is one.
  template <class F> LSNN_METHOD void each_place(int64_t t, const F& write) const {
    T* const to = gc_transposed(t);
    const int64_t slot = (to - s.gc_transposed) / (N * max_items);
    write(to);
    if (slot + 1 < p.product.span)
      memcpy(to + ((l.kept() + 1) * N + n0) * max_items, to + n0 * max_items,
             (n1 - n0) * max_items * sizeof(T));
  }
  // dL/dc of step t for sparse products.
  LSNN_METHOD void store_gc_transposed(int64_t t) const {
    each_place(t,
               [&](T* to) LSNN_LAMBDA { transpose_items(gc(t), ND, items_alive(t), n0, n1, to); });
  }
  // Zeros in the transposed layout for a step before the sequence.
  LSNN_METHOD void clear_before(int64_t t) const {
    each_place(t, [&](T* to) LSNN_LAMBDA {
      memset(to + n0 * max_items, 0, (n1 - n0) * max_items * sizeof(T));
    });
  }

  // dL/dc of step t for products in bfloat16; zeros beyond N, where gc is undefined.
  LSNN_METHOD void store_gc_bf16([[maybe_unused]] int64_t t) const {
#if LSNN_TARGET == LSNN_TARGET_AVX512
    if constexpr (has_bf16<T>)
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        if (n1 == N) memset(gc(t) + b * ND + N, 0, (NP - N) * sizeof(T));
        to_bf16(gc(t) + b * ND + n0, n_end - n0,
                gc_bf16(t) + b * gradient_stride<uint16_t>(NP) + n0);
      }
#endif
  }
};

}  // namespace
}  // namespace lsnn::cpu
