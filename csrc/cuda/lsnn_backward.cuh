// The backward pass of the paper's network in float32, all neurons with one delay and coefficients
// without gradients: a kernel of its own in the design `block`, for what only that model allows.
// Its test is of the old membrane, so that dL/dc of a step needs nothing of dL/dz of that step: it
// is published before the product that makes dL/dz, and one barrier a step orders both.
//
// A lane owns a neuron. So the rows of a warp's product are those of its own active neurons, which
// no other warp has to know, and sums reach their owners by a shuffle.
#pragma once
#include "lane_sums.cuh"
#include "lsnn_stream.cuh"
#include "replay.cuh"
#include "sequence.cuh"

namespace lsnn::cuda {

// What a lane keeps at the first step of each `steps_of_replay`: a and r that it reads, and spikes.
inline constexpr int numbers_of_start = 3;
inline constexpr int lsnn_start_rows = segment / steps_of_replay * numbers_of_start;

struct LsnnBackward : BackwardJob<float> {
  Shape shape;
  int delay;
  float* starts;              // [groups of all blocks,lsnn_start_rows,threads]
  int64_t row, row_of_bits;   // from one step to the next, in [T,B,N] and [T,B,words(N)]
};

// Rows of 32 bits, one to a lane, turned into columns: bit i of lane n was bit n of lane i.
LSNN_DEVICE uint32_t transpose_bits(uint32_t row, int lane) {
#pragma unroll
  for (int o = 16; o; o /= 2) {
    const uint32_t low = ~0u / ((1u << o) + 1);  // the places whose number has no o
    const uint32_t other = __shfl_xor_sync(~0u, row, o);
    row = lane & o ? (row & ~low) | (other >> o & low) : (row & low) | (other & low) << o;
  }
  return row;
}

// A lane's neuron; one that is not there takes the place of the first, and stores nothing.
struct LsnnNeuron {
  // The counters of a layer without a refractory period stay 0 by the same statements.
  const PaperSpec spec{{true, false}};
  static_assert(PaperSpec::model.test == Test::old_v && PaperSpec::model.when == When::next &&
                PaperSpec::model.reset == Reset::minus_A);
  bool is_real;
  Cell cell;
  Coefs<float> k;

  __device__ __forceinline__ LsnnNeuron(const LsnnBackward& job, int64_t b, int n)
      : is_real(n < job.f.layer.N),
        cell(job.f.layer, b, is_real ? n : 0) {
    const Layer& l = job.f.layer;
    const float* from = job.p.k + cell.n;
    const int64_t NP = padded(l.N);
    k = coefs_of([&](int c) { return from[c * NP]; }, (float)l.dampening, (float)l.n_ref,
                 (float)l.cutoff);
  }
  // Its number in a row [B,N], or 0 where there is none.
  __device__ __forceinline__ float load(const void* row, int64_t at) const {
    return row && is_real ? ((const float*)row)[at] : 0.f;
  }
  __device__ __forceinline__ void store(void* row, int64_t at, float x) const {
    if (row && is_real) ((float*)row)[at] = x;
  }
};

// a and r of a neuron's steps again. They follow from its spikes alone, which it reads as bits of
// its own: those of 32 steps at a time.
struct LsnnReplay {
  const LsnnBackward& job;
  const LsnnNeuron& neuron;
  const int lane;
  const int64_t at;             // of the neuron in a row [B,N]
  const uint32_t* const words;  // of its warp, of step 0
  const float before_0;         // its last spike before the sequence, any number
  float* const starts;          // [lsnn_start_rows,threads] from the lane's place on
  float* const a;               // [steps_of_replay,threads] the same
  const int threads;

  int first = 0;        // of the steps at hand
  uint32_t spikes = 0;  // bit i: of step first - steps_of_replay + i
  uint32_t counting = 0;  // bit i: whether step first + i finds the neuron refractory

  __device__ __forceinline__ uint32_t word(int t) const { return words[t * job.row_of_bits]; }
  // of step t >= -1, of which the bit is `bit` of `in`
  __device__ __forceinline__ float spike(int t, uint32_t in, int bit) const {
    return t < 0 ? before_0 : in >> bit & 1 ? 1.f : 0.f;
  }
  __device__ __forceinline__ float* start(int t) const {
    return starts + t % (int)segment / steps_of_replay * numbers_of_start * threads;
  }
  __device__ __forceinline__ void step(uint32_t in, int bit, Carry<float>& s) const {
    const bool fired = in >> bit & 1;
    replay_spikes(neuron.spec, neuron.k, fired ? 1.f : 0.f, fired, s);
  }

