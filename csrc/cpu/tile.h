// A tile of batch items, as both passes use it: its place in the batch, and its memory.
#pragma once
#include "../arena.h"
#include "barrier.h"
#include "layout.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

// Items [b0, b0 + items) of the batch, and the neurons [n0, n1) of this member, padded to n_end.
// Rows of scratch memory are padded, [items,NP]; those of the caller are not, [B,N].
struct Tile {
  Member team;
  int64_t B, N, NP, full_items, b0, items;  // full_items: of a full tile
  // multiples of `pad`, except n1 = N: words of bits and cache lines have one writer
  int64_t n0, n1, n_end;
  const int64_t* lengths;  // [items] of Layer, or null
  int64_t longest;  // steps of the tile: those of its first item

  LSNN_METHOD Tile(const Layer& l, int64_t index, const Member& member)
      : team(member),
        B(l.B),
        N(l.N),
        NP(padded(l.N)),
        full_items(tile_items(l.B)),
        b0(index * full_items),
        items(b0 + full_items <= B ? full_items : B - b0),
        lengths(l.lengths ? l.lengths + b0 : nullptr),
        longest(l.length(b0)) {
    n0 = first_word(team.index) * 32;
    n_end = first_word(team.index + 1) * 32;
    n1 = n_end < N ? n_end : N;
  }

  LSNN_METHOD bool leads() const { return team.index == 0; }
  LSNN_METHOD int64_t first_word(int64_t member) const {
    return NP / pad * member / team.members * (pad / 32);
  }
  // this member's words of bits: [word0(), word0() + own_words())
  LSNN_METHOD int64_t word0() const { return n0 / 32; }
  LSNN_METHOD int64_t own_words() const { return (n1 - n0 + 31) / 32; }

  LSNN_METHOD int64_t length(int64_t b) const { return lengths ? lengths[b] : longest; }
  LSNN_METHOD int64_t shortest() const { return length(items - 1); }
  // Number of items with a step t; they come first. For t < 0: all items.
  LSNN_METHOD int64_t items_alive(int64_t t) const {
    if (!lengths) return items;
    int64_t alive = items;
    while (alive > 0 && lengths[alive - 1] <= t) alive--;
    return alive;
  }

  // Calls add(bits, n_words, first neuron) for the parts of past.bits(t, b, member), ascending: the
  // words of each member, or all.
  template <class Past, class F> LSNN_METHOD void each_member_bits(const Past& past, int64_t t,
                                                                   int64_t b, const F& add) const {
    if (past.members == 1) return add(past.bits(t, b, 0), words(N), int64_t(0));
    for (int64_t member = 0; member < past.members; member++) {
      const int64_t from = first_word(member), to = first_word(member + 1);
      add(past.bits(t, b, member) + from, to - from, 32 * from);
    }
  }

  // Rows of the tile have `stride` numbers, default NP. Zeros beyond N, and everywhere if `from` is
  // null.
  template <class T> LSNN_METHOD void copy_in(T* to, const void* from) const {
    copy_in(to, from, NP);
  }
  template <class T> LSNN_METHOD void copy_in(T* to, const void* from, int64_t stride) const {
    for (int64_t b = 0; b < items; b++)
      for (int64_t n = n0; n < n_end; n++)
        to[b * stride + n] = from && n < N ? ((const T*)from)[(b0 + b) * N + n] : T(0);
  }
  template <class T> LSNN_METHOD void copy_out(void* to, const T* from) const {
    copy_out(to, from, NP);
  }
  template <class T> LSNN_METHOD void copy_out(void* to, const T* from, int64_t stride) const {
    if (!to) return;
    for (int64_t b = 0; b < items; b++)
      memcpy((T*)to + (b0 + b) * N + n0, from + b * stride + n0, (n1 - n0) * sizeof(T));
  }
  // Streams rows [items,each,N] of this member to step t of the caller's [T,B,each,N].
  template <class T>
  LSNN_METHOD void stream_out(void* to, int64_t t, const T* from, int64_t each = 1) const {
    if (!to) return;
    const int64_t rows = items_alive(t) * each;
    T* row = (T*)to + (t * B + b0) * each * N;
    if (n1 - n0 == N) return stream_copy(row, from, rows * N);
    for (int64_t r = 0; r < rows; r++) stream_copy(row + r * N + n0, from + r * N + n0, n1 - n0);
  }
  // Zeros after the last step of each item, in columns [first, end) of the caller's
  // [steps,B,width].
  template <class T> LSNN_METHOD void clear_after_end(void* to, int64_t steps, int64_t width,
                                                      int64_t first, int64_t end) const {
    if (!to) return;
    for (int64_t t = shortest(); t < steps; t++)
      for (int64_t b = items_alive(t); b < items; b++)
        memset((T*)to + ((t * B + b0 + b) * width + first), 0, (end - first) * sizeof(T));
  }
  // The same of this member's neurons in the caller's [steps,B,each,N].
  template <class T>
  LSNN_METHOD void clear_after_end(void* to, int64_t steps, int64_t each = 1) const {
    for (int64_t r = 0; r < each; r++)
      clear_after_end<T>(to, steps, each * N, r * N + n0, r * N + n1);
  }
  // The same for Saved.carry, of segments that begin after the end.
  template <class T>
  LSNN_METHOD void clear_carry(void* to, int64_t n_states, int64_t steps, int64_t every) const {
    for (int64_t s = segments(shortest(), every); s < segments(steps, every); s++)
      for (int64_t state = 0; state < n_states; state++)
        for (int64_t b = items_alive(s * every); b < items; b++)
          memset((T*)to + ((s * n_states + state) * B + b0 + b) * N + n0, 0, (n1 - n0) * sizeof(T));
  }
};

}  // namespace
}  // namespace lsnn::cpu
