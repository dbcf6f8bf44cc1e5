// Shared memory of a block, and shapes of launches. Needs no device: plan.cpp computes sizes by the
// structures with which the kernels allocate.
#pragma once
#include "../alif.h"
#include "../arena.h"

namespace lsnn::cuda {

// Threads of a block: limited by registers, 168 for each, or 255 if the addresses of the rows have
// 64 bits.
inline constexpr int most_threads_forward = 384;
constexpr int most_threads_backward(bool rows_in_shared) { return rows_in_shared ? 384 : 256; }
inline constexpr int list_size = 256;  // capacity of a warp's list of neurons: 8 words

inline constexpr int64_t shared_of_every_gpu = 48 << 10;  // bytes of a block, without opting in

LSNN_INLINE int64_t padded(int64_t n) { return (n + 3) / 4 * 4; }  // whole quads

struct Shape {
  int groups;  // of a block
  int threads;  // of a group
  int ranks;  // blocks that share an item
  int slots;  // steps whose spikes or dL/dc a block stores
  int parts = 0;  // bfloat16 numbers that a factor is split into; 0: no matrices
  int items = 1;  // of a group: for each a lane has a neuron
};

// The neurons of a rank: full words of 32, so that a word of spikes has one writer.
struct Slice {
  int word, words;  // first and number
  int neuron, width;  // first and number, padded to whole quads; the rows of a slice are this long

  LSNN_METHOD Slice(int64_t N, int ranks, int rank) {
    const int all = (int)lsnn::words(N), each = (all + ranks - 1) / ranks;
    word = each * rank < all ? each * rank : all;
    words = all - word < each ? all - word : each;
    neuron = 32 * word;
    width = ranks == 1 ? (int)padded(N) : 32 * each;
  }
};

// Blocks of a cluster that have neurons; the last ones may have none.
LSNN_INLINE int ranks_with_neurons(int64_t N, int ranks) {
  const int all = (int)words(N), each = Slice(N, ranks, 0).words;
  return (all + each - 1) / each;
}

// ------------------------------------------------------------------------------ the whole sequence
template <class T> struct ForwardShared {
  T* w;  // [S,N,NP], or null where rows stay in global memory
  uint32_t* ring;  // [groups,slots,words(N)]
  uint16_t* list;  // [warps,list_size]

  LSNN_METHOD ForwardShared(Arena& m, const Layer& l, const Shape& shape, bool rows_in_shared) {
    w = rows_in_shared ? m.take<T>(l.S * l.N * padded(l.N)) : nullptr;
    ring = m.take<uint32_t>(shape.groups * shape.slots * words(l.N));
    list = m.take<uint16_t>(shape.groups * shape.threads / 32 * list_size);
  }
};

// Of the kernel in lsnn_forward.cuh.
inline constexpr int most_threads_lsnn = 256;
// Of a group: with rows in shared memory, and in global memory.
inline constexpr int most_warps_lsnn = 2, most_warps_lsnn_gather = 4;
inline constexpr int stages_of_current = 8;  // steps whose currents are loaded or in flight

// Words of a slot of spike lists: offsets of the rows of spikes, 128 for each warp, then their
// numbers.
constexpr int list_words(int warps) { return warps * 128 + 4; }

struct LsnnShared {
  float* w;  // [N + 1,NP], or null where rows stay in global memory
  float* current;  // [groups,stages,4 threads]
  uint32_t* lists;  // [groups,slots,list_words]

