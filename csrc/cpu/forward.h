// The forward pass of one tile of batch items over the whole sequence, event-driven: (1) adds only
// the weight rows of the neurons that spiked. Included by kernels.cpp once for each instruction
// set.
#pragma once
#include "readout.h"
#include "step.h"

namespace lsnn::cpu {
namespace {

// Only data that members exchange is shared. All else is private, although each member uses only
// its part of a row: in a shared row the hardware prefetcher reads lines that another member is
// about to write, which made a step up to ten times slower.
template <class T> struct ForwardScratch {
  StepScratch<T> steps;
  SourceScratch<T> sources;
  ReadoutScratch<T> readout;
  T *y_out, *z_out;       // [items,saved,N], [items,N] rows to be streamed out
  bfloat16* y_bf16;      // [items,N] y in bfloat16
  // [members,D + 1,items,W] spikes of the last steps, step t in slot t % (D + 1), so that writing z
  // keeps z'
  uint32_t* bits;
  T* real;  // [D + 1,items,NP] the same as numbers, smooth spikes only

  ForwardScratch(Arena& shared, Arena& own, const ForwardArgs& f, int64_t members)
      : steps(own, f.layer, f.projection),
        sources(own, f.layer),
        readout(own, f.layer, f.readout, false) {
    const Layer& l = f.layer;
    const int64_t n = tile_items(l.B);
    y_out = own.take<T>(n * l.sizes.saved * l.N + pad);
    z_out = own.take<T>(n * l.N + pad);
    y_bf16 = own.take<bfloat16>(f.saved.y_is_bf16 ? n * l.N : 0);
    bits = shared.take<uint32_t>(members * ring_words(l));
    real = shared.take<T>(l.smooth ? (l.D + 1) * n * padded(l.N) : 0);
  }
  LSNN_METHOD static int64_t ring_words(const Layer& l) {
    return ((l.D + 1) * tile_items(l.B) * words(l.N) + 31) / 32 * 32;
  }
};

// Counts a step for profiling.
template <class T> LSNN_INLINE void count_step(const Steps<T>& steps, int64_t t,
                                               const uint32_t* bits) {
  Meter& meter = steps.meter;
  if (!meter.hooks) return;
  const int64_t items = steps.items_alive(t);
  int64_t spikes = 0, rows = 0;
  for (int64_t b = 0; b < items; b++)
    for (int64_t w = 0; w < steps.own_words(); w++)
      spikes += __builtin_popcount(bits[b * steps.p.W + steps.word0() + w]);
  for (int64_t b = 0; b < items; b++) rows += steps.n[b];
  meter.n[Count::spikes] += spikes;
  meter.n[Count::neuron_steps] += items * (steps.n1 - steps.n0);
  if (!steps.leads()) return;  // all members have the same events
  meter.n[Count::rows] += rows;
  meter.n[Count::input_rows] += steps.input_rows;
  meter.n[Count::item_steps] += items;
  meter.n[Count::inputs] += items * steps.I;
}

// The spikes of the last D + 1 steps.
template <class T> struct Ring {
  uint32_t* words;
  T* numbers;
  int64_t slots, W, NP, full_items, member, members, member_words;
  // Words [0,W), of which those of one member are valid; default: this member.
  LSNN_METHOD uint32_t* bits(int64_t t, int64_t b) const { return bits(t, b, member); }
  LSNN_METHOD uint32_t* bits(int64_t t, int64_t b, int64_t of) const {
    return words + of * member_words + (t % slots * full_items + b) * W;
  }
  LSNN_METHOD T* real(int64_t t, int64_t b) const {
    return numbers + (t % slots * full_items + b) * NP;
  }
};

template <class T>
LSNN_LOCAL void forward_tile(const ForwardArgs& f, const Packed<T>& p, int64_t tile,
                             const Member& member) {
  const Layer& l = f.layer;
  Arena shared(member.shared), own(member.own);
  ForwardScratch<T> s(shared, own, f, member.members);
  Steps<T> steps(l, p, s.steps, s.sources, tile, member, f.x, f.x_stride_t, f.x_stride_b,
                 f.projection, f.first.z);
  const ReadoutTile<T> readout(l, f.readout, p, s.readout, tile, member);
  const int64_t B = l.B, N = l.N, NP = p.NP, W = p.W, D = l.D, b0 = steps.b0, items = steps.items,
                every = f.saved.every;
  const int64_t n0 = steps.n0, n1 = steps.n1, word0 = steps.word0(), own_words = steps.own_words();
  const Ring<T> ring{s.bits,       s.real,         D + 1,          W, NP, steps.full_items,
                     member.index, member.members, s.ring_words(l)};

  const int64_t n_states = l.sizes.states, n_saved = l.sizes.saved, n_traces = l.sizes.traces;
  auto carried = [&](int64_t c) LSNN_LAMBDA { return s.steps.states + c * steps.state_size; };
  for (int64_t c = 0; c < n_states; c++) steps.copy_in(carried(c), f.first.of(c));
  bool is_traced = false;
  for (int64_t k = 0; k < n_traces; k++) is_traced |= f.trace(k) != nullptr;
  steps.copy_in(s.steps.z, f.first.z);  // the newest: [0,B,N]
  Meter& meter = steps.meter;
  readout.start(f.readout.first);
  for (int64_t t = 0; t < steps.longest; t++) {
    const int64_t alive = steps.items_alive(t);
    if (f.save && t % every == 0)
      for (int64_t b = 0; b < alive; b++)
        for (int64_t c = 0; c < n_states; c++)
          memcpy((T*)f.saved.carry + ((t / every * n_states + c) * B + b0 + b) * N + n0,
                 carried(c) + b * NP + n0, (n1 - n0) * sizeof(T));
    meter.lap(Count::ns_write);
    steps.collect(t, ring);
    meter.lap(Count::ns_events);
    meter.start_items(t, steps.longest);
    for (int64_t b = 0; b < alive; b++) {
      const bool is_last = t == steps.length(b) - 1 || (f.save && (t + 1) % every == 0);
      const int64_t at = (t * B + b0 + b) * N;
      const uint32_t* before = t && !l.smooth ? ring.bits(t - 1, b) : nullptr;
      uint32_t* bits = ring.bits(t, b);
      T* traces[neuron::max_states];
      for (int64_t k = 0; is_traced && k < n_traces; k++)
        traces[k] = f.trace(k) ? (T*)f.trace(k) + at : nullptr;
      // Columns beyond N of a row in scratch memory are overwritten by the next row.
      steps.advance(t, b, before,
                    {.is_last = is_last,
                     .bits = bits,
                     .saved = {f.saved.y ? s.y_out + b * n_saved * N : nullptr, N},
                     .z = f.z || l.smooth ? s.z_out + b * N : nullptr,
                     .traces = is_traced ? traces : nullptr});
      if (N % 32 && n1 == N) bits[W - 1] &= (1u << N % 32) - 1;  // clear padded lanes
      if (l.smooth)
        memcpy(ring.real(t, b) + n0, s.steps.z + b * NP + n0, (steps.n_end - n0) * sizeof(T));
      meter.split_item(1);
    }
    meter.end_items();
    const bool asks = t % chunk == chunk - 1;
    if (asks) ask_to_stop(member);
    if (member.members > 1) {
      arrive_and_wait(member);
      meter.lap(Count::ns_wait_forward);
    }
    if (asks && is_stopped(member)) return;
    if (f.readout.O) {
      for (int64_t b = member.index; b < alive; b += member.members) {
        readout.step(t, b, ring, l.smooth);
        readout.write(f.readout_p, t * B + b0, b);
      }
      meter.lap(Count::ns_readout);
    }
    count_step(steps, t, ring.bits(t, 0));
    steps.stream_out(f.z, t, s.z_out);
    if (!f.saved.y_is_bf16) steps.stream_out(f.saved.y, t, s.y_out, n_saved);
    else {
      for (int64_t b = 0; b < alive; b++)
        for (int64_t n = b * N + n0; n < b * N + n1; n++) s.y_bf16[n] = bfloat16((float)s.y_out[n]);
      steps.stream_out(f.saved.y, t, s.y_bf16);
    }
    for (int64_t b = 0; b < alive; b++) {
      const int64_t row = t * B + b0 + b;
      if (f.saved.bits)
        memcpy(f.saved.bits + row * W + word0, ring.bits(t, b) + word0,
               own_words * sizeof(uint32_t));
      if (f.saved.z)
        memcpy((T*)f.saved.z + row * N + n0, s.z_out + b * N + n0, (n1 - n0) * sizeof(T));
    }
  }
  stream_end();
  steps.template clear_after_end<T>(f.z, l.T);
  steps.template clear_after_end<T>(f.saved.z, l.T);
  for (int64_t k = 0; is_traced && k < n_traces; k++)
    steps.template clear_after_end<T>(f.trace(k), l.T);
  if (f.saved.y_is_bf16) steps.template clear_after_end<bfloat16>(f.saved.y, l.T);
  else steps.template clear_after_end<T>(f.saved.y, l.T, n_saved);
  steps.template clear_after_end<uint32_t>(f.saved.bits, l.T, W, word0, word0 + own_words);
  if (f.save) steps.template clear_carry<T>(f.saved.carry, n_states, l.T, every);
  const int64_t O = f.readout.O;
  if (O && steps.leads()) steps.template clear_after_end<T>(f.readout_p, l.T, O, 0, O);
  meter.lap(Count::ns_write);

  for (int64_t c = 0; c < n_states; c++) steps.copy_out(f.last.of(c), carried(c));
  if (f.readout.O)
    for (int64_t b = member.index; b < items; b += member.members)
      readout.write(f.readout_last, b0, b);
  if (f.last.z)
    for (int64_t steps_back = 0; steps_back < D; steps_back++)
      for (int64_t b = 0; b < items; b++) {
        T* z = (T*)f.last.z + (steps_back * B + b0 + b) * N;
        const int64_t t = steps.length(b) - 1 - steps_back;
        for (int64_t n = n0; n < n1; n++)
          z[n] = t < 0      ? steps.first_z(t, b)[n]
                 : l.smooth ? ring.real(t, b)[n]
                            : T(ring.bits(t, b)[n / 32] >> n % 32 & 1);
      }
  if (steps.leads()) {
    meter.count(Count::tiles, 1);
    meter.count(Count::members, member.members);
    meter.count(Count::items, items);
  }
  meter.finish();
}

}  // namespace
}  // namespace lsnn::cpu
