// Replays the sequence for the backward pass, chunk by chunk, from what the forward pass saved.
// Where y was not saved, the steps of a segment are recomputed first, bitwise identical.
#pragma once
#include "step.h"

namespace lsnn::cpu {
namespace {

template <class T> struct ReplayScratch {
  T* states;  // [states,chunk + 1,items,NP] read by each step of the chunk (a prime in alif.h)
  T* chunk_states;  // [every / chunk,states,items,NP] the same at the start of each chunk
  uint16_t* active;  // [chunk,NP/16,max_items] active neurons, a bit each
  int64_t* active_n;  // [members,chunk] number of active neurons
  int64_t* all_active;  // [chunk] the same of all members
  T* y;  // [every,items,saved,NP] of the segment, where it is recomputed
  T* y_of_step;  // [items,NP] y of a step, where it is saved as bfloat16
  StepScratch<T> steps;  // the same
  SourceScratch<T> sources;

  ReplayScratch(Arena& shared, Arena& own, const BackwardArgs& f, int64_t members)
      : steps(f.saved.y ? none(f) : StepScratch<T>(own, f.layer, f.projection)),
        sources(own, f.layer) {
    const int64_t n = tile_items(f.layer.B), NP = padded(f.layer.N), rows = (chunk + 1) * n * NP;
    const int64_t every = f.saved.every < f.layer.T ? f.saved.every : f.layer.T;
    const NeuronSizes& sizes = f.layer.sizes;
    states = own.take<T>(sizes.states * rows);
    chunk_states = own.take<T>((every / chunk + 1) * sizes.states * n * NP);
    active = own.take<uint16_t>(chunk * NP / 16 * max_items);
    active_n = shared.take<int64_t>(members * chunk);
    all_active = own.take<int64_t>(chunk);
    y = shared.take<T>(f.saved.y ? 0 : every * n * sizes.saved * NP + pad);
    y_of_step = own.take<T>(f.saved.y_is_bf16 ? n * NP : 0);
  }
  static StepScratch<T> none(const BackwardArgs& f) {
    Arena nowhere;
    return StepScratch<T>(nowhere, f.layer, f.projection);
  }
};

template <class T> struct Replay : Tile {
  static constexpr int L = Vec<T>::lanes;
  using V = Vec<T>;
  const BackwardArgs& f;
  const Packed<T>& p;
  const ReplayScratch<T>& s;
  const Layer& l;
  const int64_t W, n_states, n_saved;
  const int64_t state_size;  // numbers of one state of the tile
  int64_t S0;  // first step of the segment
  Steps<T> steps;
  const bool choose;  // whether neurons can be inactive
  const bool replays;  // whether steps read more than y of the step before gives

  LSNN_METHOD Replay(const BackwardArgs& args, const Packed<T>& packed,
                     const ReplayScratch<T>& scratch, int64_t tile, const Member& member)
      : Tile(args.layer, tile, member),
        f(args),
        p(packed),
        s(scratch),
        l(args.layer),
        W(p.W),
        n_states(l.sizes.states),
        n_saved(l.sizes.saved),
        state_size(full_items * NP),
        S0(0),
        steps(l, p, scratch.steps, scratch.sources, tile, member, f.x, f.x_stride_t, f.x_stride_b,
              f.projection, f.first.z),
        choose(steps.neuron.has_inactive),
        replays(steps.neuron.replays || args.saved.y_is_bf16) {}

  LSNN_METHOD const T* first_z(int64_t past, int64_t b) const { return steps.first_z(past, b); }
  LSNN_METHOD uint32_t* bits(int64_t t, int64_t b) const {
    return f.saved.bits + (t * B + b0 + b) * W;
  }
  static constexpr int64_t members = 1;  // for Steps::collect
  LSNN_METHOD uint32_t* bits(int64_t t, int64_t b, int64_t) const { return bits(t, b); }
  LSNN_METHOD T* real(int64_t t, int64_t b) const { return (T*)f.saved.z + (t * B + b0 + b) * N; }

  // z_t of an item
  LSNN_METHOD Spikes<T> spikes(int64_t t, int64_t b) const {
    if (t < 0) return {nullptr, first_z(t, b), N};
    return {bits(t, b), l.smooth ? real(t, b) : nullptr, N};
  }

  // z_t of the tile's items
  LSNN_METHOD SpikesOfItems<T> spikes(int64_t t) const { return {spikes(t, 0), W, N}; }

  // y, or the currents, of a step of an item, where they are not bfloat16: rows of N numbers.
  LSNN_METHOD Rows<const T> saved_rows(int64_t t, int64_t b) const {
    if (f.saved.y) return {(const T*)f.saved.y + (t * B + b0 + b) * n_saved * N, N};
    return {recomputed(t, b), NP};
  }
  LSNN_METHOD T* recomputed(int64_t t, int64_t b) const {
    return s.y + ((t - S0) * full_items + b) * n_saved * NP;
  }
  LSNN_METHOD const bfloat16* y_bf16(int64_t t, int64_t b) const {
    return (const bfloat16*)f.saved.y + (t * B + b0 + b) * N;
  }
  // Saved values of this member's neurons, for the items of the tile; valid until the next call.
  struct OfItems {
    Rows<const T> first;
    int64_t items;  // from item to item
    LSNN_METHOD Rows<const T> of(int64_t b) const {
      return {first.first + b * items, first.stride};
    }
  };
  LSNN_METHOD OfItems saved_of_items(int64_t t) const {
    if constexpr (sizeof(T) == 4)
      if (f.saved.y_is_bf16) {
        for (int64_t b = 0, alive = items_alive(t); b < alive; b++)
          for (int64_t n = n0; n < n1; n += L)
            store(s.y_of_step + b * NP + n, load_n(y_bf16(t, b) + n, N - n));
        return {{s.y_of_step, NP}, NP};
      }
    return {saved_rows(t, 0), n_saved * (f.saved.y ? N : NP)};
  }

  LSNN_METHOD T* chunk_state(int64_t t, int64_t state) const {
    return s.chunk_states + ((t - S0) / chunk * n_states + state) * state_size;
  }
  LSNN_METHOD Rows<T> chunk_states(int64_t t, int64_t b) const {
    return {chunk_state(t, 0) + b * NP, state_size};
  }

  // Prepares the segment [first, S1): computes what the first step of each chunk read.
  void segment_from(int64_t first, int64_t S1) {
    S0 = first;
    for (int64_t c = 0; c < n_states; c++)
      copy_in(chunk_state(S0, c),
              (const T*)f.saved.carry + (S0 / f.saved.every * n_states + c) * B * N);
    if (!f.saved.y) {
      recompute(S1);
      steps.meter.lap(Count::ns_recompute);
    }
    if (!replays) return;
    for (int64_t t0 = S0; t0 + chunk < S1; t0 += chunk)
      for (int64_t b = 0, alive = items_alive(t0 + chunk); b < alive; b++) {
        const Rows<T> read = chunk_states(t0, b);
        const Rows<const T> saved = f.saved.y_is_bf16 ? Rows<const T>{} : saved_rows(t0, b);
        steps.neuron.replay_steps(
            steps.neuron.settings,
            {.coefficients = p.coefficients,
             .n0 = n0,
             .n1 = n1,
             .N = N,
             .steps = chunk,
             .before = spikes(t0 - 1, b),
             .after = spikes(t0, b),
             .bits_stride = B * W,
             .numbers_stride = B * N,
             .saved = saved,
             .saved_bf16 = f.saved.y_is_bf16 ? (const uint16_t*)y_bf16(t0, b) : nullptr,
             .saved_stride = n_saved * (f.saved.y ? B * N : full_items * NP),
             .read = {read.first, read.stride},
             .left = chunk_states(t0 + chunk, b)});
      }
  }

  // y of the segment. All else is replayed from it as if it had been saved, so that gradients are
  // bitwise identical.
  void recompute(int64_t S1) {
    for (int64_t c = 0; c < n_states; c++)
      copy_own(steps.s.states + c * state_size, chunk_state(S0, c));
    for (int64_t b = 0; b < items; b++)
      for (int64_t n = n0; n < n1; n += L)
        store(steps.s.z + b * NP + n, load_spikes(spikes(S0 - 1, b), n));
    for (int64_t t = S0; t < S1; t++) {
      steps.collect(t, *this);
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        steps.advance(t, b, t && !l.smooth ? bits(t - 1, b) : nullptr,
                      {.is_last = false,
                       .bits = nullptr,
                       .saved = {recomputed(t, b), NP},
                       .z = nullptr,
                       .traces = nullptr});
      }
    }
  }

