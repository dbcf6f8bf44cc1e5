// The backward pass (BPTT) of one tile of batch items. Included by kernels.cpp once for each
// instruction set.
//
// Chunk by chunk from the end: replay.h restores what each step read; for each step the product
// with the weights and the adjoint of step() give dL/dc; then the chunk's events, sorted by row,
// sum dL/dc into the weight gradients, one row in registers at a time.
#pragma once
#include "backward_scratch.h"
#include "costs.h"
#include "product_bf16.h"
#include "product_sparse.h"

namespace lsnn::cpu {
namespace {

template <class T> struct BackwardTile : Tile {
  static constexpr int L = Vec<T>::lanes;
  const BackwardArgs& f;
  const Packed<T>& p;
  BackwardScratch<T>& s;
  const Layer& l;
  const int64_t W, ND, ring, K;  // K: currents
  ProductCosts costs;
  Replay<T> past;
  const ReadoutTile<T> readout;

  LSNN_METHOD BackwardTile(const BackwardArgs& args, const Packed<T>& packed,
                           BackwardScratch<T>& scratch, int64_t tile, const Member& member)
      : Tile(args.layer, tile, member),
        f(args),
        p(packed),
        s(scratch),
        l(args.layer),
        W(p.W),
        ND(gradient_stride<T>(NP)),
        ring(chunk + l.D),
        K(l.sizes.currents),
        costs(l, NP, L, L * sizeof(T)),
        past(args, packed, scratch.replay, tile, member),
        readout(l, args.readout, packed, scratch.readout, tile, member) {
    s.active.l1_size = p.l1_size;
    if (p.product.span) {
      costs.groups = (double)p.product.groups;
      costs.entries = (double)p.product.rows.start[p.product.groups * l.N] / (double)l.N;
    }
  }

  LSNN_METHOD T* gc(int64_t t) const { return s.gc + t % ring * K * full_items * ND; }  // current 0
  LSNN_METHOD T* d_state(int64_t c) const { return s.d_states + c * full_items * NP; }
  LSNN_METHOD T* gc_transposed(int64_t t) const {
    return s.gc_transposed + (t + l.D + 1) % (l.D + 1) * N * max_items;  // t > -l.D
  }
  LSNN_METHOD uint16_t* gc_bf16(int64_t t) const {
    return s.gc_bf16 + t % (l.D + 1) * full_items * gradient_stride<uint16_t>(NP);
  }

  // The fastest algorithm for a step that the layer is packed for, by the share of active neurons.
  // The share is unknown before the first step, and where all neurons count as active.
  LSNN_METHOD ProductAlgorithm fastest(int64_t step, int64_t items) const {
    const bool known = past.choose && step >= 0, bf16 = p.w_bf16 != nullptr;
    if (p.algorithm != ProductAlgorithm::automatic && p.algorithm != ProductAlgorithm::bf16)
      return p.algorithm == ProductAlgorithm::active && !known ? ProductAlgorithm::dense
                                                               : p.algorithm;
    const double share = known ? (double)s.replay.all_active[step] / (double)(items * N) : 1;
    const double dense = p.panels ? costs.dense(items) : HUGE_VAL,
                 sparse = p.product.span ? costs.sparse(items, share) : HUGE_VAL,
                 active = known && p.w ? costs.active(items, share, bf16) : HUGE_VAL;
    const bool forced = known && p.w && p.algorithm == ProductAlgorithm::bf16;
    if (forced || (active < dense && active < sparse))
      return bf16 ? ProductAlgorithm::bf16 : ProductAlgorithm::active;
    return sparse < dense ? ProductAlgorithm::sparse : ProductAlgorithm::dense;
  }

  // dz += sum over delays of W dL/dc of the steps that the spikes of step t reached through (1).
  // step: index of t in the chunk; with few active neurons only their results are computed; -1:
  // all.
  void product(int64_t t, int64_t step) const {
    if (l.S == 0 || !past.steps.neuron.has_product) return;
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
          add_bf16_product(p.w_bf16 + d * N * NP, N, NP, gc_bf16(reached), s.dz, n0, n1, active,
                           s.active);
          continue;
        }
#endif
      for (int64_t k = 0; k < K; k++) {
        const T* const dc = gc(reached) + k * full_items * ND;
        if (algorithm == ProductAlgorithm::active)
          add_active_product(p.w + k * p.w_stride + d * N * NP, N, NP, dc, ND, s.dz, n0, n1, active,
                             s.active);
        else
          add_product(p.panels + k * p.panels_stride + (d * NP + n0) * N, N, n_end - n0, dc, ND,
                      s.dz + n0, ND, alive);
      }
    }
    if (algorithm == ProductAlgorithm::sparse) {
      for (int64_t g = 0; g < p.product.groups; g++)
        s.slices[g] = gc_transposed(t + 1 + p.product.delay[g]);
      add_sparse_product(p.product, N, ND, s.slices, s.dz, alive, active, n0, n1);
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
                             step >= 0);
  }

