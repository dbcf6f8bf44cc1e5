// Lists of the bits that are set in words of spikes, for the instruction set that this translation
// unit is compiled for. As in simd.h, all names have internal linkage.
#pragma once
#include "target.h"
#if LSNN_TARGET == LSNN_TARGET_NEON
#include <arm_neon.h>
#elif defined(__x86_64__)
#include <immintrin.h>
#endif
#include <stdint.h>

#include "../platform.h"

namespace lsnn {
namespace {

#if LSNN_TARGET == LSNN_TARGET_AVX2
// For each byte the indices of its set bits, ascending; the rest is undefined.
struct Places { uint8_t of[256][8]; };
constexpr Places places_of_bits() {
  Places places = {};
  for (int byte = 0; byte < 256; byte++)
    for (int bit = 0, n = 0; bit < 8; bit++)
      if (byte >> bit & 1) places.of[byte][n++] = (uint8_t)bit;
  return places;
}
alignas(64) constexpr Places places = places_of_bits();
#endif

// Appends first + stride * j for every set bit j, ascending, and returns the new length; `out` has
// room for 16 more. A loop over set bits mispredicts once per word, which costs more than adding
// the rows; instruction sets that can compress vectors avoid it. AVX-512 compresses the nonempty
// halves of words, and only the trip count mispredicts. With 16-byte vectors compressing is slower.
LSNN_INLINE int64_t set_bits(const uint32_t* row, int64_t n_words, uint32_t first, uint32_t stride,
                             uint32_t* out, int64_t n) {
#if LSNN_TARGET == LSNN_TARGET_AVX512
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i id = _mm512_add_epi32(_mm512_set1_epi32(first),
                                      _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)));
  for (int64_t w = 0; w < n_words; w += 8) {
    const __mmask8 valid = n_words - w < 8 ? (1u << (n_words - w)) - 1 : 0xff;
    const __m256i words = _mm256_maskz_loadu_epi32(valid, row + w);
    for (unsigned halves = _mm256_test_epi16_mask(words, words); halves; halves &= halves - 1) {
      const int64_t h = __builtin_ctz(halves);
      const unsigned bits = row[w + h / 2] >> 16 * (h % 2) & 0xffff;
      const __m512i base = _mm512_set1_epi32(stride * (uint32_t)(32 * w + 16 * h));
      _mm512_storeu_si512(out + n, _mm512_maskz_compress_epi32(bits, _mm512_add_epi32(id, base)));
      n += __builtin_popcount(bits);
    }
  }
#elif LSNN_TARGET == LSNN_TARGET_AVX2
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i id = _mm256_add_epi32(_mm256_set1_epi32(first),
                                _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride)));
  const __m256i next = _mm256_set1_epi32(8 * stride);
  for (int64_t w = 0; w < n_words; w++)
#pragma GCC unroll 4
    for (int shift = 0; shift < 32; shift += 8) {
      const unsigned bits = row[w] >> shift & 0xff;
      const __m256i which = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)places.of[bits]));
      _mm256_storeu_si256((__m256i*)(out + n), _mm256_permutevar8x32_epi32(id, which));
      n += __builtin_popcount(bits);
      id = _mm256_add_epi32(id, next);
    }
#else
  for (int64_t w = 0; w < n_words; w++)
    for (uint32_t bits = row[w]; bits; bits &= bits - 1)
      out[n++] = first + stride * (uint32_t)(32 * w + __builtin_ctz(bits));
#endif
  return n;
}

// Bit b of the result: whether any of 16 words has bit b.
LSNN_INLINE unsigned any_of_words(const uint16_t* words) {
  uint64_t each[4];
  memcpy(each, words, sizeof each);
  uint64_t any = each[0] | each[1] | each[2] | each[3];
  any |= any >> 32;
  return (unsigned)(any | any >> 16) & 0xffff;
}

// Bit i of the result: bit b of words[i], for 16 words.
LSNN_INLINE unsigned column_of_bits(const uint16_t* words, int b) {
#if LSNN_TARGET == LSNN_TARGET_AVX512
  return _mm256_test_epi16_mask(_mm256_loadu_si256((const __m256i*)words),
                                _mm256_set1_epi16((short)(1 << b)));
#elif defined(__SSE2__)
  const __m128i bit = _mm_set1_epi16((short)(1 << b));
  const __m128i low = _mm_and_si128(_mm_loadu_si128((const __m128i*)words), bit),
                high = _mm_and_si128(_mm_loadu_si128((const __m128i*)words + 1), bit);
  return _mm_movemask_epi8(_mm_packs_epi16(_mm_cmpeq_epi16(low, bit), _mm_cmpeq_epi16(high, bit)));
#elif LSNN_TARGET == LSNN_TARGET_NEON
  const uint16x8_t bit = vdupq_n_u16((uint16_t)(1 << b));
  const uint16x8_t low = vtstq_u16(vld1q_u16(words), bit),
                   high = vtstq_u16(vld1q_u16(words + 8), bit);
  const uint8x16_t weight = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t each =
      vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)), weight);
  return vaddv_u8(vget_low_u8(each)) | (unsigned)vaddv_u8(vget_high_u8(each)) << 8;
#else
  unsigned column = 0;
  for (int i = 0; i < 16; i++) column |= (unsigned)(words[i] >> b & 1) << i;
  return column;
#endif
}

}  // namespace
}  // namespace lsnn
