// The backward pass of the paper's network by matrices: that of lsnn_backward.cuh in a cluster, for
// layers whose products may round their factors to bfloat16. Eight or sixteen items go through the
// steps together; so the weights are read once for all of them, and tensor cores multiply them with
// the dL/dc of all.
//
// A factor is one bfloat16 number, or two that add up to it but for its last bits. Of the products
// of two that are made of two, the one of the lower parts is left out. A block has the rows of its
// own neurons. Its warps share out the columns too; hence a sum has parts, which the lane that owns
// the neuron adds, always in the same order. One barrier of the block in a step orders these parts,
// one wait what the blocks of the cluster send.
#pragma once
#include <utility>

#include "cluster_rows.cuh"
#include "lsnn_replay.cuh"
#include "lsnn_stream.cuh"
#include "sequence.cuh"

namespace lsnn::cuda {

// A pair of numbers as bfloat16, the first in the lower half, and what that leaves of them.
LSNN_DEVICE uint32_t take_upper(float& first, float& second) {
  const uint32_t pair = cvt_rn_bf16x2_f32(first, second);
  first -= __uint_as_float(pair << 16);
  second -= __uint_as_float(pair & 0xffff0000u);
  return pair;
}

// W dL/dc of the block's rows. Which column a place of a mma stands for is ours to choose, as long
// as both factors agree: those of a lane are four neighbours.
template <int parts> struct LsnnMatrixProduct {
  static constexpr int items = pairs_of_lane(parts), sums = parts == 1 ? items : 3;
  uint32_t* const w;  // [down,across,parts,32,4] fragments of tiles
  const int down, across, units;
  const int padded_rows;  // of a part of a sum: so that the stores of a warp meet different banks

  __device__ __forceinline__ LsnnMatrixProduct(uint32_t* fragments, const Layer& l, int rows)
      : w(fragments),
        down(rows / side_of_tile),
        across(tiles_across(l.N)),
        units(units_of_column(l.N)),
        padded_rows(padded_rows_of_sum(rows)) {}

  // from: [n,NP], the rows of the block that there are; the whole block calls. What is beyond is 0.
  __device__ __forceinline__ void copy(const float* from, int n, int NP) const {
    for (int i = threadIdx.x; i < down * across * 32; i += blockDim.x) {
      const int lane = i % 32, tile = i / 32, row = tile / across * side_of_tile + lane / 4,
                column = tile % across * side_of_tile + lane % 4 * 4;
      Quad<float> upper{}, lower{};
      if (row < n && column < NP) upper = quad_at(from + (int64_t)row * NP + column);
      if (row + 8 < n && column < NP) lower = quad_at(from + (int64_t)(row + 8) * NP + column);
#pragma unroll
      for (int part = 0; part < parts; part++) {
        Quad<uint32_t> fragment;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          fragment[2 * half] = take_upper(upper[2 * half], upper[2 * half + 1]);
          fragment[2 * half + 1] = take_upper(lower[2 * half], lower[2 * half + 1]);
        }
        store_whole(w + (tile * parts + part) * words_of_fragment + 4 * lane, fragment);
      }
    }
  }

