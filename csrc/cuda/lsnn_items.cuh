// The backward pass of the paper's network by matrices: the steps of a lane's items, independent of
// how blocks and tensor cores multiply. See lsnn_matrix_cluster.cuh for the order of a step.
#pragma once
#include <utility>

#include "lsnn_replay.cuh"
#include "lsnn_stream.cuh"
#include "sequence.cuh"
#include "stamps.cuh"

namespace lsnn::cuda {

// Two numbers as bfloat16, the first in the lower half; leaves their residuals.
LSNN_DEVICE uint32_t take_upper(float& first, float& second) {
  const uint32_t pair = cvt_rn_bf16x2_f32(first, second);
  first -= __uint_as_float(pair << 16);
  second -= __uint_as_float(pair & 0xffff0000u);
  return pair;
}

// The left factor of an mma in bfloat16, of which a lane has four adjacent columns of two rows; the
// rows keep the residuals.
LSNN_DEVICE Quad<uint32_t> take_fragment(Quad<float>& row, Quad<float>& row_below) {
  Quad<uint32_t> fragment;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    fragment[2 * half] = take_upper(row[2 * half], row[2 * half + 1]);
    fragment[2 * half + 1] = take_upper(row_below[2 * half], row_below[2 * half + 1]);
  }
  return fragment;
}
// The right factor, of which a lane has four adjacent bfloat16 numbers of a column.
LSNN_DEVICE void load_factor(const void* from, uint32_t (&right)[2]) {
  const Quad<uint16_t> unit = quad_at((const uint16_t*)from);
#pragma unroll
  for (int pair = 0; pair < 2; pair++)
    right[pair] = unit[2 * pair] | (uint32_t)unit[2 * pair + 1] << 16;
}

// A lane's neuron in one of its items. A backward step has two parts: the first needs no product.
struct LsnnPair {
  const LsnnBackward& job;
  const LsnnNeuron& neuron;
  const int length, end;  // end: spikes of steps t < end reach other neurons
  const int steps;  // length, or 0 without a neuron
  LsnnReplay replayed;
  Adjoint<float> d;
  Carry<float> before{};  // state before the step
  Slope<float> at_test{};  // of the step
  float gz = 0.f;  // dL/dz from outside

  __device__ __forceinline__ LsnnPair(const LsnnBackward& of, const LsnnNeuron& own,
                                      const Group& group, int length_of_item, int word, float* a,
                                      int items, int item)
      : job(of),
        neuron(own),
        length(length_of_item),
        end(length - 1 - of.delay),
        steps(own.is_real ? length : 0),
        replayed{of, own, group, word, a, length, items, item} {
    take_last_state();
  }
  __device__ __forceinline__ void take_last_state() {
    const BackwardArgs& f = job.f;
    const int64_t at = neuron.at(job);
    d = {neuron.load(f.glast.v, at), neuron.load(f.glast.a, at), neuron.load(f.glast.i, at),
         length > 0 ? last_z(length - 1) : 0.f};
  }
  // dL/dz of the last state, for step t >= end.
  __device__ __forceinline__ float last_z(int t) const {
    return neuron.load(job.f.glast.z, neuron.at(job) + (length - 1 - t) * job.row);
  }
  // dL/dc of step t; 0 after the item's end, and without a neuron.
  __device__ __forceinline__ float current(int t) const {
    return works(t) ? current_adjoint(neuron.k, d.v, d.i) : 0.f;
  }
  __device__ __forceinline__ bool works(int t) const { return t < steps; }
  // record: [2,threads] of step t. After the item's end values and adjoint are undefined: without
  // branches the items of a lane run in parallel.
  __device__ __forceinline__ void read(int t, const float* record, int threads) {
    before = replayed.read_by(t, record[0]);
    gz = record[threads];
  }
  // The part that needs no product.
  __device__ __forceinline__ void find_slope() {
    at_test = slope_of_step(neuron.spec, neuron.k, before);
  }
  // carried: dL/dz of the step through (1).
  __device__ __forceinline__ void step(float carried) {
    d.z = d.z + carried + gz;
    Coefs<float> g{};
    step_adjoint(neuron.spec, neuron.k, before, 0.f, 0.f, 0.f, d, g,
                 [&](float, float) { return at_test; });
  }
  // Adds dL/d of the last state after step t > end.
  __device__ __forceinline__ void add_last_state(int t) {
    if (t == length) take_last_state();
    if (t > end && t > 0 && t < length) d.z = d.z + last_z(t - 1);
  }
  __device__ __forceinline__ void store_first_state() const {
    const int64_t first = neuron.at(job);
    neuron.store(job.f.gfirst.v, first, d.v);
    neuron.store(job.f.gfirst.a, first, d.a);
    neuron.store(job.f.gfirst.i, first, d.i);
  }
  // Spikes before the sequence, t < 0. The newest also have a local part.
  __device__ __forceinline__ void store_first_z(int t, float carried) const {
    neuron.store(job.f.gfirst.z, neuron.at(job) + (-1 - t) * job.row,
                 (t == -1 ? d.z : 0.f) + (t >= end ? last_z(t) : carried));
  }
};

