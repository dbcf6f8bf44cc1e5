// What the forward and the backward pass of a tile of batch items share: its place in the batch, and its scratch memory.
#pragma once
#include "../arena.h"
#include "packed.h"
#include "simd.h"
#include "team.h"

namespace lsnn::cpu {
namespace {

// Items [b0, b0 + items) of the batch, and of them the neurons [n0, n1) that this member of the team computes; up to n_end its
// rows are padded. A tile's own rows are padded, [items,NP]; the caller's are not, [B,N].
struct Tile {
  Member team;
  int64_t B, N, NP, many, b0, items;  // many: items of a full tile
  int64_t n0, n1, n_end;              // whole units of `pad`, but n1 at the end: words of bits and cache lines have one writer
  const int64_t* lengths;  // [items] of Layer, or null
  int64_t longest;  // steps of the tile: those of its first item

  LSNN_MEMBER Tile(const Layer& l, int64_t index, const Member& member)
      : team(member),
        B(l.B),
        N(l.N),
        NP(padded(l.N)),
        many(tile_items(l.B)),
        b0(index * many),
        items(b0 + many <= B ? many : B - b0),
        lengths(l.lengths ? l.lengths + b0 : nullptr),
        longest(l.length(b0)) {
    n0 = first_word(team.index) * 32, n_end = first_word(team.index + 1) * 32;
    n1 = n_end < N ? n_end : N;
  }

  LSNN_MEMBER bool leads() const { return team.index == 0; }
  LSNN_MEMBER int64_t first_word(int64_t member) const { return NP / pad * member / team.members * (pad / 32); }
  LSNN_MEMBER int64_t word0() const { return n0 / 32; }  // this member's words of bits: [word0(), word0() + own_words())
  LSNN_MEMBER int64_t own_words() const { return (n1 - n0 + 31) / 32; }

  LSNN_MEMBER int64_t length(int64_t q) const { return lengths ? lengths[q] : longest; }
  LSNN_MEMBER int64_t shortest() const { return length(items - 1); }
  // How many items have a step t; they are the first ones. Before the sequence all are there.
  LSNN_MEMBER int64_t items_alive(int64_t t) const {
    if (!lengths) return items;
    int64_t alive = items;
    while (alive > 0 && lengths[alive - 1] <= t) alive--;
    return alive;
  }

  // Calls add(bits, n_words, first neuron) for the parts of the spikes that past.bits(t, q, part) has, ascending: each member's
  // words, or all.
  template <class Past, class F> LSNN_MEMBER void each_part(const Past& past, int64_t t, int64_t q, const F& add) const {
    if (past.parts == 1) return add(past.bits(t, q, 0), words(N), int64_t(0));
    for (int64_t part = 0; part < past.parts; part++) {
      const int64_t from = first_word(part), to = first_word(part + 1);
      add(past.bits(t, q, part) + from, to - from, 32 * from);
    }
  }

  // Rows of the tile have `stride` numbers, NP if no other is named. Zeros beyond N, and everywhere when `from` is null.
  template <class T> LSNN_MEMBER void copy_in(T* to, const void* from) const { copy_in(to, from, NP); }
  template <class T> LSNN_MEMBER void copy_in(T* to, const void* from, int64_t stride) const {
    for (int64_t q = 0; q < items; q++)
      for (int64_t n = n0; n < n_end; n++) to[q * stride + n] = from && n < N ? ((const T*)from)[(b0 + q) * N + n] : T(0);
  }
  template <class T> LSNN_MEMBER void copy_out(void* to, const T* from) const { copy_out(to, from, NP); }
  template <class T> LSNN_MEMBER void copy_out(void* to, const T* from, int64_t stride) const {
    for (int64_t q = 0; to && q < items; q++) memcpy((T*)to + (b0 + q) * N + n0, from + q * stride + n0, (n1 - n0) * sizeof(T));
  }
  // Rows [items,N] of this member to those of step t of the caller, [T,B,N], past the caches. T: whatever is stored.
  template <class T> LSNN_MEMBER void stream_out(void* to, int64_t t, const T* from) const {
    if (!to) return;
    const int64_t alive = items_alive(t);
    T* row = (T*)to + (t * B + b0) * N;
    if (n1 - n0 == N) return stream_copy(row, from, alive * N);
    for (int64_t q = 0; q < alive; q++) stream_copy(row + q * N + n0, from + q * N + n0, n1 - n0);
  }
  // Zeros after the last step of each item, in columns [first, end) of the caller's
  // [steps,B,width].
  template <class T> LSNN_MEMBER void clear_after_end(void* to, int64_t steps, int64_t width,
                                                      int64_t first, int64_t end) const {
    if (!to) return;
    for (int64_t t = shortest(); t < steps; t++)
      for (int64_t q = items_alive(t); q < items; q++)
        memset((T*)to + ((t * B + b0 + q) * width + first), 0, (end - first) * sizeof(T));
  }
  template <class T> LSNN_MEMBER void clear_after_end(void* to, int64_t steps) const {
    clear_after_end<T>(to, steps, N, n0, n1);
  }
  // The same for the segments that begin there, of Saved.carry.
  template <class T> LSNN_MEMBER void clear_carry(void* to, int64_t steps, int64_t every) const {
    for (int64_t s = segments(shortest(), every); s < segments(steps, every); s++)
      for (int64_t part = 0; part < 4; part++)
        for (int64_t q = items_alive(s * every); q < items; q++)
          memset((T*)to + ((s * 4 + part) * B + b0 + q) * N + n0, 0, (n1 - n0) * sizeof(T));
  }
};

}  // namespace
}  // namespace lsnn::cpu
