// What the steps of the sequence have read, for the backward pass: replayed, chunk by chunk, from
// what the forward pass has saved. Where it has not saved y, the steps of a segment are computed
// again first, to the same bits.
#pragma once
#include "step.h"

namespace lsnn::cpu {
namespace {

template <class T> struct ReplayScratch {
  T *v, *a, *i, *r;  // [chunk + 1,items,NP] what each step of the chunk read (a prime in alif.h)
  T* chunk_states;  // [every / chunk,4,items,NP] the same at the start of each chunk of the segment
  uint16_t* active;  // [chunk,NP/16,max_items] active neurons, a bit each
  int64_t* active_n;  // [members,chunk] how many of each member's neurons
  int64_t* all_active;  // [chunk] how many in all
  T* y;  // [every,items,NP] of the segment, where it is computed again
  T* y_of_step;  // [items,NP] y of a step, where it is saved as bfloat16
  StepScratch<T> steps;  // the same

  ReplayScratch(Arena& shared, Arena& own, const BackwardArgs& f, int64_t members)
      : steps(f.saved.y ? none(f) : StepScratch<T>(own, f.layer, f.projection)) {
    const int64_t n = tile_items(f.layer.B), NP = padded(f.layer.N), rows = (chunk + 1) * n * NP;
    const int64_t every = f.saved.every < f.layer.T ? f.saved.every : f.layer.T;
    v = own.take<T>(rows);
    a = own.take<T>(rows);
    i = own.take<T>(rows);
    r = own.take<T>(rows);
    chunk_states = own.take<T>((every / chunk + 1) * 4 * n * NP);
    active = own.take<uint16_t>(chunk * NP / 16 * max_items);
    active_n = shared.take<int64_t>(members * chunk);
    all_active = own.take<int64_t>(chunk);
    y = shared.take<T>(f.saved.y ? 0 : every * n * NP + pad);
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
  const GeneralSpec& spec;
  const ReplayScratch<T>& s;
  const Layer& l;
  const int64_t W, state_size;  // state_size: numbers of one variable of the tile
  const bool carry_i;
  const bool choose;  // whether there can be neurons that are not active
  const bool replays;  // whether steps read more than follows from y of the step before
  int64_t S0;  // first step of the segment at hand
  Steps<T> steps;

  LSNN_METHOD Replay(const BackwardArgs& args, const Packed<T>& packed,
                     const ReplayScratch<T>& scratch, int64_t tile, const Member& member)
      : Tile(args.layer, tile, member),
        f(args),
        p(packed),
        spec(packed.spec),
        s(scratch),
        l(args.layer),
        W(p.W),
        state_size(full_items * NP),
        carry_i(packed.spec.want >> SIGMA & 1),
        choose(can_be_inactive(packed.spec)),
        replays(!v_suffices(packed.spec, is_zero(args.layer, BETA)) || args.saved.y_is_bf16),
        S0(0),
        steps(l, p, scratch.steps, tile, member, f.x, f.x_stride_t, f.x_stride_b, f.projection,
              f.first.z) {}

  LSNN_METHOD static bool is_zero(const Layer& l, Coefficient c) {
    const T* row = (const T*)l.coefficients + c * l.N;
    bool zero = true;
    for (int64_t n = 0; n < l.N; n++) zero &= row[n] == T(0);
    return zero;
  }
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

  // of an item, where they are not bfloat16
  LSNN_METHOD const T* y_numbers(int64_t t, int64_t b) const {
    return f.saved.y ? (const T*)f.saved.y + (t * B + b0 + b) * N
                     : s.y + ((t - S0) * full_items + b) * NP;
  }
  LSNN_METHOD const bfloat16* y_bf16(int64_t t, int64_t b) const {
    return (const bfloat16*)f.saved.y + (t * B + b0 + b) * N;
  }
  // y of this member's neurons n of the tile's items; the next call may write over it.
  LSNN_METHOD RowsOf<T> y_rows(int64_t t) const {
    if constexpr (sizeof(T) == 4)
      if (f.saved.y_is_bf16) {
        for (int64_t b = 0, alive = items_alive(t); b < alive; b++)
          for (int64_t n = n0; n < n1; n += L)
            store(s.y_of_step + b * NP + n, load_n(y_bf16(t, b) + n, N - n));
        return {s.y_of_step, NP};
      }
    return {y_numbers(t, 0), f.saved.y ? N : NP};
  }

  LSNN_METHOD T* chunk_state(int64_t t, int64_t variable) const {
    return s.chunk_states + ((t - S0) / chunk * 4 + variable) * state_size;
  }
  LSNN_METHOD CarriedRows<T> chunk_states(int64_t t, int64_t b) const {
    auto row = [&](int64_t variable) LSNN_LAMBDA { return chunk_state(t, variable) + b * NP; };
    return {row(0), row(1), row(2), row(3)};
  }

  // Prepares the segment that begins at step `first` and ends before S1: what the first step of
  // each of its chunks read.
  void segment_from(int64_t first, int64_t S1) {
    S0 = first;
    for (int64_t c = 0; c < 4; c++)
      copy_in(chunk_state(S0, c), (const T*)f.saved.carry + (S0 / f.saved.every * 4 + c) * B * N);
    if (!f.saved.y) {
      recompute(S1);
      steps.meter.lap(Count::ns_recompute);
    }
    if (!replays) return;
    for (int64_t t0 = S0; t0 + chunk < S1; t0 += chunk)
      for (int64_t b = 0, alive = items_alive(t0 + chunk); b < alive; b++)
        steps.neurons.replay_steps(spec, {.coefficients = p.coefficients,
                                          .n0 = n0,
                                          .n1 = n1,
                                          .N = N,
                                          .steps = chunk,
                                          .before = spikes(t0 - 1, b),
                                          .after = spikes(t0, b),
                                          .bits_stride = B * W,
                                          .numbers_stride = B * N,
                                          .y = f.saved.y_is_bf16 ? nullptr : y_numbers(t0, b),
                                          .y_bf16 = f.saved.y_is_bf16 ? y_bf16(t0, b) : nullptr,
                                          .y_stride = f.saved.y ? B * N : full_items * NP,
                                          .read = chunk_states(t0, b),
                                          .left = chunk_states(t0 + chunk, b)});
  }

  // y of the segment. The rest is replayed from it as if it had been saved, so that gradients have
  // the same bits.
  void recompute(int64_t S1) {
    T* carried[] = {steps.s.v, steps.s.a, steps.s.i, steps.s.r};
    for (int64_t c = 0; c < 4; c++) copy_own(carried[c], chunk_state(S0, c));
    for (int64_t b = 0; b < items; b++)
      for (int64_t n = n0; n < n1; n += L) store(steps.s.z + b * NP + n, spikes(S0 - 1, b)(n));
    for (int64_t t = S0; t < S1; t++) {
      steps.collect(t, *this);
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        steps.advance(t, b, t && !l.smooth ? bits(t - 1, b) : nullptr,
                      {.y = s.y + ((t - S0) * full_items + b) * NP});
      }
    }
  }

  // This member's neurons of a variable of the tile, [items,NP].
  LSNN_METHOD void copy_own(T* to, const T* from) const {
    if (n_end - n0 == NP) memcpy(to, from, state_size * sizeof(T));
    else
      for (int64_t b = 0; b < items; b++)
        memcpy(to + b * NP + n0, from + b * NP + n0, (n_end - n0) * sizeof(T));
  }

  // Replays the chunk [t0, t1) of the segment: keeps what each step read, and marks the active
  // neurons of each. How many they are in all is known after the barrier, by count_active().
  void chunk_of(int64_t t0, int64_t t1) const {
    if (!replays) return;
    for (int64_t step = 0; step < chunk; step++)
      memset(s.active + (step * NP + n0) / 16 * max_items, 0,
             (n_end - n0) / 16 * max_items * sizeof(uint16_t));
    int64_t* const counts = s.active_n + team.index * chunk;
    memset(counts, 0, chunk * sizeof(int64_t));
    T* read[] = {s.v, s.a, s.i, s.r};
    const bool carry[] = {true, true, carry_i, spec.refractory};
    for (int c = 0; c < 4; c++)
      if (carry[c]) copy_own(read[c], chunk_state(t0, c));
    for (int64_t t = t0; t < t1; t++) {
      const RowsOf<T> of_step = y_rows(t);
      for (int64_t b = 0, alive = items_alive(t); b < alive; b++) {
        const T* y = of_step.first + b * of_step.stride;
        if (f.saved.y && !f.saved.y_is_bf16 && t + 1 < t1)
          for (int64_t n = n0; n < n1; n += 64 / (int64_t)sizeof(T)) prefetch(y + B * N + n);
        counts[t - t0] +=
            steps.neurons.replay(spec, {.coefficients = p.coefficients,
                                        .n0 = n0,
                                        .n1 = n1,
                                        .N = N,
                                        .y = y,
                                        .before = spikes(t - 1, b),
                                        .after = spikes(t, b),
                                        .read = states(t - t0, b),
                                        .left = states(t - t0 + 1, b),
                                        .active = s.active + (t - t0) * NP / 16 * max_items + b});
      }
    }
  }
  // What a step of the chunk read, by its place there.
  LSNN_METHOD CarriedRows<T> states(int64_t step, int64_t b) const {
    const int64_t at = step * state_size + b * NP;
    return {s.v + at, s.a + at, s.i + at, s.r + at};
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
