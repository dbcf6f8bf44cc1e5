// Sums over the lanes of a warp, of several numbers at once.
#pragma once
#include "device.h"

namespace lsnn::cuda {

// The sum of x[i] over all lanes, in the 32 / rows lanes from i * 32 / rows on. In each round a
// lane gives half of what it has, or the last one, to the lane that is `away`, and adds what it
// gets.
template <int away = 16, int rows, class T> LSNN_DEVICE T sum_lanes(const T (&x)[rows], int lane) {
  static_assert((rows & (rows - 1)) == 0);
  constexpr int half = rows > 1 ? rows / 2 : 1;
  const bool upper = lane & away;
  T sum[half];
#pragma unroll
  for (int i = 0; i < half; i++) {
    const T kept = upper ? x[rows - half + i] : x[i], given = upper ? x[i] : x[rows - half + i];
    sum[i] = kept + __shfl_xor_sync(~0u, given, away);
  }
  if constexpr (away == 1) return sum[0];
  else return sum_lanes<away / 2>(sum, lane);
}

}  // namespace lsnn::cuda