  LSNN_METHOD LsnnShared(Arena& m, const Layer& l, const Shape& shape, bool rows_in_shared) {
    w = rows_in_shared ? m.take<float>((l.N + 1) * padded(l.N)) : nullptr;
    current = m.take<float>((int64_t)shape.groups * stages_of_current * 4 * shape.threads);
    lists = m.take<uint32_t>((int64_t)shape.groups * shape.slots * list_words(shape.threads / 32));
  }
};

// Of the kernel in lsnn_backward.cuh.
inline constexpr int most_threads_lsnn_backward = 480;  // a group needs one of 15 barriers
inline constexpr int most_warps_lsnn_backward = 8;  // of a group
// Threads of all groups of `warps` warps that fit in a block.
constexpr int whole_groups_lsnn_backward(int warps) {
  return most_threads_lsnn_backward / (32 * warps) * 32 * warps;
}
inline constexpr int stages_of_record = 4;  // steps that are loaded or in flight
inline constexpr int steps_of_replay = 8;  // whose adaptation is stored; divides segment

struct LsnnBackwardShared {
  float* w;  // [N,NP]
  float* record;  // [groups,stages,2,threads] y of the step before, dL/dz of the step
  float* a;  // [groups,steps_of_replay,threads] adaptation before the steps
  float* dc;  // [groups,slots,NP]
  uint32_t* list;  // [groups,2,threads] of each warp

  LSNN_METHOD LsnnBackwardShared(Arena& m, const Layer& l, const Shape& shape) {
    const int64_t NP = padded(l.N), threads = (int64_t)shape.groups * shape.threads;
    w = m.take<float>(l.N * NP);
    record = m.take<float>(threads * stages_of_record * 2);
    a = m.take<float>(threads * steps_of_replay);
    dc = m.take<float>((int64_t)shape.groups * shape.slots * NP);
    list = m.take<uint32_t>(threads * 2);
  }
};

// Of both kernels by matrices.
inline constexpr int side_of_tile = 16;  // rows and columns of W in the left factor of an mma
inline constexpr int words_of_fragment = 4 * 32;  // such a factor, of all lanes
inline constexpr int pairs_of_lane = 2;  // items of a lane's neuron
// Items that run through the steps together.
LSNN_INLINE int items_of_block(const Shape& shape) { return shape.groups * shape.items; }

// Of the kernel in lsnn_matrix_cluster.cuh.
inline constexpr int columns_of_mma = 8;  // items of a cluster
inline constexpr int groups_of_matrix = columns_of_mma / pairs_of_lane;
inline constexpr int most_words_matrix = 2;  // of a block; a group has a warp for each
// Of a group in shared memory: a constant, also if a block has fewer.
inline constexpr int threads_of_matrix = 32 * most_words_matrix;
inline constexpr int barriers_of_matrix = 4;  // in shared memory, see cluster_rows.cuh
inline constexpr int shares_of_sum = 2;  // of the columns: warps whose partial sums are added
inline constexpr int words_of_unit = 4;  // one part of dL/dc of eight adjacent neurons
// Of a layer; limited by shared memory with three parts.
constexpr int most_words_of_parts(int parts) { return parts < 3 ? 16 : 14; }
// Of the kernel for a layer, which may be for more words; 7 is the paper's network.
LSNN_INLINE int words_of_kernel(int64_t N, int parts) {
  const int all = (int)words(N);
  return all <= 4 ? 4 : all <= 7 ? 7 : all <= 8 ? 8 : most_words_of_parts(parts);
}
// Of a warp's fragments, parts x words, those in registers; the others are in shared memory.
constexpr int held_fragments(int of_kernel, int parts) {
  const int most = parts < 3 ? 25 : of_kernel < 10 ? 21 : 20;
  return of_kernel * parts < most ? of_kernel * parts : most;
}
// Stride of an item: an odd multiple of half a row of banks, so that the two items that a quarter
// of a warp loads have no bank conflict.
constexpr int units_of_item(int of_kernel) { return 4 * of_kernel + (of_kernel % 2 ? 0 : 4); }
// [parts,items,units,words_of_unit]
constexpr int numbers_of_slot(int of_kernel, int parts) {
  return parts * columns_of_mma * units_of_item(of_kernel) * words_of_unit;
}
inline constexpr int rows_of_sum = 32 + 4;  // padded: stores of a warp have no bank conflicts

struct LsnnMatrixShared {
  uint32_t* w;  // [warps,fragments not in registers,words_of_fragment]
  float* dc;  // [slots,parts,items,units,words_of_unit]
  float* sums;  // [words of the block,2,shares_of_sum,items,rows_of_sum]
  float* record;  // [groups,stages_of_record,items of a lane,2,threads_of_matrix]
  float* a;  // [groups,items of a lane,steps_of_replay,threads_of_matrix]
  uint16_t* given;  // [warps,parts,items of a lane,32] of dL/dc, to be packed into units
  uint64_t* mbarriers;  // [barriers_of_matrix]