// A lane's numbers in rows [B,N] of steps, backwards. Strides in bytes are kernel arguments, so
// they take no registers.
struct LsnnColumn {
  char* at;  // of the first item

  __device__ __forceinline__ explicit LsnnColumn(const void* first) : at((char*)first) {}
  __device__ __forceinline__ float* of(int item, int64_t bytes_of_item) const {
    return reinterpret_cast<float*>(at + item * bytes_of_item);
  }
  __device__ __forceinline__ void advance(int64_t bytes_of_step) { at -= bytes_of_step; }
};

// A ring of slots for dL/dc of the last steps. A step writes one, and reads the one that is written
// again `apart` steps later.
template <int size, int apart> struct LsnnSlots {
  const int all;  // numbers of all slots
  int written = 0, read;  // offsets of the slots of this step

  __device__ __forceinline__ explicit LsnnSlots(int slots)
      : all(slots * size),
        read(all - apart * size) {}
  __device__ __forceinline__ void advance() {
    written = (written == 0 ? all : written) - size;
    read = (read == 0 ? all : read) - size;
  }
};

// Items that run through the steps together. A group has the neurons of the block in `items` items,
// `groups` apart: a lane has one adjoint for each, without branches, so that they hide each other's
// latency.
//
// Products: publish(x) distributes dL/dc of a step t, 0 after an item's end. await() waits for the
// row that multiply() reads: that of step t + 1 + d. carried(found, item) is the result for the
// lane's neuron. advance() moves to the slot of the next step, end_step() waits until it may be
// written, and finish() until all transfers are complete.
template <class Products> struct LsnnItems {
  static constexpr int items = Products::items;
  const LsnnBackward& job;
  const Group group;
  const int word;  // of the warp's neurons
  float* const record;  // [stages_of_record,items,2,threads] of the group
  float* const a;  // [items,steps_of_replay,threads] of the group

  // Whether an item ends with step t - 1.
  static __device__ __forceinline__ bool begins(const LsnnPair (&pair)[items], int t) {
    bool found = false;
#pragma unroll
    for (int item = 0; item < items; item++) found |= t == pair[item].length;
    return found;
  }
  // The last step before t > 0 that needs prepare().
  static __device__ __forceinline__ int due_before(const LsnnPair (&pair)[items], int t) {
    int due = LsnnReplay::due_before(t);
#pragma unroll
    for (int item = 0; item < items; item++)
      if (pair[item].length < t) due = max(due, pair[item].length);
    return due;
  }
  static __device__ __forceinline__ void find_slopes(LsnnPair (&pair)[items]) {
#pragma unroll
    for (int item = 0; item < items; item++) pair[item].find_slope();
  }
  // Prepares the reads of steps before t, see LsnnReplay.
  static __device__ __forceinline__ void prepare(LsnnPair (&pair)[items], int t) {
    auto replay_of = [&](int item) -> LsnnReplay& { return pair[item].replayed; };
    if (LsnnReplay::is_rare(t) | (t == 1) | begins(pair, t)) [[unlikely]] {
      if (t <= 1)
#pragma unroll
        for (int item = 0; item < items; item++)
          replay_of(item).read_first_state(t, pair[item].before);
      if (t == 0) return;
      LsnnReplay::prepare<items>(t, replay_of);
    }
    LsnnReplay::replay_to<items>(t - 1, replay_of);
  }
  // first: the first of the items.
  template <int... of> __device__ __forceinline__ void run(int64_t first, Products& products,
                                                           std::integer_sequence<int, of...>) {
    const Layer& l = job.f.layer;
    const int longest = job.p.length(l, first), thread = group.thread, threads = group.threads;
    // Missing items, and warps without neurons, have no steps.
    auto number = [&](int item) { return first + item * job.shape.groups + group.id; };
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
    LsnnColumn gx((float*)f.gx + last), of_y((const float*)f.saved.y + last - job.row),
        of_gz(f.gz ? outside_z_at(job, neuron[0].cell, longest - 1) : nullptr);
    int next = longest - 1;  // the next step to copy
    // For each item the last step without a copy, of y and of dL/dz. All items are read with the
    // length of the longest; a missing first item of a lane reads `first`.
    auto reads = [&](int item) { return item == 0 || is_there(item); };
    const int none[] = {reads(of) ? 0 : longest...},
              none_of_gz[] = {f.gz && reads(of) ? -1 : longest...};
    auto copy = [&](float* to) {
#pragma unroll
      for (int item = 0; item < items; item++) {
        float* own = to + 2 * item * threads;
        const float *y = opaque(of_y.of(item, job.bytes_of_item)),
                    *gz = opaque(of_gz.of(item, job.gz_bytes_of_item));
        if (next > none[item]) cp_async_shared_global<4>(own, y, Where::current());
        if (next > none_of_gz[item]) cp_async_shared_global<4>(own + threads, gz, Where::current());
      }
      next--;
      of_y.advance(job.row_bytes);
      of_gz.advance(job.gz_bytes);
    };
    StageRing<stages_of_record> stages(record + thread, 2 * items * threads, copy);
    if (longest > 0) prepare(pair, longest);
    int due = due_before(pair, longest), end = longest;
#pragma unroll
    for (int item = 0; item < items; item++)
      if (is_there(item)) end = min(end, pair[item].end);
    Stamps<backward_stamps> stamps;
#pragma unroll 1
    for (int t = longest - 1; t >= 0; t--) {
      float x[items];
#pragma unroll
      for (int item = 0; item < items; item++) x[item] = pair[item].current(t);
      products.publish(x);
#pragma unroll
      for (int item = 0; item < items; item++) {
        float* to = opaque(gx.of(item, job.bytes_of_item));  // computed outside of the branch
        if (pair[item].works(t)) *to = x[item];
      }
      gx.advance(job.row_bytes);
      stamps.end(0);
      products.await();
      stamps.end(1);
      // Work that needs no product is in the same basic block, so that it overlaps the tensor
      // cores.
      const float* stage = stages.wait();
#pragma unroll
      for (int item = 0; item < items; item++)
        pair[item].read(t, stage + 2 * item * threads, threads);
      find_slopes(pair);
      stages.advance(copy);
      stamps.end(2);
      const typename Products::Sums found = products.multiply();
      stamps.end(3);
      if (t == due) [[unlikely]] {
        prepare(pair, t);
        find_slopes(pair);
        due = due_before(pair, t);
      }
      // For the last d + 1 steps t the slots still hold rows of the items before.
      const bool reaches = t < longest - 1 - job.delay;
#pragma unroll
      for (int item = 0; item < items; item++)
        pair[item].step(reaches ? products.carried(found, item) : 0.f);
      if (t > end) [[unlikely]]
#pragma unroll
        for (int item = 0; item < items; item++) pair[item].add_last_state(t);
      products.advance();
      products.end_step();
      stamps.end_step(4);
    }
    products.finish();
    stamps.store();
#pragma unroll
    for (int item = 0; item < items; item++) pair[item].store_first_state();
    if (!job.f.gfirst.z) return;
    const int written = products.written, read = products.read;  // as nothing is written
#pragma unroll 1
    for (int t = -1; t >= -1 - job.delay; t--) {
      const auto found = products.multiply();
#pragma unroll
      for (int item = 0; item < items; item++)
        pair[item].store_first_z(t, products.carried(found, item));
      products.advance();
    }
    products.written = written;
    products.read = read;
  }
};

}  // namespace lsnn::cuda
