// Replays steps of the paper's network for the backward kernels. The adaptation and the refractory
// counter follow from a neuron's spikes only, the membrane from y of the step before. A lane owns a
// neuron.
#pragma once
#include "replay.cuh"

namespace lsnn::cuda {

// Saved states of a lane in a segment: one for each `steps_of_replay` steps.
inline constexpr int starts_of_segment = segment / steps_of_replay;
inline constexpr int lsnn_start_numbers = 4 * starts_of_segment;

struct LsnnBackward : BackwardJob<float> {
  Shape shape;
  int delay;
  float dampening, n_ref;  // of the layer, converted once, not in each step
  float* starts;  // [items of all groups,starts_of_segment,threads,4]
  int64_t row, row_of_bits;  // strides of a step in [T,B,N] and [T,B,words(N)]
  int64_t row_bytes;  // of `row` numbers
  // Strides of a step of dL/dz from outside; and of an item of a lane, of that and of [T,B,N].
  int64_t gz_bytes, gz_bytes_of_item, bytes_of_item;
};

// Transposes 32 x 32 bits, one row per lane: bit i of lane n was bit n of lane i.
LSNN_DEVICE uint32_t transpose_bits(uint32_t row, int lane) {
#pragma unroll
  for (int o = 16; o; o /= 2) {
    const uint32_t low = ~0u / ((1u << o) + 1);  // bits whose index lacks bit o
    const uint32_t other = __shfl_xor_sync(~0u, row, o);
    row = lane & o ? (row & ~low) | (other >> o & low) : (row & low) | (other & low) << o;
  }
  return row;
}

// A lane's neuron; a missing one reads neuron 0 and stores nothing.
struct LsnnNeuron {
  // Without a refractory period the counters stay 0.
  const PaperSpec spec{{true, false}};
  static_assert(PaperSpec::model.test == Test::old_v && PaperSpec::model.when == When::next &&
                PaperSpec::model.reset == Reset::minus_A);
  int n;  // also of a missing one
  bool is_real;
  Cell cell;
  Coefs<float> k;

  __device__ __forceinline__ LsnnNeuron(const LsnnBackward& job, int64_t b, int number)
      : n(number),
        is_real(n < (int)job.f.layer.N),
        cell(job.f.layer, b, is_real ? n : 0) {
    const Cell quad(job.f.layer, b, cell.n / 4 * 4);
    k = QuadCoefs<float>(job.p, job.f.layer, quad).of(cell.n % 4);
    k.dampening = job.dampening;
    k.n_ref = job.n_ref;
  }
  __device__ __forceinline__ int first_of_warp() const { return n / 32 * 32; }
  // Its index in a row [B,N]. Recomputed at each use, since most steps do not need it and registers
  // are scarce.
  __device__ __forceinline__ int64_t at(const LsnnBackward& job) const {
    return opaque(cell.b) * job.f.layer.N + cell.n;
  }
  // Its number in a row [B,N], or 0 if row is null or the neuron is missing.
  __device__ __forceinline__ float load(const void* row, int64_t at) const {
    return row && is_real ? ((const float*)row)[at] : 0.f;
  }
  __device__ __forceinline__ void store(void* row, int64_t at, float x) const {
    if (row && is_real) ((float*)row)[at] = x;
  }
};

// Replays a and r of a neuron from its spikes, which it reads as bits of 32 steps at a time.
// Functions for n items of a lane interleave them, so that they hide each other's latency; of(i):
// the replay of item i.
struct LsnnReplay {
  const LsnnBackward& job;
  const LsnnNeuron& neuron;
  const Group& group;
  const int word;  // of the warp's neurons, in a row of bits
  float* const a;  // [steps_of_replay,threads] from the lane's element on
  const int length;  // steps of the item
  int items = 1, item = 0;  // of the lane: number, and index

