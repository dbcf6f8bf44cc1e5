// The forward pass of the paper's network in float32 with one delay, in the designs `block` and
// `gather`. The model tests the old membrane, so (7) of a step does not depend on (1): z_t is
// computed and published while the weight rows of z_{t-1-d} are loaded, and one barrier per step
// orders both. Sums have the order of the general kernels, so results are bitwise identical.
#pragma once
#include "lsnn_stream.cuh"
#include "sequence.cuh"
#include "stamps.cuh"

namespace lsnn::cuda {

struct LsnnForward : ForwardJob<float> {
  Shape shape;
  int delay;
  float n_ref;
  int64_t row, row_of_bits;  // strides of a step in [T,B,N] and [T,B,words(N)]
};

// Byte offsets of the weight rows of spikes, in a ring with a slot for each step. A warp lists its
// own neurons in ascending order, so the lists of a slot are ascending in sequence. Step t reads
// the slot of t - 1 - d and writes that of t: with d + 2 slots these are adjacent.
template <int warps> struct SpikeLists {
  static constexpr int slot = list_words(warps);
  uint32_t* const ring;  // [slots,slot]
  const int end;  // of the ring
  const int lane, warp;
  int written, read;  // offsets of the slots of this step

  __device__ __forceinline__ SpikeLists(uint32_t* lists, int slots, const Group& group)
      : ring(lists),
        end(slots * slot),
        lane(group.lane()),
        warp(group.warp()),
        written(0),
        read(slot) {
    for (int i = warp * slot; i < end && lane == 0; i += warps * slot)
#pragma unroll
      for (int of = 0; of < warps; of++) ring[i + 128 * warps + of] = 0;
  }
  __device__ __forceinline__ const uint32_t* list(int of) const { return ring + read + 128 * of; }
  __device__ __forceinline__ int length(int of) const { return (int)ring[read + 128 * warps + of]; }
  // fired: of the lane's quad; first: offset of the weight row of its first neuron; row: bytes of a
  // row.
  __device__ __forceinline__ void publish(const bool (&fired)[4], uint32_t first,
                                          uint32_t row) const {
    const unsigned lower = (1u << lane) - 1;
    unsigned n[5] = {};  // spikes of the warp before each neuron of the quad, and after it
#pragma unroll
    for (int q = 0; q < 4; q++) n[0] += __popc(__ballot_sync(~0u, fired[q]) & lower);
#pragma unroll
    for (int q = 0; q < 4; q++) n[q + 1] = n[q] + fired[q];
    uint32_t* to = ring + written + 128 * warp;
#pragma unroll
    for (int q = 0; q < 4; q++)
      if (fired[q]) to[n[q]] = first + q * row;
    if (lane == 31) ring[written + 128 * warps + warp] = n[4];
  }
  __device__ __forceinline__ void advance() {
    written = read;
    read = read + slot == end ? 0 : read + slot;
  }
};

// The sum of (1) over the listed spikes of a slot. The first rows of all lists, enough for most
// steps, are loaded together. Missing rows of short lists are replaced by a row of -0, which
// changes no sum, so that most steps need no loop over a list. in_shared: rows, and that of -0, are
// in shared memory.
template <int warps, bool in_shared> struct RecurrentSum {
  static constexpr int at_once = RowBatch<float>::at_once;
  const float* w;  // from the lane's columns on
  int n[warps];
  Quad<uint32_t> head[warps];
  RowBatch<float> batch[warps];

  __device__ __forceinline__ RecurrentSum(const float* rows, const SpikeLists<warps>& lists)
      : w(rows) {
#pragma unroll
    for (int of = 0; of < warps; of++) {
      n[of] = lists.length(of);
      head[of] = quad_at(lists.list(of));
    }
  }
  __device__ __forceinline__ Quad<float> row_at(uint32_t place) const {
    return constant_quad<in_shared>(
        reinterpret_cast<const float*>(reinterpret_cast<const char*>(w) + place));
  }
  // none: offset of the row of -0.
  __device__ __forceinline__ void load(uint32_t none) {
#pragma unroll
    for (int of = 0; of < warps; of++)
      batch[of].load(at_once, [&](int i) {
        const bool is_there = i < n[of];
        if constexpr (in_shared) return row_at(is_there ? head[of][i] : none);
        else return is_there ? row_at(head[of][i]) : Quad<float>::all(-0.f);
      });
  }
  __device__ __forceinline__ bool is_long() const {
    bool some = false;
#pragma unroll
    for (int of = 0; of < warps; of++) some |= n[of] > at_once;
    return some;
  }
  __device__ __forceinline__ void add_to(Quad<float>& sum) const {
#pragma unroll
    for (int of = 0; of < warps; of++) batch[of].add_to(sum, at_once);
  }
  // The same with lists longer than the loaded rows.
  __device__ __forceinline__ void add_all_to(Quad<float>& sum,
                                             const SpikeLists<warps>& lists) const {
#pragma unroll
    for (int of = 0; of < warps; of++) {
      batch[of].add_to(sum, at_once);
      const uint32_t* list = lists.list(of);
#pragma unroll 1
      for (int e = at_once; e < n[of]; e += at_once) {
        const Quad<uint32_t> place = quad_at(list + e);
        RowBatch<float> more;
        more.load(at_once, [&](int i) {  // no branches, so that the loads overlap
          return e + i < n[of] ? row_at(place[i]) : Quad<float>::all(-0.f);
        });
        more.add_to(sum, at_once);
      }
    }
  }
};

// The neurons of a quad. A step has two parts: the first needs no current.
struct LsnnNeurons {
  // Without a refractory period the counters stay 0.
  const PaperSpec spec{{true, false}};
  static_assert(PaperSpec::model.test == Test::old_v);
  QuadCoefs<float> k;
  const float n_ref;
  QuadState<float> s;
  Threshold<float> at[4];
  Fired<float> out[4];