  // This member's neurons of a state of the tile, [items,NP].
  LSNN_METHOD void copy_own(T* to, const T* from) const {
    if (n_end - n0 == NP) memcpy(to, from, state_size * sizeof(T));
    else
      for (int64_t b = 0; b < items; b++)
        memcpy(to + b * NP + n0, from + b * NP + n0, (n_end - n0) * sizeof(T));
  }

  // Replays the chunk [t0, t1) of the segment: keeps what each step read, and marks its active
  // neurons. After the next barrier count_active() sums their number over members.
  void chunk_of(int64_t t0, int64_t t1) const {
    if (!replays) return;
    for (int64_t step = 0; step < chunk; step++)
      memset(s.active + (step * NP + n0) / 16 * max_items, 0,
             (n_end - n0) / 16 * max_items * sizeof(uint16_t));
    int64_t* const counts = s.active_n + team.index * chunk;
    memset(counts, 0, chunk * sizeof(int64_t));
    for (int64_t c = 0; c < n_states; c++)
      if (steps.neuron.carried >> c & 1) copy_own(state(0, c), chunk_state(t0, c));
    for (int64_t t = t0; t < t1; t++) {
      const OfItems saved = saved_of_items(t);
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        const Rows<const T> rows = saved.of(b);
        if (f.saved.y && !f.saved.y_is_bf16 && t + 1 < t1)
          for (int64_t k = 0; k < n_saved; k++)
            for (int64_t n = n0; n < n1; n += 64 / (int64_t)sizeof(T))
              prefetch(rows.first + (B * n_saved + k) * N + n);
        const Rows<T> read = states(t - t0, b);
        counts[t - t0] += steps.neuron.replay(
            steps.neuron.settings, {.coefficients = p.coefficients,
                                    .n0 = n0,
                                    .n1 = n1,
                                    .N = N,
                                    .before = spikes(t - 1, b),
                                    .after = spikes(t, b),
                                    .saved = rows,
                                    .read = {read.first, read.stride},
                                    .left = states(t - t0 + 1, b),
                                    .active = s.active + (t - t0) * NP / 16 * max_items + b});
      }
    }
  }
  // What a step of the chunk read. step: index in the chunk.
  LSNN_METHOD T* state(int64_t step, int64_t c) const {
    return s.states + (c * (chunk + 1) + step) * state_size;
  }
  LSNN_METHOD Rows<T> states(int64_t step, int64_t b) const {
    return {state(step, 0) + b * NP, (chunk + 1) * state_size};
  }
  LSNN_METHOD void count_active() const {
    if (!replays) return;  // then all are active, see v_suffices()
    for (int64_t step = 0; step < chunk; step++) {
      int64_t sum = 0;
      for (int64_t m = 0; m < team.members; m++) sum += s.active_n[m * chunk + step];
      s.all_active[step] = sum;
    }
  }
};

}  // namespace
}  // namespace lsnn::cpu