  LSNN_METHOD LsnnMatrixShared(Arena& m, const Layer& l, const Shape& shape) {
    const int of_kernel = words_of_kernel(l.N, shape.parts), words_of_block = shape.threads / 32;
    const int64_t pairs = columns_of_mma * threads_of_matrix;
    w = m.take<uint32_t>((int64_t)groups_of_matrix * words_of_block * words_of_fragment *
                         (of_kernel * shape.parts - held_fragments(of_kernel, shape.parts)));
    dc = m.take<float>((int64_t)shape.slots * numbers_of_slot(of_kernel, shape.parts));
    sums = m.take<float>(2 * words_of_block * shares_of_sum * columns_of_mma * rows_of_sum);
    record = m.take<float>(pairs * stages_of_record * 2);
    a = m.take<float>(pairs * steps_of_replay);
    given = m.take<uint16_t>((int64_t)columns_of_mma * shape.threads * shape.parts);
    mbarriers = m.take<uint64_t>(barriers_of_matrix);
  }
};

// Of the kernel in lsnn_matrix_block.cuh.
inline constexpr int most_parts_of_block = 2;
inline constexpr int most_warps_block_matrix = 7;  // whose registers hold the weights
// Stride of a column of dL/dc, in bfloat16 numbers: a multiple of 128 bytes plus 32, so that loads
// of four columns have no bank conflicts.
constexpr int numbers_of_column(int threads) { return (threads + 63) / 64 * 64 + 16; }

struct LsnnBlockMatrixShared {
  uint32_t* lower;  // [rows / side_of_tile,across,words_of_fragment] with two parts
  uint16_t* dc;  // [slots,columns,column]
  float* record;  // [stages_of_record,items of a lane,2,threads]
  float* a;  // [items of a lane,steps_of_replay,threads]

