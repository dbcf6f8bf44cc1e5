// The backward pass of the paper's network by matrices in a cluster. With one delay d
//
//   dL/dz_j[t] = outside + local + sum over k of w_jk dL/dc_k[t + 1 + d]
//
// and the last term is a product of matrices: W (16 x 16 tiles) times dL/dc of eight items, the
// eight columns of an mma, which run through the steps together. Factors are split into one, two or
// three bfloat16 numbers, their parts. Three are exact; of fewer the last is rounded. The smallest
// products of parts are left out: they are below that rounding, or below that of float32.
//
// A block has the rows of W for its own neurons, at most two words of 32. Four warps share a word.
// Each owns the 32 neurons in two of the eight items (a lane one neuron), and multiplies 16 of the
// 32 rows by one half of the columns, with its tiles in registers as far as they fit. `sums`
// exchanges the results between the four warps.
//
// The model tests the old membrane, so that dL/dc[t] follows from dL/dv and dL/di after the step,
// without dL/dz[t]. A warp therefore sends dL/dc of a step before it has the product for that step.
// Order of step n, which is t = T - 1 - n for the first items:
//
//   publish(n)     dL/dc from v, i     -> row n of every block (st.async)
//   await          wait until row n - 1 is complete, see cluster_rows.cuh
//   read, slopes   state before the step, psi: needs no product
//   multiply(n)    W times row n - 1 - d -> sums, barrier of the four warps, add two halves
//   step           dL/d of the state before the step, from the product
//
// Invariant. In multiply(n) the d + 4 slots of a block hold the rows
//
//   n-1-d        n-d ... n-1    n, n+1, n+2
//   being read   complete       may be arriving, from this warp and from faster ones
//
// Proof. Row n - 1 - d is complete: rows are awaited in order, and n - 1 - d <= n - 1. It is not
// overwritten: its slot is next that of row n + 3, which a warp sends after wait(n + 1); then all
// warps have sent row n + 1, and before that finished multiply(n). With d + 3 slots row n + 2 would
// follow wait(n), when warps have sent row n, but may not have multiplied. Of the two buffers of
// `sums` that of step n is written again in step n + 2, behind the barrier of step n + 1, at which
// each of the four warps arrives after it has read the sums of step n. After the last step, N - 1,
// d + 1 products follow for the spikes before the sequence. They read rows N - 1 - d to N - 1 and
// publish nothing, so that warps which are ahead have sent at most rows N and N + 1 of the next
// items: d + 3 rows, in different slots.
#pragma once
#include "cluster_rows.cuh"
#include "lsnn_items.cuh"

namespace lsnn::cuda {

// words_of_layer: words of the layer, or more.
template <int words_of_layer, int parts>
struct LsnnClusterProducts : LsnnSlots<numbers_of_slot(words_of_layer, parts), 3> {
  using Slots = typename LsnnClusterProducts::LsnnSlots;
  using Slots::written, Slots::read;
  static constexpr int items = pairs_of_lane, groups = groups_of_matrix;
  using Rows = ClusterRows<barriers_of_matrix>;
  static constexpr int tiles = words_of_layer;  // of a warp: half of the columns
  static constexpr int held = held_fragments(tiles, parts);
  // Products of a part of W with one of dL/dc, each with its own sums, so that consecutive mmas are
  // independent.
  static constexpr int products = parts * (parts + 1) / 2, chains = products == 1 ? 2 : products;
  const Group group;
  const int word;  // of the warp's neurons
  Rows rows;
  static constexpr int units = units_of_item(words_of_layer),
                       part = numbers_of_slot(words_of_layer, 1);
  uint16_t* const given;  // [parts,items,32] of the warp
  float* const dc;  // [slots,parts,all items,units,words_of_unit]
  float* sums;  // [2,shares_of_sum,all items,rows_of_sum] of the word, from the current buffer on
  uint32_t* const beyond;  // [parts tiles - held,words_of_fragment] from the lane's element on
  int turn = sums_of_step;  // to the other buffer of sums
  Quad<uint32_t> fragments[held];

  __device__ __forceinline__ int tile_of_rows() const { return group.id % 2; }
  __device__ __forceinline__ int share() const { return group.id / 2; }
  // The first word of columns of the share. With an odd number of words each share has one tile of
  // the middle word, as its last.
  __device__ __forceinline__ int first_word() const { return share() * ((tiles + 1) / 2); }
  static constexpr int middle_word = tiles / 2,
                       sums_of_step = shares_of_sum * columns_of_mma * rows_of_sum;

