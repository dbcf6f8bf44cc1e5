// What the forward and the backward pass of a tile of batch items share: its place in the batch, and its scratch memory.
#pragma once
#include "../arena.h"
#include "packed.h"
#include "simd.h"

namespace lsnn::cpu {
namespace {

// Items [b0, b0 + items) of the batch. A tile's own rows are padded, [items,NP]; the caller's are not, [B,N].
struct Tile {
  int64_t B, N, NP, many, b0, items;  // many: items of a full tile

  LSNN_MEMBER Tile(const Layer& l, int64_t index)
      : B(l.B),
        N(l.N),
        NP(padded(l.N)),
        many(tile_items(l.B)),
        b0(index * many),
        items(b0 + many <= B ? many : B - b0) {}

  // Zeros beyond N, and everywhere when `from` is null.
  template <class T> LSNN_MEMBER void copy_in(T* to, const void* from) const {
    for (int64_t q = 0; q < items; q++)
      for (int64_t n = 0; n < NP; n++) to[q * NP + n] = from && n < N ? ((const T*)from)[(b0 + q) * N + n] : T(0);
  }
  template <class T> LSNN_MEMBER void copy_out(void* to, const T* from) const {
    for (int64_t q = 0; to && q < items; q++) memcpy((T*)to + (b0 + q) * N, from + q * NP, N * sizeof(T));
  }
};

}  // namespace
}  // namespace lsnn::cpu
