// The backward pass (BPTT) of one tile of batch items. Included by kernels.cpp once for each
// instruction set.
//
// Chunk by chunk from the end: replay.h restores what each step read; for each step the product
// with the weights and the adjoint of step() give dL/dc; then the chunk's events, sorted by row,
// sum dL/dc into the weight gradients, one row in registers at a time.
#pragma once
#include "product.h"

namespace lsnn::cpu {
namespace {

template <class T> struct BackwardTile : Tile {
  static constexpr int L = Vec<T>::lanes;
  const BackwardArgs& f;
  const Packed<T>& p;
  BackwardScratch<T>& s;
  const Layer& l;
  const int64_t W, ND, K;  // K: currents
  Replay<T> past;
  const Sources<T>& sources;
  const Product<T> product;
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
        K(l.sizes.currents),
        past(args, packed, scratch.replay, tile, member),
        sources(past.steps.sources),
        product(past, packed, scratch, tile, member),
        readout(l, args.readout, packed, scratch.readout, tile, member) {
    s.active.l1_size = p.l1_size;
  }

  LSNN_METHOD T* gc(int64_t t) const { return product.gc(t); }
  LSNN_METHOD T* d_state(int64_t c) const { return s.d_states + c * full_items * NP; }
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
  // w += f[t] dL/dc[t] over the chunk.
  void filtered_weight_gradient(int64_t t0, int64_t t1, T* w) const {
    s.gradient_filtered.clear();
    for (int64_t t = t0; t < t1; t++)
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        sources.filter(t, b, past);
        const T *const dc = gc(t) + b * ND, *const f = sources.s.f;
        if (!p.learning.start) {
          s.gradient_filtered.add_bits(sources.s.bits, W, 0, dc - s.gc, f);
          continue;
        }
        for (int64_t j = 0; j < N; j++)
          if (f[j] != T(0) && sources.acts(b, j)) add_to_weights(w, j, f[j], dc);
      }
    s.gradient_filtered.add_to(w, NP, n0, n_end, s.gc, K, full_items * ND);
  }
  // The same of spikes as numbers, if they are dense; false: they are not.
  bool number_weight_gradient(int64_t t0, int64_t t1, T* w) const {
    if (!l.smooth || l.mask || p.learning.start) return false;
    const T *z[most_pairs], *dc[most_pairs];
    for (int64_t d = 0; d < l.S; d++) {
      int64_t n = 0;
      for (int64_t t = t0; t < t1; t++)
        for (int64_t b = 0, alive = items_alive(t); b < alive; b++, n++) {
          const int64_t t_past = t - 1 - l.delays[d];
          z[n] = t_past < 0 ? past.first_z(t_past, b) : past.real(t_past, b);
          dc[n] = gc(t) + b * ND;
        }
      if (!d && !are_dense(z, n, N)) return false;
      for (int64_t k = 0; k < K; k++) {
        add_outer_products(w + (k * l.S + d) * N * NP, NP, N, z, dc, n, n0, n_end);
        for (int64_t e = 0; e < n; e++) dc[e] += full_items * ND;
      }
    }
    return true;
  }
  // w += z[t - 1 - d] dL/dc[t] over the chunk.
  void weight_gradient(int64_t t0, int64_t t1, T* w) const {
    if (l.n_taps) return filtered_weight_gradient(t0, t1, w);
    if (number_weight_gradient(t0, t1, w)) return;
    s.gradient.clear();
    for (int64_t t = t0; t < t1; t++)
      for (int64_t d = 0; d < l.S; d++) {
        const int64_t alive = items_alive(t), t_past = t - 1 - l.delays[d];
        for (int64_t b = 0; b < alive; b++) {
          const T* dc = gc(t) + b * ND;
          if (t_past >= 0 && !l.smooth) {
            s.gradient.add_bits(sources.masked(b, past.bits(t_past, b), W, 0), W, d * N, dc - s.gc);
            continue;
          }
          const T* z = t_past < 0 ? past.first_z(t_past, b) : past.real(t_past, b);
          for (int64_t j = 0; j < N; j++)
            if (z[j] != T(0) && sources.acts(b, j)) add_to_weights(w, d * N + j, z[j], dc);
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
    product.start();
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
          product.add_to(s.dz, t, t - t0, sums.kernel);
          if (f.readout.O) {
            readout.adjoint(f.gp, t, t - t0, s.dz, ND);
            meter.lap(Count::ns_readout_adjoint);
          }
          adjoint(t, t0, s.sums);
          product.keep(t);
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
    if (f.gfirst.z || sums.kernel)
      for (int64_t steps_back = 0; steps_back < l.D; steps_back++) {
        // the first one starts from the local part of step 0
        if (steps_back) copy_in(s.dz, nullptr, ND);
        add_last_state(-1 - steps_back);
        if (p.product.span) {
          if (steps_back) product.clear_before(-steps_back);
          wait();  // for slots that others have cleared, here or before the last step
        }
        product.add_to(s.dz, -1 - steps_back, -1, sums.kernel);
        if (f.gfirst.z) copy_out((T*)f.gfirst.z + steps_back * B * N, s.dz, ND);
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