  LSNN_METHOD LsnnBlockMatrixShared(Arena& m, const Layer&, const Shape& shape) {
    const int64_t tiles = shape.threads / side_of_tile, pairs = pairs_of_lane * shape.threads;
    lower = m.take<uint32_t>(shape.parts == 2 ? tiles * tiles * words_of_fragment : 0);
    dc = m.take<uint16_t>((int64_t)shape.slots * pairs_of_lane * shape.parts *
                          numbers_of_column(shape.threads));
    record = m.take<float>(pairs * stages_of_record * 2);
    a = m.take<float>(pairs * steps_of_replay);
  }
};

template <class T> struct BackwardShared {
  T* w;  // [S,rows,NP] rows of this rank's neurons, or null where they stay in global memory
  T* dc;  // [groups,slots,NP]
  T* dz;  // [groups,rows] the products of a step
  uint64_t* mbarriers;  // [groups,2] in a cluster
  uint32_t* active;  // [groups,chunk,words] active neurons
  uint16_t* list;  // [warps,list_size]

  LSNN_METHOD BackwardShared(Arena& m, const Layer& l, const Shape& shape, bool rows_in_shared) {
    const Slice slice(l.N, shape.ranks, 0);
    const int64_t NP = padded(l.N);
    w = rows_in_shared ? m.take<T>(l.S * slice.width * NP) : nullptr;
    dc = m.take<T>((int64_t)shape.groups * shape.slots * NP);
    dz = m.take<T>(shape.groups * slice.width);
    mbarriers = m.take<uint64_t>(shape.ranks > 1 ? shape.groups * 2 : 0);
    active = m.take<uint32_t>(shape.groups * chunk * slice.words);
    list = m.take<uint16_t>(shape.groups * shape.threads / 32 * list_size);
  }
};

// ----------------------------------------------------------------------------------------- readout
inline constexpr int readout_steps = 32;  // that a block processes at a time
// Odd where many lanes load the same output of their neurons, so that they have no bank conflicts.
LSNN_INLINE int stride_of_weights(int64_t O) { return int(O < 4 ? O : O | 1); }

template <class T> struct ReadoutShared {
  T* w;  // [N,stride_of_weights]
  T* sum;  // [readout_steps,padded(O)] w z of each step; backwards dL/d of it
  T* p;  // [O] carried; backwards dL/dp
  // backwards:
  T* gw;  // [N,O] of the items of the block
  T* gbias;  // [O]
  uint32_t* bits;  // [readout_steps,words(N)]

  LSNN_METHOD ReadoutShared(Arena& m, int64_t N, int64_t O, bool backward) {
    w = m.take<T>(N * stride_of_weights(O));
    sum = m.take<T>(readout_steps * padded(O));
    p = m.take<T>(O);
    gw = m.take<T>(backward ? N * O : 0);
    gbias = m.take<T>(backward ? O : 0);
    bits = m.take<uint32_t>(backward ? readout_steps * words(N) : 0);
  }
};
// Whether a readout fits in the shared memory of every GPU; wide: float64.
inline bool readout_fits(int64_t N, int64_t O, bool wide) {
  if (N < 1 || O < 1 || N > 1 << 16 || O > 1 << 16) return false;
  Arena counted;
  if (wide) ReadoutShared<double>(counted, N, O, true);
  else ReadoutShared<float>(counted, N, O, true);
  return counted.used <= shared_of_every_gpu;
}

// --------------------------------------------------------------------------------- weight gradient
struct WeightTiles {
  int rows, columns;  // of a tile; rows: full words of spikes, at most list_size
  int down, across;  // tiles of a matrix
  int slices;  // of the steps and items
  int matrices = 1;  // see alif.h

  LSNN_METHOD int64_t of_matrix() const { return (int64_t)down * across; }
  LSNN_METHOD int64_t count() const { return matrices * of_matrix(); }
};
inline constexpr int items_at_once = 16, loads_at_once = 8;

// The same by tensor cores, see spike_product.cuh: tiles of a block, whose warps have 64 rows and
// 32 columns each.
struct SpikeTiles {
  int down, across;  // tiles of the matrix
  int slices;
  int parts = exact_parts;  // bfloat16 numbers that the right factor is split into

  LSNN_METHOD int64_t count() const { return (int64_t)down * across; }
};
inline constexpr int words_of_warp = 2, warps_down = 2, warps_across = 4;
inline constexpr int warps_of_product = warps_down * warps_across;

// Items of steps [T,B] for which the step `delay` + 1 before is in the sequence.
LSNN_INLINE int64_t spike_products(const Layer& l, int64_t delay) {
  return l.T > delay + 1 ? (l.T - delay - 1) * l.B : 0;
}

template <class T> struct WeightShared {
  T* sum;  // [rows,columns]
  // [items_at_once,list_size] rows of the tile whose spikes reach these steps
  uint16_t* list;
  int* listed;  // [items_at_once] their numbers

  LSNN_METHOD WeightShared(Arena& m, const WeightTiles& tiles) {
    sum = m.take<T>((int64_t)tiles.rows * tiles.columns);
    list = m.take<uint16_t>(items_at_once * list_size);
    listed = m.take<int>(items_at_once);
  }
};

}  // namespace lsnn::cuda