  // Of the replayed steps still to be read, the next one in bit 31: the spike of two steps before,
  // and whether the neuron is refractory in the step.
  uint32_t spikes = 0, counting = 0;
  float z = 0.f;  // the last spike taken from these

  // State before the first of eight steps: a, r, z, and bits of spikes, bit 0 eight steps before.
  enum { A_OF_START, R_OF_START, Z_OF_START, BITS_OF_START };
  using Start = Quad<float>;

  // Addresses in global memory, recomputed at each use.
  struct Memory {
    const uint32_t* words;  // of the warp, of step 0
    int64_t row_of_bits;
    float* starts;  // [starts_of_segment,threads,4] from the lane's element on
    int threads;
    const float* carry;  // of the neuron, in the first state
    int64_t row;
    const float* z_before;  // its last spike before the sequence, or null

    __device__ __forceinline__ uint32_t word(int t) const { return words[t * row_of_bits]; }
    __device__ __forceinline__ float* start(int t) const {
      return starts + (unsigned)t % segment / steps_of_replay * 4 * threads;
    }
    // spike before step 0; any number
    __device__ __forceinline__ float before_0() const { return z_before ? *z_before : 0.f; }
    // variable of the state before step S0
    __device__ __forceinline__ const float* state(int S0, int variable) const {
      return carry + (S0 / (int)segment * 4 + variable) * row;
    }
  };
  __device__ __forceinline__ Memory memory() const {
    const Layer& l = job.f.layer;
    const float* z = first_z<float>(job.f.first, l, -1, neuron.cell.b);
    const int64_t b = opaque(neuron.cell.b),
                  number =
                      ((int64_t)blockIdx.x * items + item) * job.shape.groups + opaque(group.id);
    return {job.f.saved.bits + b * words(l.N) + word,
            job.row_of_bits,
            job.starts + (number * starts_of_segment * group.threads + group.thread) * 4,
            group.threads,
            (const float*)job.f.saved.carry + neuron.at(job),
            job.row,
            z ? z + neuron.cell.n : nullptr};
  }
  __device__ __forceinline__ void step(uint32_t in, int bit, Carry<float>& s) const {
    const bool fired = in >> bit & 1;
    replay_spikes(neuron.spec, neuron.k, fired ? 1.f : 0.f, fired, s);
  }
  static __device__ __forceinline__ float spike(uint32_t bits) {  // of bit 31
    return (int32_t)bits < 0 ? 1.f : 0.f;
  }