  // from: [N,NP], all weights; 0 beyond. A lane has eight adjacent columns of a word, four in each
  // tile; columns may be permuted within an mma, as long as both factors agree.
  __device__ __forceinline__ LsnnClusterProducts(const Layer& l, const Shape& shape,
                                                 const LsnnMatrixShared& shared, const Group& own,
                                                 int own_word, const Rows& cluster_rows,
                                                 const float* from)
      : Slots(shape.slots),
        group(own),
        word(own_word),
        rows(cluster_rows),
        given(shared.given + (int)threadIdx.x / 32 * parts * items * 32),
        dc(shared.dc),
        sums(shared.sums + own.warp() * 2 * sums_of_step),
        beyond(shared.w + ((int)threadIdx.x / 32 * (parts * tiles - held) * 32 + own.lane()) * 4) {
    const int N = (int)l.N, NP = (int)padded(l.N), lane = group.lane(),
              row = 32 * word + side_of_tile * tile_of_rows() + lane / 4;
#pragma unroll
    for (int tile = 0; tile < tiles; tile++) {
      const bool in_middle = tiles % 2 && tile == tiles - 1;
      const int of_word = in_middle ? middle_word : first_word() + tile / 2,
                half = in_middle ? share() : tile % 2,
                column = 32 * of_word + lane % 4 * 8 + half * 4;
      Quad<float> x[2] = {};
#pragma unroll
      for (int below = 0; below < 2; below++)
        if (row + 8 * below < N && column < NP)
          x[below] = quad_at(from + (int64_t)(row + 8 * below) * NP + column);
#pragma unroll
      for (int of = 0; of < parts; of++) {
        const Quad<uint32_t> fragment = take_fragment(x[0], x[1]);
        const int at = of * tiles + tile;
        if (at < held) fragments[at < held ? at : 0] = fragment;
        else store_whole(beyond + (at - held) * words_of_fragment, fragment);  // for this lane
      }
    }
  }

  // x: dL/dc of the lane's neuron in its items. A unit is one part of eight adjacent neurons in an
  // item; eight lanes send the units of the warp to a block.
  __device__ __forceinline__ void publish(const float (&x)[items]) {
    rows.begin_step();
    const int lane = group.lane(), octet = lane % 4, item = lane / 4 % 2;
    float rest[items] = {x[0], x[1]};
    Quad<float> unit[parts];
#pragma unroll
    for (int of = 0; of < parts; of++) {
      const uint32_t own = take_upper(rest[0], rest[1]);  // of both items
      given[of * items * 32 + lane] = (uint16_t)own;
      given[(of * items + 1) * 32 + lane] = (uint16_t)(own >> 16);
    }
    warp_barrier(Where::current());
#pragma unroll
    for (int of = 0; of < parts; of++)
      unit[of] = quad_at((const float*)(given + (of * items + item) * 32 + 8 * octet));
    const int at = 4 * word + octet;
    float* to = dc + written + ((group.id + item * groups) * units + at) * words_of_unit;
    const auto send = [&](int rank) {
#pragma unroll
      for (int of = 0; of < parts; of++)
        rows.send_if(rank < rows.ranks && 8 * at < rows.NP, rank, to + of * part, unit[of].of);
    };
    send(lane / 8);
    if (rows.ranks > 4) send(4 + lane / 8);
    rows.number++;
  }