  // The adjoint of one step for all items; dz holds dL/dz of step t without the part from outside.
  void adjoint(int64_t t, int64_t t0, T* gk) const {
    const int64_t alive = items_alive(t), at = (t * B + b0) * N, n_traces = l.sizes.traces;
    const T* g_traces[neuron::max_states];
    bool is_traced = false;
    for (int64_t k = 0; k < n_traces; k++) {
      g_traces[k] = f.g_trace(k) ? (const T*)f.g_trace(k) + at : nullptr;
      is_traced |= g_traces[k] != nullptr;
    }
    const T* gz = f.gz ? (const T*)f.gz + t * f.gz_stride_t + b0 * f.gz_stride_b : nullptr;
    const auto saved = past.saved_of_items(t);
    const bool from_y = !past.replays && t > past.S0;
    const int64_t ahead = t - 2 > past.S0 ? t - 2 : past.S0;
    const Rows<T> read = past.replays ? past.states(t - t0, 0) : past.chunk_states(past.S0, 0);
    past.steps.neuron.adjoint(
        past.steps.neuron.settings,
        {.coefficients = p.coefficients,
         .items = alive,
         .n0 = n0,
         .n1 = n1,
         .N = N,
         .NP = NP,
         .saved = saved.first,
         .saved_items = saved.items,
         .before = past.spikes(t - 1),
         .after = past.spikes(t),
         .read = {read.first, read.stride},
         .d_states = {s.d_states, full_items * NP},
         .dz = s.dz,
         .dz_stride = ND,
         .gz = gz,
         .gz_next = gz && t > 0 ? gz - f.gz_stride_t : nullptr,
         .gz_stride_b = f.gz_stride_b,
         .gz_stride_n = f.gz_stride_n,
         .g_traces = is_traced ? g_traces : nullptr,
         .dc = {gc(t), full_items * ND},
         .gx = {f.gx ? s.gx_out : nullptr, N},
         .gx_items = K * N,
         .sums = gk,
         .want = f.want,
         .is_first = t == 0,
         .is_last = t == longest - 1 || items_alive(t + 1) < alive,
         .saved_before = from_y ? past.saved_of_items(t - 1).first.first : nullptr,
         .saved_ahead = from_y ? past.saved_of_items(ahead).first.first : nullptr,
         .before_that = past.spikes(from_y ? t - 2 : t - 1)});
    stream_out(f.gx, t, s.gx_out, K);
  }

