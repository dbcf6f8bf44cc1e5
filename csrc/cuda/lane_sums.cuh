// Sums over the lanes of a warp, of several numbers at once.
#pragma once
#include "device.h"

namespace lsnn::cuda {

// Sums each x[i] over a warp, or over groups of `lanes` lanes; a lane returns the sum of x[lane %
// lanes * rows / lanes]. In each round lanes exchange half of their partial sums in pairs.
template <int lanes = 32, int rows, class T> LSNN_DEVICE T sum_lanes(T (&x)[rows], int lane) {
#pragma unroll
  for (int half = rows / 2, o = lanes / 2; half; half /= 2, o /= 2)
#pragma unroll
    for (int i = 0; i < half; i++) {
      const bool upper = lane & o;
      const T given = __shfl_xor_sync(~0u, upper ? x[i] : x[i + half], o);
      x[i] = (upper ? x[i + half] : x[i]) + given;
    }
#pragma unroll
  for (int o = lanes / rows / 2; o > 1; o /= 2) x[0] += __shfl_xor_sync(~0u, x[0], o);
  return x[0] + __shfl_xor_sync(~0u, x[0], 1);
}
LSNN_DEVICE int row_of_lane(int lane) {
  return (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
}

}  // namespace lsnn::cuda
