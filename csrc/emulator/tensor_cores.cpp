// The product of matrices by tensor cores.
#include <algorithm>
#include <bit>
#include <cmath>

#include "scheduler.h"

namespace emulator {

// A sum as tensor cores are observed to form it: the addends are aligned to the largest one and cut
// off two bits below the last bit of a float of its size, added exactly, and the sum is cut off to
// a float. Sums that are not finite need no such care.
static float add_truncated(const double (&addends)[17]) {
  double plain = 0, largest = 0;
  for (double x : addends) {
    plain += x;
    largest = std::max(largest, std::abs(x));
  }
  if (!std::isfinite(plain) || largest == 0) return float(plain);
  const int last = std::ilogb(largest) - 25;  // the place of the last bit
  const double scale = std::ldexp(1.0, -last);
  int32_t sum = 0;  // 17 addends below 2^26
  for (double x : addends) sum += int32_t(x * scale);
  const double exact = std::ldexp(double(sum), last);
  const float nearest = float(exact);
  return std::abs(double(nearest)) > std::abs(exact) ? std::nextafter(nearest, 0.0f) : nearest;
}

void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  auto pair = [](uint32_t first, uint32_t second) { return first | (uint64_t)second << 32; };
  WarpOperation& o = active->join(~0u, "mma", place);
  o.values.of[current->lane] = {{pair(a[0], a[2]), pair(a[1], a[3]), pair(b[0], b[1])}};
  active->meet(o, false);
  const Exchanged& lanes = o.values;  // until this thread calls the emulator again
  auto number = [](uint64_t word, unsigned shift) {
    return std::bit_cast<float>((uint32_t)(uint16_t)(word >> shift) << 16);
  };
  const unsigned row = current->lane / 4, column = current->lane % 4 * 2;
  for (unsigned i = 0; i < 4; i++) {
    double addends[17];
    for (unsigned k = 0; k < 16; k++) {
      const unsigned t = k % 8 / 2, shift = k / 8 * 32 + k % 2 * 16;
      addends[k] = double(number(lanes.of[4 * row + t].word[i / 2], shift)) *
                   double(number(lanes.of[4 * (column + i % 2) + t].word[2], shift));
    }
    addends[16] = c[i];
    c[i] = add_truncated(addends);
  }
}

}  // namespace emulator