  // This member's part of a slot of gc_transposed, and of the copy of the slot if there is one.
  template <class F> LSNN_METHOD void each_place(int64_t t, const F& write) const {
    T* const to = gc_transposed(t);
    const int64_t slot = (to - s.gc_transposed) / (N * max_items);
    write(to);
    if (slot + 1 < p.product.span)
      memcpy(to + ((l.D + 1) * N + n0) * max_items, to + n0 * max_items,
             (n1 - n0) * max_items * sizeof(T));
  }
  // dL/dc of step t for sparse products.
  LSNN_METHOD void store_gc_transposed(int64_t t) const {
    each_place(t,
               [&](T* to) LSNN_LAMBDA { transpose_items(gc(t), ND, items_alive(t), n0, n1, to); });
  }
  // Zeros for a step before the sequence.
  LSNN_METHOD void clear_gc_transposed(int64_t t) const {
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

  // The synapses of a row that have a list, and whose neurons k are this member's.
  LSNN_METHOD Entries learning(int64_t row) const {
    return entries_of(p.learning, N, (uint32_t)row, n0, n1);
  }
  // w += z dL/dc[t] of one neuron j, of an item, and one delay: row d * N + j of w.
  LSNN_METHOD void add_to_weights(T* w, int64_t row, T z, const T* dc) const {
    if (!p.learning.start) {
      for (int64_t k = 0; k < K; k++)
        add_row(w + (k * l.S * N + row) * NP, z, dc + k * full_items * ND, n0, n_end);
      return;
    }
    const Entries e = learning(row);
    add_row_to_list(w + e.first, z, dc, p.learning.column + e.first, e.end - e.first);
  }
  // w += z[t - 1 - d] dL/dc[t] over the chunk.
  void weight_gradient(int64_t t0, int64_t t1, T* w) const {
    s.gradient.clear();
    for (int64_t t = t0; t < t1; t++)
      for (int64_t d = 0; d < l.S; d++) {
        const int64_t alive = items_alive(t), t_past = t - 1 - l.delays[d];
        for (int64_t b = 0; b < alive; b++) {
          const T* dc = gc(t) + b * ND;
          if (t_past >= 0 && !l.smooth) {
            s.gradient.add_bits(past.bits(t_past, b), W, d * N, dc - s.gc);
            continue;
          }
          const T* z = t_past < 0 ? past.first_z(t_past, b) : past.real(t_past, b);
          for (int64_t j = 0; j < N; j++)
            if (z[j] != T(0)) add_to_weights(w, d * N + j, z[j], dc);
        }
      }
    if (p.learning.start)
      s.gradient.add_to_list(w, p.learning.column, s.gc,
                             [&](int64_t row) LSNN_LAMBDA { return learning(row); });
    else s.gradient.add_to(w, NP, n0, n_end, s.gc, K, full_items * ND);
  }
  // w_in += input[t] dL/dc[t] over the chunk, and the bias in the last row.
  void input_gradient(int64_t t0, int64_t t1, T* w_in) const {
    const int64_t I = f.projection.I;
    s.gradient_in.clear();
    for (int64_t t = t0; t < t1; t++)
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        const int64_t at = gc(t) + b * ND - s.gc;
        if (f.projection.bits) s.gradient_in.add_bits(past.steps.input_bits(t, b), words(I), 0, at);
        else {
          const T* x = past.steps.x_row(t, b);
          const bool ones = nonzero(x, I, s.nonzero);
          s.gradient_in.add_bits(s.nonzero, words(I), 0, at, ones ? nullptr : x);
        }
        if (f.gbias) s.gradient_in.add(I, at, T(1));
      }
    s.gradient_in.add_to(w_in, NP, n0, n_end, s.gc);
  }
  // w_out += z[t] dL/d(w_out z[t]) over the chunk.
  void output_gradient(int64_t t0, int64_t t1, T* w_out) const {
    RowGradient<T, false>& gradient = s.readout.gradient;
    gradient.clear();
    for (int64_t t = t0; t < t1; t++)
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        const T* g = readout.g(t - t0, b);
        if (!l.smooth) {
          gradient.add_bits(past.bits(t, b) + word0(), own_words(), n0, g - s.readout.g);
          continue;
        }
        for (int64_t j = n0; j < n1; j++)
          add_row(w_out + j * readout.OP, past.real(t, b)[j], g, 0, readout.OP);
      }
    gradient.add_to(w_out, readout.OP, 0, readout.OP, s.readout.g);
  }

  // dz += dL/dz of the last state for the spikes of step t, which may be negative.
  LSNN_METHOD void add_last_state(int64_t t) const {
    if (!f.glast.z) return;
    for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
      const int64_t steps_back = length(b) - 1 - t;
      if (steps_back >= l.D) continue;
      for (int64_t n = n0; n < n1; n++)
        s.dz[b * ND + n] += ((const T*)f.glast.z)[(steps_back * B + b0 + b) * N + n];
    }
  }

  // Counts the steps of neurons in the chunk [t0, t1), all and active ones.
  LSNN_METHOD void count_active(int64_t t0, int64_t t1) const {
    Meter& meter = past.steps.meter;
    if (!meter.hooks || !leads()) return;
    int64_t all = 0, active = 0;
    for (int64_t t = t0; t < t1; t++) {
      const int64_t numbers = items_alive(t) * N;
      all += numbers;
      active += past.choose ? s.replay.all_active[t - t0] : numbers;
    }
    meter.n[Count::replayed] += all;
    meter.n[Count::active] += active;
  }

  // Zeros in this member's part of [slots,items,stride].
  template <class X> LSNN_METHOD void clear_own(X* to, int64_t slots, int64_t stride) const {
    for (int64_t row = 0; row < slots * full_items; row++)
      memset(to + row * stride + n0, 0, (n_end - n0) * sizeof(X));
  }

  // Waits until all members have finished the step.
  LSNN_METHOD void wait() const {
    if (team.members > 1) {
      arrive_and_wait(team);
      past.steps.meter.lap(Count::ns_wait_backward);
    }
  }

  void run(const Sums<T>& sums) {
    Meter& meter = past.steps.meter;
    for (int64_t c = 0; c < l.sizes.states; c++) copy_in(d_state(c), f.glast.of(c));
    copy_in(s.dz, nullptr, ND);
    if (f.readout.O) readout.start(f.gp_last);
    if (p.product.span)
      for (int64_t slot = 0; slot < l.D + p.product.span; slot++)
        memset(s.gc_transposed + (slot * N + n0) * max_items, 0, (n1 - n0) * max_items * sizeof(T));
    // An item enters at its last step: dL/dc of later steps is 0, in each layout.
    if (shortest() < longest) {
      clear_own(s.gc, ring * K, ND);
      if (p.w_bf16) clear_own(s.gc_bf16, l.D + 1, gradient_stride<uint16_t>(NP));
    }
    const int64_t every = f.saved.every;
    // Segments from the last to the first; none without steps.
    const int64_t last_segment = longest ? (longest - 1) / every * every : -1;
    for (int64_t S0 = last_segment; S0 >= 0; S0 -= every) {
      const int64_t S1 = S0 + every < longest ? S0 + every : longest;
      past.segment_from(S0, S1);
      for (int64_t t0 = S0 + (S1 - S0 - 1) / chunk * chunk; t0 >= S0; t0 -= chunk) {
        const int64_t t1 = t0 + chunk < S1 ? t0 + chunk : S1;
        past.chunk_of(t0, t1);
        meter.lap(Count::ns_replay);
        ask_to_stop(team);
        wait();
        if (is_stopped(team)) return;
        past.count_active();
        count_active(t0, t1);
        if (sums.k)
          for (int64_t c = 0; c < l.sizes.gradients; c++)
            memset(s.sums + c * NP + n0, 0, (n_end - n0) * sizeof(T));
        for (int64_t t = t1 - 1; t >= t0; t--) {
          add_last_state(t);
          product(t, t - t0);
          if (f.readout.O) {
            readout.adjoint(f.gp, t, t - t0, s.dz, ND);
            meter.lap(Count::ns_readout_adjoint);
          }
          adjoint(t, t0, s.sums);
          if (p.product.span) store_gc_transposed(t);
          if (p.w_bf16) store_gc_bf16(t);
          meter.lap(Count::ns_adjoint);
          wait();
        }
        if (sums.k)
          for (int64_t c = 0; c < l.sizes.gradients; c++)
            for (int64_t n = n0; n < n_end; n++) sums.k[c * NP + n] += s.sums[c * NP + n];
        if (sums.w) {
          weight_gradient(t0, t1, sums.w);
          meter.lap(Count::ns_gradient);
        }
        if (sums.w_in) {
          input_gradient(t0, t1, sums.w_in);
          meter.lap(Count::ns_gradient_in);
        }
        if (sums.w_out) {
          output_gradient(t0, t1, sums.w_out);
          meter.lap(Count::ns_gradient_out);
        }
      }
    }
    stream_end();
    clear_after_end<T>(f.gx, l.T, K);
    for (int64_t c = 0; c < l.sizes.states; c++) copy_out(f.gfirst.of(c), d_state(c));
    if (f.readout.O)
      for (int64_t b = team.index; b < items; b += team.members) readout.write(f.gp_first, b0, b);
    if (f.gfirst.z)
      for (int64_t steps_back = 0; steps_back < l.D; steps_back++) {
        // the first one starts from the local part of step 0
        if (steps_back) copy_in(s.dz, nullptr, ND);
        add_last_state(-1 - steps_back);
        if (p.product.span) {
          if (steps_back) clear_gc_transposed(-steps_back);
          wait();  // for slots that others have cleared, here or before the last step
        }
        product(-1 - steps_back, -1);
        copy_out((T*)f.gfirst.z + steps_back * B * N, s.dz, ND);
      }
    meter.finish();
  }
};

template <class T>
LSNN_LOCAL void backward_tile(const BackwardArgs& f, const Packed<T>& p, int64_t tile,
                              const Member& member, const Sums<T>& sums) {
  Arena shared(member.shared), own(member.own);
  BackwardScratch<T> s(shared, own, f, p.product.span, p.w_bf16 != nullptr, member.members);
  BackwardTile<T>(f, p, s, tile, member).run(sums);
}

}  // namespace
}  // namespace lsnn::cpu