  __device__ __forceinline__ LsnnNeurons(const LsnnForward& job, const Cell& cell)
      : k(job.p, job.f.layer, cell),
        n_ref(job.n_ref),
        s(first_state(job, cell)) {
    // Lanes without neurons have values with which they never fire.
#pragma unroll
    for (int c = 0; c < n_coefficients; c++)
      if (!cell.live) k.k[c] = Quad<float>::all(c == THETA ? 1.f : 0.f);
  }

  __device__ __forceinline__ Coefs<float> of(int q) const {
    Coefs<float> c = k.of(q);
    c.n_ref = n_ref;  // converted once, not in each step
    return c;
  }
  __device__ __forceinline__ void fire_all(bool (&fired)[4]) {
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const Carry<float> carry = s.of(q);
      at[q] = threshold(spec, of(q), carry);
      out[q] = fire(spec, of(q), carry.v, at[q].A, carry);
      fired[q] = out[q].fired;
    }
  }
  __device__ __forceinline__ Quad<float> z() const {
    return {{out[0].z, out[1].z, out[2].z, out[3].z}};
  }
  // c: the sums of (1). Returns y.
  __device__ __forceinline__ Quad<float> integrate_all(const Quad<float>& c) {
    Quad<float> y;
#pragma unroll
    for (int q = 0; q < 4; q++) {
      Carry<float> carry = s.of(q);
      const Membrane<float> m = membrane(spec, of(q), c[q], at[q], carry);
      advance(spec, of(q), m.u, at[q].a, at[q].A, m.i, out[q].z, out[q].fired, carry);
      s.set(q, carry);
      y[q] = m.y;
    }
    return y;
  }
};

