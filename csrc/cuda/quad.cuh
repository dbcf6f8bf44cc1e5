// Four adjacent neurons, which a lane owns. Full quads move as 16 bytes if aligned.
#pragma once
#include "../bfloat16.h"
#include "device.h"

namespace lsnn::cuda {

template <class X> struct alignas(sizeof(X) * 4 < 16 ? sizeof(X) * 4 : 16) Quad {
  X of[4];

  LSNN_METHOD X& operator[](int i) { return of[i]; }
  LSNN_METHOD const X& operator[](int i) const { return of[i]; }
  LSNN_METHOD static Quad all(X x) { return {{x, x, x, x}}; }
  // The same by selection: a run-time index would move the quad to local memory.
  LSNN_METHOD X pick(int i) const {
    return i < 2 ? (i == 0 ? of[0] : of[1]) : (i == 2 ? of[2] : of[3]);
  }
  LSNN_METHOD void put(int i, X x) {
    of[0] = i == 0 ? x : of[0];
    of[1] = i == 1 ? x : of[1];
    of[2] = i == 2 ? x : of[2];
    of[3] = i == 3 ? x : of[3];
  }
};

template <class X> LSNN_DEVICE bool on_boundary(const X* p) {
  return (uintptr_t)p % alignof(Quad<X>) == 0;
}

// The first `live` of four numbers, zeros for the others; p may be unaligned.
template <class X> LSNN_DEVICE Quad<X> load(const X* p, int live) {
  if (live >= 4 && on_boundary(p)) return load_whole<Quad<X>>(p);
  Quad<X> q{};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < live) q[i] = p[i];
  return q;
}
template <class X> LSNN_DEVICE void store(X* p, const Quad<X>& q, int live) {
  if (live >= 4 && on_boundary(p)) {
    store_whole(p, q);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < live) p[i] = q[i];
}

// The same; whole: the quad is full and aligned, or has no neurons.
template <bool whole, class X> LSNN_DEVICE Quad<X> load_row(const X* p, int live) {
  if constexpr (whole) return live ? load_whole<Quad<X>>(p) : Quad<X>{};
  else return load(p, live);
}
template <bool whole, class X> LSNN_DEVICE void store_row(X* p, const Quad<X>& q, int live) {
  if constexpr (!whole) store(p, q, live);
  else if (live) store_whole(p, q);
}

// A quad of a packed array, which is always aligned.
template <class X> LSNN_DEVICE const Quad<X>& quad_at(const X* p) {
  return *reinterpret_cast<const Quad<X>*>(p);
}

// The same of a packed array that is constant during the kernel, in shared or in global memory.
template <bool shared, class X> LSNN_DEVICE Quad<X> constant_quad(const X* p) {
  if constexpr (shared) return quad_at(p);
  else return load_constant(&quad_at(p));
}

template <class T, class X> LSNN_DEVICE Quad<T> widen(const Quad<X>& q) {
  return {{T(q[0]), T(q[1]), T(q[2]), T(q[3])}};
}

}  // namespace lsnn::cuda