  // Keeps what the first of each steps_of_replay reads, from the segment's first step to `end`.
  __device__ __forceinline__ void replay_segment(int end) const {
    const int S0 = (end - 1) / (int)segment * (int)segment;
    const float* carry = (const float*)job.f.saved.carry + S0 / (int)segment * 4 * job.row;
    uint32_t before = 0;
    if (S0) before = (word(S0 - 1) >> lane & 1) << 31 | (word(S0 - 2) >> lane & 1) << 30;
    constexpr int at_once = 32;  // steps whose bits a lane holds
    uint32_t row[segment / at_once];
#pragma unroll
    for (int i = 0; i < (int)segment / at_once; i++) {
      const int t = S0 + i * at_once + lane;
      row[i] = t < end ? word(t) : 0;
    }
    Carry<float> s{0.f, neuron.load(carry + job.row, at), 0.f, neuron.load(carry + 3 * job.row, at),
                   spike(S0 - 1, before, 31)};
#pragma unroll
    for (int i = 0; i < (int)segment / at_once; i++) {
      const uint32_t own = transpose_bits(row[i], lane);
#pragma unroll 1
      for (int of = 0; of < at_once; of += steps_of_replay) {
        float* to = start(S0 + i * at_once + of);
        to[0] = s.a;
        to[threads] = s.r;
        to[2 * threads] = __uint_as_float(
            uint32_t(((uint64_t)own << 32 | before) >> (32 - steps_of_replay + of)));
#pragma unroll
        for (int j = 0; j < steps_of_replay; j++) step(own >> of, j, s);
      }
      before = own;
    }
  }
  // Goes on to the steps that end with t.
  __device__ __forceinline__ void replay_to(int t) {
    first = t / steps_of_replay * steps_of_replay;
    const float* from = start(first);
    spikes = __float_as_uint(from[2 * threads]);
    counting = 0;
    Carry<float> s{0.f, from[0], 0.f, from[threads], spike(first - 1, spikes, steps_of_replay - 1)};
#pragma unroll
    for (int i = 0; i < steps_of_replay; i++) {
      a[i * threads] = s.a;
      counting |= (s.r > 0.f ? 1u : 0u) << i;
      step(spikes, steps_of_replay + i, s);
    }
  }
  // What step t of them has read. y: of the step before.
  __device__ __forceinline__ Carry<float> read_by(int t, float y) const {
    const int i = t - first;
    Carry<float> s{0.f, a[i * threads], 0.f, counting >> i & 1 ? 1.f : 0.f,
                   spike(t - 1, spikes, steps_of_replay + i - 1)};
    s.v = membrane_before(neuron.spec, neuron.k, y, s.a,
                          spike(t - 2, spikes, steps_of_replay + i - 2));
    if (t % (int)segment == 0)  // saved itself
      s.v = neuron.load((const float*)job.f.saved.carry + t / (int)segment * 4 * job.row, at);
    return s;
  }
};

// The neurons of a warp whose rows of weights a step needs.
struct LsnnRows {
  uint32_t* list;  // [32] where the rows begin, in bytes
  int n;           // of them
  int rank;        // of the lane's own; any number where it is none

