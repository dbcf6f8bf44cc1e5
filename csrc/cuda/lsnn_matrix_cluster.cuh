// The backward pass of the paper's network by matrices in a cluster. Eight items go through the
// steps together: the eight columns of a mma. A block has the weights of its own neurons, 64 at
// most, and its warps hold them in registers from the first step to the last.
//
// A factor is the sum of one, two or three bfloat16 numbers, its parts. Three are a float, so that
// only sums round; with fewer the last of them is rounded. Of the products of parts the smallest
// are left out, which are below that rounding, or below that of a product in float32.
//
// Four warps have the same 32 neurons, each in two of the eight items. They share out the product:
// 16 rows of it each, and one half of the columns. Sums change hands in shared memory, behind a
// barrier of these four. What other warps need is dL/dc alone, for which one waits once in a step,
// see cluster_rows.cuh.
#pragma once
#include "cluster_rows.cuh"
#include "lsnn_items.cuh"

namespace lsnn::cuda {

// words_of_layer: of 32 neurons, or more than there are.
template <int words_of_layer, int parts>
struct LsnnClusterProducts : LsnnSlots<numbers_of_slot(words_of_layer, parts), 3> {
  using Slots = typename LsnnClusterProducts::LsnnSlots;
  using Slots::written, Slots::read;
  static constexpr int items = pairs_of_lane, groups = groups_of_matrix;
  using Rows = ClusterRows<barriers_of_matrix>;
  static constexpr int tiles = words_of_layer;  // of a warp: half of the columns
  static constexpr int held = held_fragments(tiles, parts);
  // Products of one part of W with one of dL/dc, and sums of their own, so that a mma does not wait
  // for the last one.
  static constexpr int products = parts * (parts + 1) / 2, chains = products == 1 ? 2 : products;
  const Group group;
  const int word;  // of the warp's neurons
  Rows rows;
  static constexpr int units = units_of_item(words_of_layer),
                       part = numbers_of_slot(words_of_layer, 1);
  uint16_t* const given;  // [parts,items,32] of the warp
  float* const dc;  // [slots,parts,all items,units,words_of_unit]
  float* sums;  // [2,shares_of_sum,all items,rows_of_sum] of the word, from those at hand on
  uint32_t* const beyond;  // [parts tiles - held,words_of_fragment] from the lane's place on
  int turn = sums_of_step;  // from the sums at hand to the others
  Quad<uint32_t> fragments[held];

  __device__ __forceinline__ int tile_of_rows() const { return group.id % 2; }
  __device__ __forceinline__ int share() const { return group.id / 2; }
  // The word of columns where the share begins. Of an odd number of words the one in the middle is
  // the last of both shares, each of which has a tile of it.
  __device__ __forceinline__ int first_word() const { return share() * ((tiles + 1) / 2); }
  static constexpr int middle_word = tiles / 2,
                       sums_of_step = shares_of_sum * columns_of_mma * rows_of_sum;

  // from: [N,NP], all weights. What is beyond is 0. Of a word a lane has eight neighbouring
  // columns, four in each tile; which place of a mma they take is ours to choose, as long as both
  // factors agree.
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
        else store_whole(beyond + (at - held) * words_of_fragment, fragment);  // for itself alone
      }
    }
  }

  // x: dL/dc of the lane's neuron in its items. A unit has one part of eight neighbouring neurons
  // in one item; eight lanes have those of the warp and send them to a block.
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
  // unit: of dL/dc, one of each part, in the lane's column; half: the tile of the word that they
  // are for.
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
  // Of the step d + 1 later, the newest that has to be there. What this step has sent, a warp may
  // send on before that.
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
  // All that was sent is there.
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
  // Warps of the same neurons are neighbours, so that those of a scheduler have different ones.
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
  // What pads the last tiles of dL/dc meets weights that are 0.
  for (int i = threadIdx.x; i < products.all; i += blockDim.x) shared.dc[i] = 0.f;
  cluster_sync();
  if (word >= (int)words(l.N)) return;  // it has nothing to do, and nobody waits for it
  LsnnItems<Products> pairs{job, group, word,
                            shared.record + group.id * stages_of_record * items * 2 * group.threads,
                            shared.a + group.id * items * steps_of_replay * group.threads};
  const int64_t team = blockIdx.x / shape.ranks, teams = gridDim.x / shape.ranks;
  for (int64_t b = team * columns_of_mma; b < l.B; b += teams * columns_of_mma)
    pairs.run(b, products, std::make_integer_sequence<int, items>());
}

}  // namespace lsnn::cuda
