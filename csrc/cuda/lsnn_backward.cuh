// The backward pass of the paper's network in float32, with one delay and coefficients without
// gradients, in the design `block`. The model tests the old membrane, so dL/dc of a step does not
// depend on dL/dz of that step: it is published before the product that gives dL/dz. One barrier
// per step orders both.
//
// A lane owns a neuron. The rows of a warp's product are those of its own active neurons, unknown
// to other warps, and sums reach the lanes that own the neurons by a shuffle.
#pragma once
#include <algorithm>

#include "lane_sums.cuh"
#include "lsnn_replay.cuh"
#include "lsnn_stream.cuh"
#include "sequence.cuh"

namespace lsnn::cuda {

// The rows of weights that a warp needs in a step, dealt in turn to four groups of lanes.
struct LsnnRows {
  static constexpr unsigned groups = 4, of_group = 32 / groups;
  uint32_t* list;  // [groups,of_group] byte offsets of the rows
  int n;           // of them
  unsigned rank;   // of the lane's row; undefined if it has none

  __device__ __forceinline__ void make(uint32_t* to, bool is_one, uint32_t place, unsigned lane) {
    const unsigned all = __ballot_sync(~0u, is_one);
    list = to;
    n = __popc(all);
    rank = __popc(all & ((1u << lane) - 1));
    if (is_one) list[rank % groups * of_group + rank / groups] = place;
  }
  // Four offsets for the lane's group, from the first or from the fifth.
  __device__ __forceinline__ Quad<uint32_t> places(unsigned lane, unsigned from) const {
    return quad_at(list + lane / (32 / groups) * of_group + from);
  }
};

// W dL/dc for such rows, by fused multiply-adds. Each lane of a group has `quads` quads of columns
// of a row; some lanes lack the last one.
template <int quads> struct LsnnProduct {
  static constexpr int groups = LsnnRows::groups, lanes = 32 / groups;  // lanes of a group
  static constexpr int most = 4, rows = most * groups;  // summed together by a lane
  // columns loaded at a time, limited by registers
  static constexpr int most_columns_at_once = LSNN_FEWER_REGISTERS ? 2 : 4;
  const float* w;  // [N,NP] from the lane's columns on
  int NP;
  unsigned lane;

  __device__ __forceinline__ LsnnProduct(const float* weights, int row, unsigned lane_of_warp)
      : w(weights + lane_of_warp % lanes * 4),
        NP(row),
        lane(lane_of_warp) {}
  __device__ __forceinline__ int column(int c) const {
    return (int)(lane % lanes * 4) + c * lanes * 4;
  }
  struct Sums { float of[most]; };
  // dc: [NP]. The sums over the lane's columns for n rows at `place`; in most steps n is more than
  // half of the maximum. Offsets beyond n are valid; their sums are not used. With many rows
  // others() runs first, in their branch.
  template <class Others>
  __device__ __forceinline__ Sums sums(const float* dc, const Quad<uint32_t>& place, int n,
                                       const Others& others) const {
    Sums sum{};
    if (n > 3 * groups) {
      others();
      add<4>(dc, place, sum);
    } else if (n > 2 * groups) {
      add<3>(dc, place, sum);
    } else {
      add<2>(dc, place, sum);
    }
    return sum;
  }
  template <int n> __device__ __forceinline__ void add(const float* dc, const Quad<uint32_t>& place,
                                                       Sums& sum) const {
    constexpr int full = quads - 1;
    [[maybe_unused]] constexpr int at_once =
        full < 4 || n == most ? 1 : std::min(full - 2, most_columns_at_once);
#pragma unroll at_once
    for (int c = 0; c < full; c++) add_quad<n>(dc, place, c, true, sum);
    add_quad<n>(dc, place, full, column(full) < NP, sum);
  }
  template <int n>
  __device__ __forceinline__ void add_quad(const float* dc, const Quad<uint32_t>& place, int c,
                                           bool has, Sums& sum) const {
    Quad<float> g{}, row[n]{};
    if (has) g = quad_at(dc + column(c));
#pragma unroll
    for (int i = 0; i < n; i++)
      if (has)
        row[i] =
            quad_at(reinterpret_cast<const float*>(reinterpret_cast<const char*>(w) + place[i]) +
                    c * lanes * 4);
#pragma unroll
    for (int i = 0; i < n; i++)
#pragma unroll
      for (int q = 0; q < 4; q++) sum.of[i] = fma_(row[i][q], g[q], sum.of[i]);
  }
  // The sum of the lane's own row; undefined if it is not among these.
  __device__ __forceinline__ float own(const Sums& sum, const LsnnRows& of) const {
    Sums given = sum;
    const float total = sum_lanes<lanes>(given.of, (int)lane);
    return __shfl_sync(~0u, total, of.rank % groups * lanes + of.rank / groups % most * 2);
  }
};

template <int quads> struct LsnnBackwardGroup {
  using Sums = typename LsnnProduct<quads>::Sums;
  const LsnnBackward& job;
  const Group group;
  const LsnnProduct<quads> product;
  float* const record;  // [stages_of_record,2,threads]
  float* const a;  // [steps_of_replay,threads]
  // [slots,NP] Steps are numbered from the end, continuing over items: in step n a warp writes a
  // slot, then reads the one written d + 1 steps before. A barrier ends the step, so the slot that
  // was read may be written next: d + 2 slots suffice.
  float* const dc;
  uint32_t* const lists;  // [2,threads]

  // Two buffers: the list of the next step is written while that of this step is read.
  __device__ __forceinline__ uint32_t* list(int t) const {
    return lists + (t & 1) * group.threads + 32 * group.warp();
  }

  __device__ __forceinline__ int slot_before(int slot) const {
    return (slot == 0 ? job.shape.slots * product.NP : slot) - product.NP;
  }
  __device__ __forceinline__ void end_step(Where where = Where::current()) const {
    barrier_sync_aligned(group.id + 1, group.threads, where);
  }
  // written: slot for dL/dc of the next step.
  __device__ __forceinline__ void item(int64_t b, int& written) const {
    const BackwardArgs& f = job.f;
    const Layer& l = f.layer;
    const int length = job.p.length(l, b), NP = product.NP, thread = opaque(group.thread);
    const int end = length - 1 - job.delay;  // spikes of steps t < end reach other neurons
    const LsnnNeuron neuron(job, b, thread);
    const Coefs<float>& k = neuron.k;
    const int64_t at = neuron.at(job);
    Adjoint<float> d{neuron.load(f.glast.v, at), neuron.load(f.glast.a, at),
                     neuron.load(f.glast.i, at), 0.f};
    LsnnRows rows{};
    // dL/dc that the product reads
    auto read = [&] { return dc + slot_before(written); };
    // dL/dz of the last state, for step t >= end
    auto last_z = [&](int t) {
      return neuron.load(f.glast.z, neuron.at(job) + (end + job.delay - t) * job.row);
    };
    // dL/dz of step t through (1): from `sums` of the first rows, or from `others` of further rows,
    // which most steps do not have.
    auto sums = [&](const Quad<uint32_t>& places, float& others) {
      return product.sums(read(), places, rows.n, [&] {
        constexpr int first = LsnnProduct<quads>::rows;
        if (rows.n <= first) [[likely]]
          return;
        const Quad<uint32_t> beyond = rows.places(product.lane, first / product.groups);
        Sums sum{};
        product.template add<LsnnProduct<quads>::most>(read(), beyond, sum);
        others = product.own(sum, rows);
      });
    };
    auto carried = [&](int t, const Sums& first, float others) {
      const float own = product.own(first, rows);
      return t >= end ? 0.f : rows.rank < (unsigned)product.rows ? own : others;
    };
    const uint32_t place = (uint32_t)thread * 4 * NP;  // offset of the lane's own row
    if (length > 0) d.z = last_z(length - 1);

    if (length > 0) {
      LaneRows<1, false> of_y{(const float*)f.saved.y + at + (length - 2) * job.row, -job.row,
                              neuron.is_real},
          of_gz{};
      if (f.gz)
        of_gz = {outside_z_at(job, neuron.cell, length - 1), -f.gz_stride_t, neuron.is_real};
      int next = length - 1;  // the next step to copy
      auto copy = [&](float* to) {
        of_y.copy(to, next > 0);
        of_gz.copy(to + group.threads, next >= 0);
        next--;
      };
      StageRing<stages_of_record> stages(record + thread, 2 * group.threads, copy);
      LsnnReplay replayed{job, neuron, group, group.warp(), a + thread, length};
      // State before a step, and dL/dz from outside; 0 without it.
      Carry<float> before;
      float gz;
      if (!f.gz)
        for (unsigned i = 0; i < stages_of_record; i++)
          record[(2 * i + 1) * group.threads + thread] = 0.f;
      auto begin = [&](int t) {
        const float* own = stages.wait();
        const float y = own[0];
        gz = own[group.threads];
        stages.advance(copy);
        before = replayed.read_by(t, y);
      };
      auto make_rows = [&](int t) {
        Carry<float> s = before;
        const bool is_blocked = replay(neuron.spec, k, 0.f, 0.f, false, s);
        rows.make(list(t), neuron.is_real & !is_blocked, place, product.lane);
      };
      auto prepare = [&](int t) {
        auto replay_of = [&](int) -> LsnnReplay& { return replayed; };
        if (LsnnReplay::is_rare(t) || t == length) [[unlikely]]
          LsnnReplay::prepare<1>(t, replay_of);
        LsnnReplay::replay_to<1>(t - 1, replay_of);
      };
      prepare(length);
      begin(length - 1);
      if (length <= 2) replayed.read_first_state(length - 1, before);
      make_rows(length - 1);
      warp_barrier(Where::current());
      float* gx = (float*)f.gx + at + (length - 1) * job.row;
#pragma unroll 1
      for (int t = length - 1; t >= 0; t--) {
        const Quad<uint32_t> places = rows.places(product.lane, 0);
        const float dc_of_step = current_adjoint(k, d.v, d.i);
        if (neuron.is_real) {
          dc[written + neuron.cell.n] = dc_of_step;
          *gx = dc_of_step;
        }
        gx = reinterpret_cast<float*>(reinterpret_cast<char*>(gx) - job.row_bytes);
        if (LsnnReplay::is_due(t) && t > 0) [[unlikely]]
          prepare(t);
        const Slope<float> at_test = slope_of_step(neuron.spec, k, before);
        float others = 0.f;
        const Sums first = sums(places, others);
        // Prepares the step before while sums are shuffled. Before step 0 the values are not used.
        const Carry<float> read_by_step = before;
        const float gz_of_step = gz;
        begin(t - 1);
        d.z = d.z + carried(t, first, others) + gz_of_step;
        Coefs<float> g{};
        step_adjoint(neuron.spec, k, read_by_step, 0.f, 0.f, 0.f, d, g,
                     [&](float, float) { return at_test; });
        if (t > end || t <= 2) [[unlikely]]
          if (t > 0) {
            if (t > end) d.z = d.z + last_z(t - 1);
            if (t <= 2) replayed.read_first_state(t - 1, before);
          }
        make_rows(t - 1);
        written = slot_before(written);
        end_step();
      }
    }
    const int64_t first = neuron.at(job);
    neuron.store(f.gfirst.v, first, d.v);
    neuron.store(f.gfirst.a, first, d.a);
    neuron.store(f.gfirst.i, first, d.i);
    if (!f.gfirst.z) return;
    // All spikes before the sequence. The newest also have a local part.
    rows.make(list(0), neuron.is_real, place, product.lane);
    warp_barrier(Where::current());
    const int next = written;  // nothing is written below
#pragma unroll 1
    for (int t = -1; t >= -1 - job.delay; t--) {
      float others = 0.f;
      const Sums sum = sums(rows.places(product.lane, 0), others);
      neuron.store(f.gfirst.z, first + (-1 - t) * job.row,
                   (t == -1 ? d.z : 0.f) + (t >= end ? last_z(t) : 0.f) + carried(t, sum, others));
      written = slot_before(written);
    }
    written = next;
    warp_barrier(Where::current());  // before the next item writes lists
  }
};

template <int quads> __global__ void __launch_bounds__(whole_groups_lsnn_backward(quads), 1)
    lsnn_backward_kernel(LsnnBackward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(shape.threads);
  Arena arena(shared_memory());
  const LsnnBackwardShared shared(arena, l, shape);
  const int N = (int)l.N, NP = (int)padded(l.N);
  copy_weights(shared.w, (const float*)job.p.w, N * NP);
  // Padding of dL/dc must be finite, as its weights are 0; a list may be read beyond its end.
  for (int i = threadIdx.x; i < shape.groups * shape.slots * NP; i += blockDim.x)
    shared.dc[i] = 0.f;
  for (int i = threadIdx.x; i < shape.groups * 2 * shape.threads; i += blockDim.x)
    shared.list[i] = 0;
  __syncthreads();
  const LsnnBackwardGroup<quads> backward{
      job,
      group,
      LsnnProduct<quads>(shared.w, NP, threadIdx.x % 32),
      shared.record + group.id * stages_of_record * 2 * shape.threads,
      shared.a + group.id * steps_of_replay * shape.threads,
      shared.dc + group.id * shape.slots * NP,
      shared.list + group.id * 2 * shape.threads};
  const Share share = Share::mine(shape, group);
  int written = 0;
  for (int64_t b = share.first; b < l.B; b += share.step) backward.item(b, written);
}

}  // namespace lsnn::cuda