  __device__ __forceinline__ void await() const { rows.wait(rows.number - 2); }
  struct Sums { float of[items]; };
  // unit: a unit of dL/dc for each part, of the lane's column; half: tile of the word.
  __device__ __forceinline__ void add_tile(const Quad<uint32_t> (&unit)[parts], int half, int tile,
                                           float (&sum)[chains][4]) const {
    int product = 0;
#pragma unroll
    for (int left = 0; left < parts; left++) {
      const int at = left * tiles + tile;
      const Quad<uint32_t> fragment = at < held ? fragments[at < held ? at : 0]
                                                : quad_at(beyond + (at - held) * words_of_fragment);
#pragma unroll
      for (int right = 0; right < parts - left; right++, product++) {
        const uint32_t factor[2] = {unit[right][2 * half], unit[right][2 * half + 1]};
        mma_m16n8k16_bf16(sum[products == 1 ? tile % 2 : product], fragment.of, factor);
      }
    }
  }
  // The product with the row of step t + 1 + d.
  __device__ __forceinline__ Sums multiply() {
    const int lane = group.lane();
    const float* from = dc + read + (lane / 4 * units + lane % 4) * words_of_unit;
    const float* of_share = from + first_word() * 4 * words_of_unit;
    float sum[chains][4] = {};
#pragma unroll
    for (int of_word = 0; of_word < tiles / 2; of_word++) {
      Quad<uint32_t> unit[parts];
#pragma unroll
      for (int of = 0; of < parts; of++)
        unit[of] = quad_at((const uint32_t*)(of_share + of * part + of_word * 4 * words_of_unit));
      add_tile(unit, 0, 2 * of_word, sum);
      add_tile(unit, 1, 2 * of_word + 1, sum);
    }
    if constexpr (tiles % 2) {
      Quad<uint32_t> unit[parts]{};
#pragma unroll
      for (int of = 0; of < parts; of++) {
        uint32_t right[2];
        load_factor(from + of * part + middle_word * 4 * words_of_unit + 2 * share(), right);
        unit[of][0] = right[0];
        unit[of][1] = right[1];
      }
      add_tile(unit, 0, tiles - 1, sum);
    }
    constexpr int part_of_sum = columns_of_mma * rows_of_sum;
    float* own = sums;
    sums += turn;
    turn = -turn;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float all = sum[chains - 1][i];
#pragma unroll
      for (int chain = chains - 2; chain >= 0; chain--) all += sum[chain][i];
      own[share() * part_of_sum + (lane % 4 * 2 + i % 2) * rows_of_sum +
          side_of_tile * tile_of_rows() + i / 2 * 8 + lane / 4] = all;
    }
    barrier_sync_aligned<32 * groups>(1 + group.warp(), Where::current());
    Sums found;
    static_assert(shares_of_sum == 2);
#pragma unroll
    for (int item = 0; item < items; item++) {
      const float* of_item = own + (group.id + item * groups) * rows_of_sum + lane;
      found.of[item] = of_item[0] + of_item[part_of_sum];
    }
    return found;
  }
  __device__ __forceinline__ float carried(const Sums& found, int item) const {
    return found.of[item];
  }
  __device__ __forceinline__ void end_step() const {}
  // Waits for the last row.
  __device__ __forceinline__ void finish() const { rows.wait(rows.number - 1); }
};

template <int words_of_layer, int parts>
__global__ void __launch_bounds__(32 * groups_of_matrix * most_words_matrix, 1)
    lsnn_matrix_kernel(LsnnBackward job) {
  if (wrong_kernel<PaperSpec>(job.both, *job.p.flags)) return;
  const Layer& l = job.f.layer;
  const Shape& shape = job.shape;
  using Products = LsnnClusterProducts<words_of_layer, parts>;
  constexpr int groups = Products::groups, items = Products::items;
  // Warps of a word are adjacent, so that the warps of a scheduler have different words.
  const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
  const Group group{warp % groups, warp / groups * 32 + lane, threads_of_matrix},
      block = Group::mine((int)blockDim.x);
  Arena arena(shared_memory());
  const LsnnMatrixShared shared(arena, l, shape);
  const int word = Slice(l.N, shape.ranks, (int)cluster_rank()).word + group.warp();
  const int64_t bytes_of_step = (l.N + 7) / 8 * words_of_unit * 4 * parts * columns_of_mma;
  Products products(l, shape, shared, group, word,
                    typename Products::Rows(shared.mbarriers, block, l, shape, bytes_of_step),
                    (const float*)job.p.w);
  // Padding of dL/dc must be finite, as its weights are 0.
  for (int i = threadIdx.x; i < products.all; i += blockDim.x) shared.dc[i] = 0.f;
  cluster_sync();
  if (word >= (int)words(l.N)) return;  // it sends nothing
  LsnnItems<Products> pairs{job, group, word,
                            shared.record + group.id * stages_of_record * items * 2 * group.threads,
                            shared.a + group.id * items * steps_of_replay * group.threads};
  const int64_t team = blockIdx.x / shape.ranks, teams = gridDim.x / shape.ranks;
  for (int64_t b = team * columns_of_mma; b < l.B; b += teams * columns_of_mma)
    pairs.run(b, products, std::make_integer_sequence<int, items>());
}

}  // namespace lsnn::cuda