  // Saves the state before the first of each steps_of_replay steps, from the segment's first step
  // to `end`, for items with at least `end` steps.
  template <int n, class Of>
  static __device__ __forceinline__ void replay_segment(int end, const Of& of) {
    constexpr int at_once = 32;  // steps whose bits a lane holds
    const int S0 = (end - 1) / (int)segment * (int)segment, lane = (int)(threadIdx.x % 32);
    uint32_t before[n] = {};
    Carry<float> s[n];
#pragma unroll
    for (int i = 0; i < n; i++) {
      const LsnnReplay& own = of(i);
      const bool has = end <= own.length;
      const Memory m = own.memory();
      if (S0 && has)
        before[i] = (m.word(S0 - 1) >> lane & 1) << 31 | (m.word(S0 - 2) >> lane & 1) << 30;
      s[i] = {0.f, has ? own.neuron.load(m.state(S0, 1), 0) : 0.f, 0.f,
              has ? own.neuron.load(m.state(S0, 3), 0) : 0.f, S0 ? spike(before[i]) : m.before_0()};
    }
#pragma unroll 1
    for (int t = S0; t < end; t += at_once) {
      uint32_t bits[n];
#pragma unroll
      for (int i = 0; i < n; i++)
        bits[i] = t + lane < end && end <= of(i).length ? of(i).memory().word(t + lane) : 0;
#pragma unroll
      for (int i = 0; i < n; i++) bits[i] = transpose_bits(bits[i], lane);
#pragma unroll 1
      for (int first = 0; first < at_once; first += steps_of_replay) {
#pragma unroll
        for (int i = 0; i < n; i++) {
          const uint64_t all = (uint64_t)bits[i] << 32 | before[i];
          const uint32_t window = uint32_t(all >> (32 - steps_of_replay + first));
          const Memory m = of(i).memory();
          store_whole(m.start(t + first), Start{{s[i].a, s[i].r, s[i].z, __uint_as_float(window)}});
#pragma unroll
          for (int j = 0; j < steps_of_replay; j++) of(i).step(bits[i] >> first, j, s[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < n; i++) before[i] = bits[i];
    }
  }

  // The state before step t, for descending t within the replayed steps. y: of the step before.
  __device__ __forceinline__ Carry<float> read_by(int t, float y) {
    Carry<float> s{0.f, a[(unsigned)t % steps_of_replay * group.threads], 0.f,
                   (int32_t)counting < 0 ? 1.f : 0.f, z};
    z = spike(spikes);
    s.v = membrane_before(neuron.spec, neuron.k, y, s.a, z);
    spikes <<= 1;
    counting <<= 1;
    return s;
  }
  // Corrects the reads of steps 1 and 0, which have numbers of the first state instead of bits.
  __device__ __forceinline__ void read_first_state(int t, Carry<float>& before) {
    const Memory m = memory();
    if (t == 1) {
      z = m.before_0();  // bits hold no spike, so before.v is still y
      before.v = membrane_before(neuron.spec, neuron.k, before.v, before.a, z);
    } else {
      before.v = neuron.load(m.state(0, 0), 0);
    }
  }
  // After the read of step t > 0 the eight steps before it are replayed if is_due(t); if
  // is_rare(t), or if t is the length of an item, prepare() comes first. Replaying again changes
  // nothing.
  static __device__ __forceinline__ bool is_due(int t) {
    return (unsigned)t % steps_of_replay == 0;
  }
  // The last step before t > 0 for which is_due() holds, or step 1, which reads the first state.
  static __device__ __forceinline__ int due_before(int t) {
    return max((t - 1) / steps_of_replay * steps_of_replay, t > 1 ? 1 : 0);
  }
  static __device__ __forceinline__ bool is_rare(int t) { return (unsigned)t % segment == 0; }
  template <int n, class Of> static __device__ __forceinline__ void prepare(int t, const Of& of) {
    replay_segment<n>(t, of);
#pragma unroll
    for (int i = 0; i < n; i++) {
      LsnnReplay& own = of(i);
      const Memory m = own.memory();
      if (t == own.length)
        own.z = t == 1 ? m.before_0() : m.word(t - 2) >> threadIdx.x % 32 & 1 ? 1.f : 0.f;
    }
  }
  // Replays the block of eight steps that contains t, which is read next.
  template <int n, class Of> static __device__ __forceinline__ void replay_to(int t, const Of& of) {
    Start start[n];
#pragma unroll
    for (int i = 0; i < n; i++) start[i] = load_whole<Start>(of(i).memory().start(t));
#pragma unroll
    for (int i = 0; i < n; i++) of(i).replay_from(start[i], t);
  }
  __device__ __forceinline__ void replay_from(const Start& from, int t) {
    const uint32_t window = __float_as_uint(from[BITS_OF_START]);
    Carry<float> s{0.f, from[A_OF_START], 0.f, from[R_OF_START], from[Z_OF_START]};
    counting = 0;
#pragma unroll
    for (int i = 0; i < steps_of_replay; i++) {
      a[i * group.threads] = s.a;
      counting |= (s.r > 0.f ? 1u : 0u) << i;
      step(window, steps_of_replay + i, s);
    }
    const int last = (unsigned)t % steps_of_replay;
    counting <<= 31 - last;
    spikes = window << (33 - steps_of_replay - last);
  }
};

}  // namespace lsnn::cuda