  // dc: [8,units,4] of a step, as publish() of LsnnMatrixTile leaves it. to: [shares_of_sum,8
  // items,padded_rows]; a warp makes one part of the sums of a tile of rows.
  __device__ __forceinline__ void multiply(const float* dc, float* to) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tile = warp / shares_of_sum,
              share = warp % shares_of_sum;
    float sum[sums][4] = {};
#pragma unroll 2
    for (int of = across * share / shares_of_sum; of < across * (share + 1) / shares_of_sum; of++) {
      const Quad<float> unit = quad_at(dc + (lane / 4 * units + 4 * of + lane % 4) * words_of_unit);
      const uint32_t right[2][2] = {{__float_as_uint(unit[0]), __float_as_uint(unit[1])},
                                    {__float_as_uint(unit[2]), __float_as_uint(unit[3])}};
      const uint32_t* from = w + (tile * across + of) * parts * words_of_fragment + 4 * lane;
#pragma unroll
      for (int part = 0; part < parts; part++) {
        const Quad<uint32_t> left = quad_at(from + part * words_of_fragment);
        mma_m16n8k16_bf16(sum[2 * part], left.of, right[0]);
        if (part == 0) mma_m16n8k16_bf16(sum[1], left.of, right[1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = tile * side_of_tile + i / 2 * 8 + lane / 4, column = lane % 4 * 2 + i % 2;
      float* own = to + (share * items * columns_of_mma + column) * padded_rows + row;
      if constexpr (parts == 1) {
#pragma unroll
        for (int item = 0; item < items; item++)
          own[item * columns_of_mma * padded_rows] = sum[item][i];
      } else {
        *own = sum[0][i] + (sum[1][i] + sum[2][i]);
      }
    }
  }
  // from: as multiply() leaves them.
  __device__ __forceinline__ float total(const float* from, int column, int row) const {
    float all = 0.f;
#pragma unroll
    for (int share = 0; share < shares_of_sum; share++)
      all += from[(share * items * columns_of_mma + column) * padded_rows + row];
    return all;
  }
};

// A lane's neuron in one of its items: a backward step in two parts, what needs no product and the
// rest.
struct LsnnPair {
  const LsnnBackward& job;
  const LsnnNeuron& neuron;
  const int length, end;  // end: spikes of earlier steps reach others
  LsnnReplay replayed;
  Adjoint<float> d;
  Carry<float> before{};  // what the step read
  float gz = 0.f;  // dL/dz from outside

  // steps: of the item.
  __device__ __forceinline__ LsnnPair(const LsnnBackward& of, const LsnnNeuron& own,
                                      const Group& group, int steps, int word, float* a, int items,
                                      int item)
      : job(of),
        neuron(own),
        length(steps),
        end(length - 1 - of.delay),
        replayed{of, own, group, word, a, items, item} {
    const BackwardArgs& f = job.f;
    const int64_t at = neuron.at(job);
    d = {neuron.load(f.glast.v, at), neuron.load(f.glast.a, at), neuron.load(f.glast.i, at),
         length > 0 ? last_z(length - 1) : 0.f};
  }
  // Of the last state, for the spikes of step t >= end.
  __device__ __forceinline__ float last_z(int t) const {
    return neuron.load(job.f.glast.z, neuron.at(job) + (length - 1 - t) * job.row);
  }
  // dL/dc of step t; 0 behind the item's end, and where no neuron is.
  __device__ __forceinline__ float current(int t) const {
    return works(t) ? current_adjoint(neuron.k, d.v, d.i) : 0.f;
  }
  __device__ __forceinline__ bool works(int t) const { return neuron.is_real && t < length; }
  // record: [2,threads] of step t. Behind the item's end all that follows are any numbers: what
  // stands under no condition is done for all items of a lane at a time.
  __device__ __forceinline__ void read(int t, const float* record, int threads) {
    before = replayed.read_by(t, record[0]);
    gz = record[threads];
  }
  __device__ __forceinline__ void replay_before(int t) {
    if (t >= length) return;
    if (t % (int)segment == 0) replayed.replay_segment(t);
    replayed.replay_to(t - 1);
  }
  // carried: what (1) carries back to the spikes of step t, where they reach a step.
  __device__ __forceinline__ void step(int t, float carried) {
    Adjoint<float> next = d;
    next.z = d.z + (t >= end ? 0.f : carried) + gz;
    Coefs<float> g{};
    step_adjoint(neuron.spec, neuron.k, before, 0.f, 0.f, 0.f, next, g,
                 [&](float, float) { return slope_of_step(neuron.spec, neuron.k, before); });
    const bool works = t < length;
    d = {works ? next.v : d.v, works ? next.a : d.a, works ? next.i : d.i, works ? next.z : d.z};
  }
  __device__ __forceinline__ void add_last_z(int t) {
    if (t > end && t > 0 && t < length) [[unlikely]]
      d.z = d.z + last_z(t - 1);
  }
  __device__ __forceinline__ void store_first_state() const {
    const int64_t first = neuron.at(job);
    neuron.store(job.f.gfirst.v, first, d.v);
    neuron.store(job.f.gfirst.a, first, d.a);
    neuron.store(job.f.gfirst.i, first, d.i);
  }
  // Spikes before the sequence, t < 0. The newest ones have a local part too.
  __device__ __forceinline__ void store_first_z(int t, float carried) const {
    neuron.store(job.f.gfirst.z, neuron.at(job) + (-1 - t) * job.row,
                 (t == -1 ? d.z : 0.f) + (t >= end ? last_z(t) : carried));
  }
};

// Where a lane's numbers lie of a row [B,N] of steps that follow each other backwards.
struct LsnnColumn {
  float* at;  // of the first item
  int64_t step, of_item;  // bytes to the step before, and from item to item

  __device__ __forceinline__ LsnnColumn(const void* first, int64_t stride_t, int64_t stride_b)
      : at((float*)first),
        step(-4 * stride_t),
        of_item(4 * columns_of_mma * stride_b) {}
  __device__ __forceinline__ float* of(int item) const {
    return reinterpret_cast<float*>(reinterpret_cast<char*>(at) + item * of_item);
  }
  __device__ __forceinline__ void advance() {
    at = reinterpret_cast<float*>(reinterpret_cast<char*>(at) + step);
  }
};

// The items of a cluster, which go through the steps together. A group has the neurons of the block
// in one of eight items, or in two of sixteen.
template <int parts> struct LsnnMatrixTile {
  static constexpr int items = pairs_of_lane(parts);
  const LsnnBackward& job;
  const Group group;
  const int word;  // of the warp's neurons
  const LsnnMatrixProduct<parts> product;
  float* const dc;  // [slots,slot]
  const int slot;  // [8,units,4]
  float* const sums;  // [2,shares_of_sum,8 items,padded_rows]
  float* const record;  // [stages_of_record,items,2,threads] of the group
  float* const a;  // [items,steps_of_replay,threads] of the group
  int written = 0;  // the slot of this step
  int turn = 0;  // which of the two sums

  __device__ __forceinline__ int slot_before(int of) const {
    return (of == 0 ? job.shape.slots : of) - 1;
  }
  // x: dL/dc of the lane's neuron in its items. A unit has four neighbouring neurons: both parts of
  // one item, or the parts of two. Eight lanes have the units of the warp and send them to a block.
  __device__ __forceinline__ void publish(ClusterRows& rows, const float (&x)[items]) const {
    rows.begin_step();
    const uint32_t upper = cvt_rn_bf16x2_f32(x[0], 0.f);
    const float other = parts == 1 ? x[items - 1] : x[0] - __uint_as_float(upper << 16);
    const uint32_t own = cvt_rn_bf16x2_f32(x[0], other);
    const unsigned lane = threadIdx.x % 32, column = lane % 8 * 4;
    uint32_t of[4];
#pragma unroll
    for (unsigned q = 0; q < 4; q++) of[q] = __shfl_sync(~0u, own, column + q);
    float unit[words_of_unit];
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      const uint32_t first = of[2 * pair], second = of[2 * pair + 1];
      unit[pair] = __uint_as_float((first & 0xffffu) | second << 16);
      unit[2 + pair] = __uint_as_float(first >> 16 | (second & 0xffff0000u));
    }
    const int quad = 8 * word + (int)(lane % 8);
    if (4 * quad < rows.NP)
      rows.send(dc + written * slot + (group.id * product.units + quad) * words_of_unit, unit,
                (int)lane / 8, 4);
  }
  // The product of the step d + 1 later, of which every lane finds its sums at the returned place.
  __device__ __forceinline__ const float* multiply() {
    float* to = sums + turn * shares_of_sum * items * columns_of_mma * product.padded_rows;
    product.multiply(dc + slot_before(slot_before(written)) * slot, to);
    turn ^= 1;
    __syncthreads();
    return to;
  }
  __device__ __forceinline__ float carried(const float* of, int item) const {
    return product.total(of, item * columns_of_mma + group.id, group.thread);
  }

  // first: the first of the items.
  template <int... of> __device__ __forceinline__ void run(int64_t first, ClusterRows& rows,
                                                           std::integer_sequence<int, of...>) {
    const Layer& l = job.f.layer;
    const int longest = job.p.length(l, first), thread = group.thread, threads = group.threads;
    // An item that is not there, and one without neurons of the warp, has no steps.
    auto number = [&](int item) { return first + item * columns_of_mma + group.id; };
    auto is_there = [&](int item) { return number(item) < l.B && word < (int)words(l.N); };
    const LsnnNeuron neuron[] = {LsnnNeuron(job, is_there(of) ? number(of) : first,
                                            is_there(of) ? 32 * word + group.lane() : (int)l.N)...};
    LsnnPair pair[] = {LsnnPair(job, neuron[of], group,
                                is_there(of) ? job.p.length(l, number(of)) : 0, word,
                                a + of * steps_of_replay * threads + thread, items, of)...};
    if (!job.f.gz)
#pragma unroll
      for (unsigned i = 0; i < stages_of_record * items; i++)
        record[(2 * i + 1) * threads + thread] = 0.f;
    const BackwardArgs& f = job.f;
    const int64_t last = neuron[0].at(job) + (longest - 1) * job.row;
    LsnnColumn gx((float*)f.gx + last, job.row, l.N),
        of_y((const float*)f.saved.y + last - job.row, job.row, l.N),
        of_gz(f.gz ? outside_z_at(job, neuron[0].cell, longest - 1) : nullptr, f.gz_stride_t,
              f.gz_stride_b);
    int next = longest - 1;  // the step whose record is not on its way yet
    auto copy = [&](float* to) {
#pragma unroll
      for (int item = 0; item < items; item++) {
        const bool works = next >= 0 && pair[item].works(next);
        float* own = to + 2 * item * threads;
        if (works && next > 0) cp_async_shared_global<4>(own, of_y.of(item), Where::current());
        if (works && f.gz)
          cp_async_shared_global<4>(own + threads, of_gz.of(item), Where::current());
      }
      next--;
      of_y.advance();
      of_gz.advance();
    };
    StageRing<stages_of_record> stages(record + thread, 2 * items * threads, copy);
#pragma unroll 1
    for (int t = longest - 1; t >= 0; t--) {
      float x[items];
#pragma unroll
      for (int item = 0; item < items; item++) x[item] = pair[item].current(t);
      publish(rows, x);
#pragma unroll
      for (int item = 0; item < items; item++)
        if (pair[item].works(t)) *gx.of(item) = x[item];
      gx.advance();
      const float* stage = stages.wait();
#pragma unroll
      for (int item = 0; item < items; item++)
        if (t == pair[item].length - 1) [[unlikely]]
          pair[item].replayed.begin(t + 1);
#pragma unroll
      for (int item = 0; item < items; item++)
        pair[item].read(t, stage + 2 * item * threads, threads);
      if ((unsigned)t % steps_of_replay == 0 && t > 0) [[unlikely]]
#pragma unroll
        for (int item = 0; item < items; item++) pair[item].replay_before(t);
      stages.advance(copy);
      const float* found = multiply();
#pragma unroll
      for (int item = 0; item < items; item++) pair[item].step(t, carried(found, item));
#pragma unroll
      for (int item = 0; item < items; item++) pair[item].add_last_z(t);
      written = slot_before(written);
      rows.end_step();
    }
#pragma unroll
    for (int item = 0; item < items; item++) pair[item].store_first_state();
    if (!job.f.gfirst.z) return;
    const int begun = written;  // as nothing is written
#pragma unroll 1
    for (int t = -1; t >= -1 - job.delay; t--) {
      const float* found = multiply();
#pragma unroll
      for (int item = 0; item < items; item++) pair[item].store_first_z(t, carried(found, item));
      written = slot_before(written);
    }
    written = begun;
  }
};

template <int parts> __global__ void __launch_bounds__(most_threads_lsnn_cluster, 1)
    lsnn_matrix_kernel(LsnnBackward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  const Group group = Group::mine(shape.threads), block = Group::mine((int)blockDim.x);
  constexpr int items = pairs_of_lane(parts);
  Arena arena(shared_memory());
  const LsnnMatrixShared shared(arena, l, shape);
  const int N = (int)l.N, NP = (int)padded(l.N),
            word = Slice(l.N, shape.ranks, (int)cluster_rank()).word;
  ClusterRows rows(shared.mbarriers, block, l, shape, columns_of_mma);
  const LsnnMatrixProduct<parts> product(shared.w, l, shared.rows);
  product.copy((const float*)job.p.w + (int64_t)32 * word * NP, N - 32 * word, NP);
  // What pads the last tiles of dL/dc meets weights that are 0.
  for (int i = threadIdx.x; i < shape.slots * shared.slot; i += blockDim.x) shared.dc[i] = 0.f;
  cluster_sync();
  if (word >= (int)words(l.N)) return;  // nothing is sent to a block without neurons
  LsnnMatrixTile<parts> tile{
      job,
      group,
      word + group.warp(),
      product,
      shared.dc,
      shared.slot,
      shared.sums,
      shared.record + group.id * stages_of_record * items * 2 * group.threads,
      shared.a + group.id * items * steps_of_replay * group.threads};
  const int64_t team = blockIdx.x / shape.ranks, teams = gridDim.x / shape.ranks,
                at_once = items * columns_of_mma;
  for (int64_t b = team * at_once; b < l.B; b += teams * at_once)
    tile.run(b, rows, std::make_integer_sequence<int, items>());
}

}  // namespace lsnn::cuda