  __device__ __forceinline__ void make(uint32_t* to, bool is_one, uint32_t place, int lane) {
    const unsigned all = __ballot_sync(~0u, is_one);
    list = to;
    n = __popc(all);
    rank = __popc(all & ((1u << lane) - 1));
    if (is_one) list[rank] = place;
  }
};

// W dL/dc for such rows, by fused multiply-adds. A lane has some columns of all rows; quads: how
// many times four of them.
template <int quads> struct LsnnProduct {
  static constexpr int rows = 16, at_once = 4;  // that are summed, that are loaded
  const float* w;  // [N,NP] from the lane's columns on
  int NP, lane;

  __device__ __forceinline__ bool has(int c) const {
    return c < quads - 1 || 4 * lane + 128 * c < NP;
  }
  // dc: [NP]. The sum of the lane's own row, 0 where it is not one of them.
  __device__ __forceinline__ float operator()(const float* dc, const LsnnRows& of) const {
    Quad<float> g[quads] = {};
#pragma unroll
    for (int c = 0; c < quads; c++)
      if (has(c)) g[c] = quad_at(dc + 4 * lane + 128 * c);
    float own = 0.f;
#pragma unroll 1
    for (int e = 0; e < of.n; e += rows) {
      float sum[rows] = {};
#pragma unroll
      for (int i = 0; i < rows; i += at_once)
        if (e + i < of.n) add(of.list + e + i, g, sum, i);
      const float total = sum_lanes(sum, lane);
      const float mine = __shfl_sync(~0u, total, of.rank % rows * (32 / rows));
      own = of.rank / rows == e / rows ? mine : own;
    }
    return own;
  }
  // What the list holds beyond its end is the place of some row, whose sum nobody takes.
  __device__ __forceinline__ void add(const uint32_t* list, const Quad<float> (&g)[quads],
                                      float (&sum)[rows], int first) const {
    const Quad<uint32_t> place = quad_at(list);
#pragma unroll
    for (int c = 0; c < quads; c++)
      if (has(c)) {
        Quad<float> row[at_once];
#pragma unroll
        for (int i = 0; i < at_once; i++)
          row[i] =
              quad_at(reinterpret_cast<const float*>(reinterpret_cast<const char*>(w) + place[i]) +
                      128 * c);
#pragma unroll
        for (int i = 0; i < at_once; i++)
#pragma unroll
          for (int q = 0; q < 4; q++) sum[first + i] = fma_(row[i][q], g[c][q], sum[first + i]);
      }
  }
};

template <int quads> struct LsnnBackwardGroup {
  const LsnnBackward& job;
  const Group group;
  const LsnnProduct<quads> product;
  float* const record;    // [stages_of_record,2,threads]
  float* const a;         // [steps_of_replay,threads]
  float* const dc;        // [slots,NP]
  uint32_t* const lists;  // [2,threads]
  float* const starts;    // [lsnn_start_rows,threads]

  __device__ __forceinline__ void sync(Where where = Where::current()) const {
    if (group.threads == 32) warp_barrier(where);
    else barrier_sync_aligned(group.id + 1, group.threads, where);
  }
  // Those of steps that follow each other lie apart, so that none is written while it is read.
  __device__ __forceinline__ uint32_t* list(int t) const {
    return lists + (t & 1) * group.threads + 32 * group.warp();
  }

  __device__ __forceinline__ void item(int64_t b) const {
    const BackwardArgs& f = job.f;
    const Layer& l = f.layer;
    const int length = job.p.length(l, b), delay = job.delay, NP = product.NP;
    const LsnnNeuron neuron(job, b, group.thread);
    const Coefs<float>& k = neuron.k;
    const int64_t at = neuron.cell.at(l, 0);
    Adjoint<float> d{neuron.load(f.glast.v, at), neuron.load(f.glast.a, at),
                     neuron.load(f.glast.i, at), 0.f};
    LsnnRows rows{};
    int written = 0;  // the slot of dL/dc of a step; the one before it is read in that step
    auto read = [&] { return written == 0 ? job.shape.slots - 1 : written - 1; };
    // of the last state, for the spikes of step t
    auto last_z = [&](int t) {
      const int steps_back = length - 1 - t;
      return f.glast.z && steps_back <= delay ? neuron.load(f.glast.z, at + steps_back * job.row)
                                              : 0.f;
    };
    auto carried = [&](int t) {  // what (1) carries back to the spikes of step t
      return t + 1 + delay < length ? product(dc + read() * NP, rows) : 0.f;
    };
    const uint32_t place = (uint32_t)neuron.cell.n * 4 * NP;

    if (length > 0) {
      const int live = neuron.is_real;
      LaneRows<1, false> of_y{(const float*)f.saved.y + at + (length - 2) * job.row, -job.row,
                              length - 1, live},
          of_gz{};
      if (f.gz) of_gz = {outside_z_at(job, neuron.cell, length - 1), -f.gz_stride_t, length, live};
      auto copy = [&](float* to) {
        of_y.copy(to);
        of_gz.copy(to + group.threads);
      };
      StageRing<stages_of_record> stages(record + group.thread, 2 * group.threads, copy);
      const float* z_before = first_z<float>(f.first, l, -1, b);
      LsnnReplay replayed{job,
                          neuron,
                          group.lane(),
                          at,
                          f.saved.bits + b * words(l.N) + group.warp(),
                          z_before ? z_before[neuron.cell.n] : 0.f,
                          starts + group.thread,
                          a + group.thread,
                          group.threads};
      // of the step that comes next
      Carry<float> before;
      float gz;
      auto prepare = [&](int t) {
        const float* own = stages.wait();
        const float y = own[0];
        gz = f.gz ? own[group.threads] : 0.f;
        stages.advance(copy);
        before = replayed.read_by(t, y);
        Carry<float> s = before;
        const bool blocked = replay(neuron.spec, k, 0.f, 0.f, false, s);
        rows.make(list(t), neuron.is_real && !blocked, place, group.lane());
      };
      replayed.replay_segment(length);
      replayed.replay_to(length - 1);
      prepare(length - 1);
      float* gx = (float*)f.gx + at + (length - 1) * job.row;
      float* const own_dc = dc + neuron.cell.n;
#pragma unroll 1
      for (int t = length - 1; t >= 0; t--) {
        const float dc_of_step = current_adjoint(k, d.v, d.i);
        if (neuron.is_real) {
          own_dc[written * NP] = dc_of_step;
          *gx = dc_of_step;
        }
        gx -= job.row;
        d.z = d.z + last_z(t) + carried(t) + gz;
        Coefs<float> g{};
        step_adjoint(neuron.spec, k, before, 0.f, 0.f, 0.f, d, g);
        if (t > 0) {
          if (t == replayed.first) {
            if (t % (int)segment == 0) replayed.replay_segment(t);
            replayed.replay_to(t - 1);
          }
          prepare(t - 1);
        }
        written = read();
        sync();
      }
    }
    neuron.store(f.gfirst.v, at, d.v);
    neuron.store(f.gfirst.a, at, d.a);
    neuron.store(f.gfirst.i, at, d.i);
    if (!f.gfirst.z) return;
    // Spikes before the sequence: all of them. The newest ones have a local part too.
    rows.make(list(0), group.thread < l.N, place, group.lane());
    warp_barrier(Where::current());
#pragma unroll 1
    for (int t = -1; t >= -1 - delay; t--) {
      neuron.store(f.gfirst.z, at + (-1 - t) * job.row,
                   (t == -1 ? d.z : 0.f) + last_z(t) + carried(t));
      written = read();
    }
    sync();  // before the next item publishes
  }
};

template <int quads> __global__ void __launch_bounds__(most_threads_lsnn_backward, 1)
    lsnn_backward_kernel(LsnnBackward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(shape.threads);
  Arena arena(shared_memory());
  const LsnnBackwardShared shared(arena, l, shape);
  const int N = (int)l.N, NP = (int)padded(l.N), lane = group.lane();
  copy_columns(shared.w, (const float*)job.p.w, N, NP, 0, NP);
  // What pads the last quad of dL/dc meets weights that are 0; a list may be read beyond its end.
  for (int i = threadIdx.x; i < shape.groups * shape.slots * NP; i += blockDim.x)
    shared.dc[i] = 0.f;
  for (int i = threadIdx.x; i < shape.groups * 2 * shape.threads; i += blockDim.x)
    shared.list[i] = 0;
  __syncthreads();
  const int64_t number = (int64_t)blockIdx.x * shape.groups + group.id;
  const LsnnBackwardGroup<quads> backward{
      job,
      group,
      {shared.w + 4 * lane, NP, lane},
      shared.record + group.id * stages_of_record * 2 * shape.threads,
      shared.a + group.id * steps_of_replay * shape.threads,
      shared.dc + group.id * shape.slots * NP,
      shared.list + group.id * 2 * shape.threads,
      job.starts + number * lsnn_start_rows * shape.threads};
  const Share share = Share::mine(shape, group);
  for (int64_t b = share.first; b < l.B; b += share.step) backward.item(b);
}

}  // namespace lsnn::cuda
