// The forward pass of one tile of batch items over the whole sequence, event-driven: (1) adds only the weight rows of the
// neurons that spiked. Included by kernels.cpp once for each instruction set.
#pragma once
#include "readout.h"
#include "steps.h"

namespace lsnn::cpu {
namespace {

template <class T> struct ForwardScratch {
  StepScratch<T> steps;
  ReadoutScratch<T> readout;
  T *y_out, *z_out;       // [items,N] rows to be streamed out
  uint32_t* bits;         // [D + 1,items,W] spikes of the last steps, step t in slot t % (D + 1): z' stays while z is written
  T* real;                // [D + 1,items,NP] the same as numbers, smooth spikes only

  ForwardScratch(Arena& m, const ForwardArgs& f) : steps(m, f.layer, f.projection), readout(m, f.layer, f.readout, false) {
    const Layer& l = f.layer;
    const int64_t n = tile_items(l.B);
    y_out = m.take<T>(n * l.N + pad), z_out = m.take<T>(n * l.N + pad);
    bits = m.take<uint32_t>((l.D + 1) * n * words(l.N));
    real = m.take<T>(l.smooth ? (l.D + 1) * n * padded(l.N) : 0);
  }
};

// What profiling wants to know of a step, whose spikes are given.
template <class T, class Model> LSNN_INLINE void count_step(const Steps<T, Model>& steps, const uint32_t* bits) {
  Meter& meter = steps.meter;
  if (!meter.hooks) return;
  const int64_t items = steps.items;
  int64_t spikes = 0, rows = 0;
  for (int64_t w = 0; w < items * steps.p.W; w++) spikes += __builtin_popcount(bits[w]);
  for (int64_t q = 0; q < items; q++) rows += steps.n[q];
  meter.n[Count::spikes] += spikes, meter.n[Count::rows] += rows, meter.n[Count::input_rows] += steps.input_rows;
  meter.n[Count::item_steps] += items, meter.n[Count::neuron_steps] += items * steps.N, meter.n[Count::inputs] += items * steps.I;
}

// The spikes of the last D + 1 steps.
template <class T> struct Ring {
  uint32_t* words;
  T* numbers;
  int64_t slots, W, NP, many;
  LSNN_MEMBER uint32_t* bits(int64_t t, int64_t q) const { return words + (t % slots * many + q) * W; }
  LSNN_MEMBER T* real(int64_t t, int64_t q) const { return numbers + (t % slots * many + q) * NP; }
};

template <class T, class Model>
LSNN_LOCAL void forward_tile(const ForwardArgs& f, const Packed<T>& p, const Model& model, int64_t tile, void* scratch) {
  using V = Vec<T>;
  const Layer& l = f.layer;
  Arena arena(scratch);
  ForwardScratch<T> s(arena, f);
  Steps<T, Model> steps(l, p, model, s.steps, tile, f.x, f.x_stride_t, f.x_stride_b, f.projection.I, f.first.z);
  const ReadoutTile<T> readout(l, f.readout, p, s.readout, tile);
  const int64_t B = l.B, N = l.N, NP = p.NP, W = p.W, D = l.D, b0 = steps.b0, items = steps.items, every = f.saved.every;
  const Ring<T> ring{s.bits, s.real, D + 1, W, NP, steps.many};

  T* carried[] = {s.steps.v, s.steps.a, s.steps.i, s.steps.r};
  const void* first[] = {f.first.v, f.first.a, f.first.i, f.first.r};
  for (int c = 0; c < 4; c++) steps.copy_in(carried[c], first[c]);
  steps.copy_in(s.steps.z, f.first.z);  // the newest: [0,B,N]
  Meter& meter = steps.meter;
  readout.start(f.readout.first);
  for (int64_t t = 0; t < l.T; t++) {
    if (f.save && t % every == 0)
      for (int64_t q = 0; q < items; q++)
        for (int64_t c = 0; c < 4; c++)
          memcpy((T*)f.saved.carry + ((t / every * 4 + c) * B + b0 + q) * N, carried[c] + q * NP, N * sizeof(T));
    meter.lap(Count::ns_write);
    steps.collect(t, ring);
    meter.lap(Count::ns_events), meter.start_items(t, l.T);
    const bool keep_i = t == l.T - 1 || (f.save && (t + 1) % every == 0);
    for (int64_t q = 0; q < items; q++) {
      const int64_t at = (t * B + b0 + q) * N;
      const uint32_t* before = t && !l.smooth ? ring.bits(t - 1, q) : nullptr;
      uint32_t* bits = ring.bits(t, q);
      T *y_out = f.saved.y ? s.y_out + q * N : nullptr, *z_out = f.z || l.smooth ? s.z_out + q * N : nullptr;
      T *trace_v = (T*)f.trace_v, *trace_a = (T*)f.trace_a, *trace_A = (T*)f.trace_A;
      const bool traced = trace_v || trace_a || trace_A;
      steps.advance(t, q, before, keep_i, [&](int64_t n, const Stepped<V>& out, const Carry<V>& carry) LSNN_LAMBDA {
        put_bits<T>(bits, n, to_bits(out.fired));
        if (y_out) store(y_out + n, out.y);  // the next row overwrites what stands beyond N
        if (z_out) store(z_out + n, carry.z);
        if (!traced) return;
        if (trace_v) store_n(trace_v + at + n, carry.v, N - n);
        if (trace_a) store_n(trace_a + at + n, carry.a, N - n);
        if (trace_A) store_n(trace_A + at + n, out.A, N - n);
      });
      if (N % 32) bits[W - 1] &= (1u << N % 32) - 1;  // padded lanes are no neurons
      if (l.smooth) memcpy(ring.real(t, q), s.steps.z + q * NP, NP * sizeof(T));
      meter.split_item(1);
    }
    for (int64_t q = 0; f.readout.O && q < items; q++) readout.step(q, ring.bits(t, q), l.smooth ? s.steps.z + q * NP : nullptr);
    meter.split_item(2);
    meter.end_items();
    count_step(steps, ring.bits(t, 0));
    const int64_t row = t * B + b0;
    if (f.readout.O) readout.write(f.readout_p, row);
    if (f.z) stream_copy((T*)f.z + row * N, s.z_out, items * N);
    if (f.saved.y) stream_copy((T*)f.saved.y + row * N, s.y_out, items * N);
    if (f.saved.bits) memcpy(f.saved.bits + row * W, ring.bits(t, 0), items * W * sizeof(uint32_t));
    if (f.saved.z) memcpy((T*)f.saved.z + row * N, s.z_out, items * N * sizeof(T));
  }
  stream_end();
  meter.lap(Count::ns_write);

  void* last[] = {f.last.v, f.last.a, f.last.i, f.last.r};
  for (int c = 0; c < 4; c++) steps.copy_out(last[c], carried[c]);
  if (f.readout.O) readout.write(f.readout_last, b0);
  for (int64_t back = 0; f.last.z && back < D; back++)
    for (int64_t q = 0; q < items; q++) {
      T* z = (T*)f.last.z + (back * B + b0 + q) * N;
      const int64_t t = l.T - 1 - back;
      for (int64_t n = 0; n < N; n++)
        z[n] = t < 0 ? steps.first_z(t, q)[n] : l.smooth ? ring.real(t, q)[n] : T(ring.bits(t, q)[n / 32] >> n % 32 & 1);
    }
  meter.count(Count::tiles, 1), meter.count(Count::items, items);
  meter.finish();
}

}  // namespace
}  // namespace lsnn::cpu