// Y: what y is saved as.
template <int warps, bool in_shared, bool whole, class Y> struct LsnnGroup {
  const LsnnForward& job;
  const Group group;
  const float* const w;  // [N,NP], in shared memory followed by a row of -0
  float* const current;  // [stages,4 threads]
  uint32_t* const lists;  // [slots,list_words]

  __device__ __forceinline__ void sync(Where where = Where::current()) const {
    if constexpr (warps == 1) warp_barrier(where);
    else barrier_sync_aligned<32 * warps>(group.id + 1, where);
  }

  __device__ __forceinline__ void item(int64_t b) const {
    const ForwardArgs& f = job.f;
    const Layer& l = f.layer;
    const int N = (int)l.N, length = job.p.length(l, b), delay = job.delay;
    const uint32_t row_bytes = 4 * (uint32_t)padded(l.N);
    const Cell cell(l, b, 4 * group.thread);
    const float* const rows = w + cell.n;
    LsnnNeurons neurons(job, cell);
    LaneRows<4, whole> of_x{current_at(job, cell, 0), f.x_stride_t, cell.live};
    int left = length;  // steps still to copy
    auto copy = [&](float* to) { of_x.copy(to, left-- > 0); };
    StageRing<stages_of_current> x(current + 4 * group.thread, 128 * warps, copy);
    SpikeLists<warps> spikes(lists, job.shape.slots, group);
    sync();
    Stamps<forward_stamps> stamps;
    // of this step
    float* z = (float*)f.z + cell.at(l, 0);
    Y* y = (Y*)f.saved.y + cell.at(l, 0);
    const int word = group.thread / 8;
    uint32_t* bits = f.saved.bits + b * words(l.N) + word;
    const int saved = f.save ? cell.live : 0, written = f.z ? cell.live : 0;
    const bool keeps_word = f.saved.bits && group.thread % 8 == 0 && word < words(l.N);
    for (int t0 = 0; t0 < length; t0 += (int)segment) {
      if (f.save) store_carry(job, cell, t0, neurons.s);
      const int t1 = length - t0 < segment ? length : t0 + (int)segment;
#pragma unroll 1
      for (int t = t0; t < t1; t++) {
        RecurrentSum<warps, in_shared> sum(rows, spikes);
        Quad<float> c = quad_at(x.wait());
        bool fired[4];
        neurons.fire_all(fired);
        stamps.end(0);
        sum.load(N * row_bytes);
        spikes.publish(fired, (uint32_t)cell.n * row_bytes, row_bytes);
        store_row<whole>(z, neurons.z(), written);
        const uint32_t gathered =
            gather_word(fired[0] | fired[1] << 1 | fired[2] << 2 | fired[3] << 3, group.lane());
        if (keeps_word) *bits = gathered;
        x.advance(copy);
        stamps.end(1);
        const bool before = t <= delay;  // spikes before the sequence; the lists are empty
        if (!(before | sum.is_long())) [[likely]]
          sum.add_to(c);
        else {
          auto add = [&](int j, float factor) {
            const Quad<float> row = sum.row_at((uint32_t)j * row_bytes);
#pragma unroll
            for (int q = 0; q < 4; q++) c[q] = c[q] + factor * row[q];
          };
          if (before)
            for_real_spikes(first_z<float>(f.first, l, t - 1 - delay, b), N, group.lane(), add);
          sum.add_all_to(c, spikes);
        }
        stamps.end(2);
        store_row<whole>(y, widen<Y>(neurons.integrate_all(c)), saved);
        z += job.row;
        y += job.row;
        bits += job.row_of_bits;
        stamps.end(3);
        spikes.advance();
        sync();
        stamps.end_step(4);
      }
    }
    stamps.store();
    store_last_state(job, cell, length, neurons.s);
  }
};

template <int warps, bool in_shared, bool whole, class Y>
__global__ void __launch_bounds__(most_threads_lsnn, 1) lsnn_forward_kernel(LsnnForward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(32 * warps);
  Arena arena(shared_memory());
  const LsnnShared shared(arena, l, shape, in_shared);
  const int N = (int)l.N, NP = (int)padded(l.N);
  if constexpr (in_shared) {
    copy_weights(shared.w, (const float*)job.p.w, N * NP);
    for (int i = threadIdx.x; i < NP; i += blockDim.x) shared.w[N * NP + i] = -0.f;
    __syncthreads();
  }
  const LsnnGroup<warps, in_shared, whole, Y> forward{
      job, group, in_shared ? shared.w : (const float*)job.p.w,
      shared.current + group.id * stages_of_current * 4 * group.threads,
      shared.lists + group.id * shape.slots * list_words(warps)};
  const Share share = Share::mine(shape, group);
  for (int64_t b = share.first; b < l.B; b += share.step) forward.item(b);
}

}  // namespace lsnn::cuda
