// Vectors of numbers for the target of this translation unit, see target.h.
//
// Arithmetic comes from the compiler's vector extension; masks, fma, partial and streaming access
// from intrinsics. All names have internal linkage, see platform.h.
//
// To add an instruction set see instruction_sets.h.
#pragma once
#include <string.h>

#include "../bfloat16.h"
#include "bits.h"

namespace lsnn {
namespace {

constexpr int vector_bytes = LSNN_VECTOR_BITS / 8;

// Register blocking: AVX-512 and NEON have 32 registers, the others 16, of which some hold factors.
// column_vectors: sums of a block of columns in events.h; product_items: items of a block of
// product_dense.h, two sums each; row_items: items of a row of product_active.h.
#if LSNN_TARGET == LSNN_TARGET_AVX512
#define LSNN_X86(name) _mm512_##name
enum { column_vectors = 16, product_items = 8, row_items = 16 };
#elif LSNN_TARGET == LSNN_TARGET_AVX2
#define LSNN_X86(name) _mm256_##name
enum { column_vectors = 14, product_items = 6, row_items = 8 };
#elif LSNN_TARGET == LSNN_TARGET_NEON
enum { column_vectors = 16, product_items = 8, row_items = 16 };
#else
#define LSNN_X86(name) _mm_##name
enum { column_vectors = 14, product_items = 4, row_items = 8 };
#endif

template <class T> struct NativeVector;
template <> struct NativeVector<float> {
  typedef float Type __attribute__((vector_size(vector_bytes)));
};
template <> struct NativeVector<double> {
  typedef double Type __attribute__((vector_size(vector_bytes)));
};

template <class T> struct Vec {
  using Native = typename NativeVector<T>::Type;
  using Whole = decltype(Native{} > Native{});  // integers as wide as T
  static constexpr int lanes = vector_bytes / sizeof(T);
  Native v;
  Vec() = default;
  LSNN_METHOD Vec(Native n) : v(n) {}
  LSNN_METHOD Vec(T x) : v(x - Native{}) {}
  LSNN_METHOD Vec operator-() const { return -v; }
};
template <class T> LSNN_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) { return a.v + b.v; }
template <class T> LSNN_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) { return a.v - b.v; }
template <class T> LSNN_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) { return a.v * b.v; }
template <class T> LSNN_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) { return a.v / b.v; }

// ------------------------------------------------------------------------------------------- masks
#if LSNN_TARGET == LSNN_TARGET_AVX512
template <class T> struct VecMask { unsigned k; };
template <int P> LSNN_INLINE unsigned compare(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask(a.v, b.v, P);
}
template <int P> LSNN_INLINE unsigned compare(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask(a.v, b.v, P);
}
template <class T> LSNN_INLINE VecMask<T> operator>(Vec<T> a, Vec<T> b) {
  return {compare<_CMP_GT_OQ>(a, b)};
}
template <class T> LSNN_INLINE VecMask<T> operator>=(Vec<T> a, Vec<T> b) {
  return {compare<_CMP_GE_OQ>(a, b)};
}
template <class T> LSNN_INLINE VecMask<T> operator<(Vec<T> a, Vec<T> b) {
  return {compare<_CMP_LT_OQ>(a, b)};
}
template <class T> LSNN_INLINE VecMask<T> operator<=(Vec<T> a, Vec<T> b) {
  return {compare<_CMP_LE_OQ>(a, b)};
}
template <class T> LSNN_INLINE VecMask<T> operator!=(Vec<T> a, Vec<T> b) {
  return {compare<_CMP_NEQ_UQ>(a, b)};
}
LSNN_INLINE Vec<float> select(VecMask<float> m, Vec<float> a, Vec<float> b) {
  return _mm512_mask_blend_ps(m.k, b.v, a.v);
}
LSNN_INLINE Vec<double> select(VecMask<double> m, Vec<double> a, Vec<double> b) {
  return _mm512_mask_blend_pd(m.k, b.v, a.v);
}
template <class T> LSNN_INLINE unsigned to_bits(VecMask<T> m) { return m.k; }
template <class T> LSNN_INLINE VecMask<T> from_bits(unsigned bits) { return {bits}; }
#else
template <class T> struct VecMask { typename Vec<T>::Whole k; };
template <class T> LSNN_INLINE VecMask<T> operator>(Vec<T> a, Vec<T> b) { return {a.v > b.v}; }
template <class T> LSNN_INLINE VecMask<T> operator>=(Vec<T> a, Vec<T> b) { return {a.v >= b.v}; }
template <class T> LSNN_INLINE VecMask<T> operator<(Vec<T> a, Vec<T> b) { return {a.v < b.v}; }
template <class T> LSNN_INLINE VecMask<T> operator<=(Vec<T> a, Vec<T> b) { return {a.v <= b.v}; }
template <class T> LSNN_INLINE VecMask<T> operator!=(Vec<T> a, Vec<T> b) { return {a.v != b.v}; }
template <class T> LSNN_INLINE Vec<T> select(VecMask<T> m, Vec<T> a, Vec<T> b) {
  return m.k ? a.v : b.v;
}
#if LSNN_TARGET == LSNN_TARGET_NEON
LSNN_INLINE unsigned to_bits(VecMask<float> m) {
  return vaddvq_u32(vandq_u32((uint32x4_t)m.k, uint32x4_t{1, 2, 4, 8}));
}
LSNN_INLINE unsigned to_bits(VecMask<double> m) {
  return (unsigned)vaddvq_u64(vandq_u64((uint64x2_t)m.k, uint64x2_t{1, 2}));
}
#elif defined(__SSE2__)
LSNN_INLINE unsigned to_bits(VecMask<float> m) {
  return (unsigned)LSNN_X86(movemask_ps)((Vec<float>::Native)m.k);
}
LSNN_INLINE unsigned to_bits(VecMask<double> m) {
  return (unsigned)LSNN_X86(movemask_pd)((Vec<double>::Native)m.k);
}
#else
template <class T> LSNN_INLINE unsigned to_bits(VecMask<T> m) {
  unsigned bits = 0;
  for (int l = 0; l < Vec<T>::lanes; l++) bits |= (unsigned)(m.k[l] != 0) << l;
  return bits;
}
#endif
template <class T> LSNN_INLINE VecMask<T> from_bits(unsigned bits) {
  typename Vec<T>::Whole which = {};
  for (int l = 0; l < Vec<T>::lanes; l++) which[l] = 1 << l;
  return {(((which & 0) + (int)bits) & which) == which};
}
#endif
template <class T> LSNN_INLINE VecMask<T> operator&(VecMask<T> a, VecMask<T> b) {
  return {a.k & b.k};
}
template <class T> LSNN_INLINE VecMask<T> operator|(VecMask<T> a, VecMask<T> b) {
  return {a.k | b.k};
}

// Sets lanes [first, first + lanes) of a row of 32-bit words of spikes; calls come in ascending
// order.
template <class T> LSNN_INLINE void put_bits(uint32_t* row, int64_t first, unsigned bits) {
  const int64_t shift = first % 32;
  row[first / 32] = (shift ? row[first / 32] : 0) | bits << shift;
}
template <class T> LSNN_INLINE VecMask<T> get_bits(const uint32_t* row, int64_t first) {
  const unsigned all = Vec<T>::lanes == 32 ? ~0u : (1u << Vec<T>::lanes) - 1;
  return from_bits<T>(row[first / 32] >> first % 32 & all);
}

// ------------------------------------------------------------------------------------------ memory
template <class T> LSNN_INLINE Vec<T> load(const T* p) {
  Vec<T> x;
  memcpy(&x, p, sizeof x);
  return x;
}
template <class T> LSNN_INLINE void store(T* p, Vec<T> x) { memcpy(p, &x, sizeof x); }

// The first n lanes, for the end of an unpadded row; the others are 0.
#if LSNN_TARGET == LSNN_TARGET_AVX512
LSNN_INLINE Vec<float> load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps((1u << n) - 1, p);
}
LSNN_INLINE Vec<double> load_first(const double* p, int64_t n) {
  return _mm512_maskz_loadu_pd((1u << n) - 1, p);
}
LSNN_INLINE void store_first(float* p, Vec<float> x, int64_t n) {
  _mm512_mask_storeu_ps(p, (1u << n) - 1, x.v);
}
LSNN_INLINE void store_first(double* p, Vec<double> x, int64_t n) {
  _mm512_mask_storeu_pd(p, (1u << n) - 1, x.v);
}
#elif LSNN_TARGET == LSNN_TARGET_AVX2
LSNN_INLINE __m256i first_lanes(const float*, int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LSNN_INLINE __m256i first_lanes(const double*, int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
LSNN_INLINE Vec<float> load_first(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(p, n));
}
LSNN_INLINE Vec<double> load_first(const double* p, int64_t n) {
  return _mm256_maskload_pd(p, first_lanes(p, n));
}
LSNN_INLINE void store_first(float* p, Vec<float> x, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(p, n), x.v);
}
LSNN_INLINE void store_first(double* p, Vec<double> x, int64_t n) {
  _mm256_maskstore_pd(p, first_lanes(p, n), x.v);
}
#else
template <class T> LSNN_INLINE Vec<T> load_first(const T* p, int64_t n) {
  Vec<T> x(0);
#pragma GCC unroll 4
  for (int l = 0; l < Vec<T>::lanes; l++)
    if (l < n) x.v[l] = p[l];
  return x;
}
template <class T> LSNN_INLINE void store_first(T* p, Vec<T> x, int64_t n) {
#pragma GCC unroll 4
  for (int l = 0; l < Vec<T>::lanes; l++)
    if (l < n) p[l] = x.v[l];
}
#endif
template <class T> LSNN_INLINE Vec<T> load_n(const T* p, int64_t n) {
  return n >= Vec<T>::lanes ? load(p) : load_first(p, n);
}
template <class T> LSNN_INLINE void store_n(T* p, Vec<T> x, int64_t n) {
  if (n >= Vec<T>::lanes) return store(p, x);
  store_first(p, x, n);
}

// Numbers that are stored as bfloat16, exactly; n as of load_n.
LSNN_INLINE Vec<float> load_n(const bfloat16* p, int64_t n) {
  constexpr int L = Vec<float>::lanes;
  typedef uint16_t Halves __attribute__((vector_size(L * 2)));
  typedef uint32_t Words __attribute__((vector_size(L * 4)));
  Halves halves = {};
  memcpy(&halves, p, n >= L ? sizeof halves : (size_t)n * 2);
  return (Vec<float>::Native)(__builtin_convertvector(halves, Words) << 16);
}

// Non-temporal stores, for data that is not read again soon.
LSNN_INLINE void stream_line(void* to, const void* from) {  // 64 bytes; `to` is aligned
#if LSNN_TARGET == LSNN_TARGET_AVX512
  _mm512_stream_si512((__m512i*)to, _mm512_loadu_si512(from));
#elif LSNN_TARGET == LSNN_TARGET_AVX2
  for (int i = 0; i < 2; i++)
    _mm256_stream_si256((__m256i*)to + i, _mm256_loadu_si256((const __m256i*)from + i));
#elif defined(__SSE2__)
  for (int i = 0; i < 4; i++)
    _mm_stream_si128((__m128i*)to + i, _mm_loadu_si128((const __m128i*)from + i));
#else
  memcpy(to, from, 64);
#endif
}
template <class T> LSNN_LOCAL void stream_copy(T* to, const T* from, int64_t n) {
  int64_t i = 0;
  for (; i < n && (uintptr_t)(to + i) % 64; i++) to[i] = from[i];
  for (; i + (int64_t)(64 / sizeof(T)) <= n; i += 64 / sizeof(T)) stream_line(to + i, from + i);
  for (; i < n; i++) to[i] = from[i];
}
LSNN_INLINE void stream_end() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}
LSNN_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

// ------------------------------------------------------------------------------------- mathematics
// a b + c, fused where available; only for the products of the backward pass.
#if LSNN_TARGET == LSNN_TARGET_AVX512 || LSNN_TARGET == LSNN_TARGET_AVX2
LSNN_INLINE Vec<float> fma_(Vec<float> a, Vec<float> b, Vec<float> c) {
  return LSNN_X86(fmadd_ps)(a.v, b.v, c.v);
}
LSNN_INLINE Vec<double> fma_(Vec<double> a, Vec<double> b, Vec<double> c) {
  return LSNN_X86(fmadd_pd)(a.v, b.v, c.v);
}
#elif LSNN_TARGET == LSNN_TARGET_NEON
LSNN_INLINE Vec<float> fma_(Vec<float> a, Vec<float> b, Vec<float> c) {
  return vfmaq_f32(c.v, a.v, b.v);
}
LSNN_INLINE Vec<double> fma_(Vec<double> a, Vec<double> b, Vec<double> c) {
  return vfmaq_f64(c.v, a.v, b.v);
}
#else
template <class T> LSNN_INLINE Vec<T> fma_(Vec<T> a, Vec<T> b, Vec<T> c) { return a * b + c; }
#endif
// If either is NaN, or both are 0, the result is b, as with x86 instructions but not those of ARM.
#if defined(__SSE2__)
LSNN_INLINE Vec<float> max_(Vec<float> a, Vec<float> b) { return LSNN_X86(max_ps)(a.v, b.v); }
LSNN_INLINE Vec<double> max_(Vec<double> a, Vec<double> b) { return LSNN_X86(max_pd)(a.v, b.v); }
LSNN_INLINE Vec<float> min_(Vec<float> a, Vec<float> b) { return LSNN_X86(min_ps)(a.v, b.v); }
LSNN_INLINE Vec<double> min_(Vec<double> a, Vec<double> b) { return LSNN_X86(min_pd)(a.v, b.v); }
#else
template <class T> LSNN_INLINE Vec<T> max_(Vec<T> a, Vec<T> b) { return select(a > b, a, b); }
template <class T> LSNN_INLINE Vec<T> min_(Vec<T> a, Vec<T> b) { return select(a < b, a, b); }
#endif
// A division: with an estimate and Newton steps instead the adjoint was no faster, by measurement.
template <class T> LSNN_INLINE Vec<T> least_normal(Vec<T>) {
  return Vec<T>(lsnn::least_normal(T()));
}
template <class T> LSNN_INLINE Vec<T> reciprocal_(Vec<T> a) { return Vec<T>(1) / a; }
template <class T> LSNN_INLINE Vec<T> abs_(Vec<T> a) {  // without the sign bit
  using V = Vec<T>;
  return (typename V::Native)((typename V::Whole)a.v & ~(typename V::Whole)V(T(-0.0)).v);
}
template <class T, class G> LSNN_INLINE Vec<T> by_lane(Vec<T> a, G g) {
  for (int l = 0; l < Vec<T>::lanes; l++) a.v[l] = g(a.v[l]);
  return a;
}
template <class T> LSNN_INLINE Vec<T> exp_(Vec<T> a) {
  return by_lane(a, [](T x) { return lsnn::exp_(x); });
}
LSNN_INLINE Vec<double> psi_exp_(Vec<double> a) { return exp_(a); }
// exp to one unit in the last place. x = n ln 2 + r with integer n and ln 2 in two parts, of which
// n times the first is exact (Cody and Waite); exp(r) by its minimax polynomial of degree 6; 2^n in
// two factors, since 2^n itself may overflow or be subnormal.
LSNN_INLINE Vec<float> psi_exp_(Vec<float> a) {
  using V = Vec<float>;
  using Whole = V::Whole;
  const V x = max_(V(-104.0f), min_(V(89.0f), a));  // from 0 to infinity; NaN stays
  const V shift = V(12582912.0f);  // 1.5 * 2^23: adding a number rounds it to an integer
  const V shifted = fma_(x, V(1.44269504f), shift), n = shifted - shift;
  const V r = fma_(n, V(2.12194440e-4f), fma_(n, V(-0.693359375f), x));
  V q = V(1.3814467e-3f);
  q = fma_(q, r, V(8.368781e-3f));
  q = fma_(q, r, V(4.1668393e-2f));
  q = fma_(q, r, V(1.666652e-1f));
  q = fma_(q, r, V(0.49999994f));
  const V of_r = V(1.0f) + fma_(q, r * r, r);
  const Whole exponent = (Whole)shifted.v - (Whole)shift.v, half = exponent >> 1;
  auto power = [](Whole e) LSNN_LAMBDA { return V((V::Native)((e + 127) << 23)); };
  return of_r * power(half) * power(exponent - half);
}
template <class T> LSNN_INLINE Vec<T> erf_(Vec<T> a) {
  return by_lane(a, [](T x) { return lsnn::erf_(x); });
}
template <class T> LSNN_INLINE Vec<T> atan_(Vec<T> a) {
  return by_lane(a, [](T x) { return lsnn::atan_(x); });
}

// out[i] = the sum over the lanes of a[i], for 8 vectors.
#if LSNN_TARGET == LSNN_TARGET_AVX2
LSNN_INLINE void sum_lanes(const __m256* a, float* out) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
  _mm256_storeu_ps(out, _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                                      _mm256_permute2f128_ps(low, high, 0x31)));
}
LSNN_INLINE void sum_lanes(const __m256d* a, double* out) {
  for (int h = 0; h < 2; h++, a += 4) {
    const __m256d low = _mm256_hadd_pd(a[0], a[1]), high = _mm256_hadd_pd(a[2], a[3]);
    _mm256_storeu_pd(out + 4 * h, _mm256_add_pd(_mm256_permute2f128_pd(low, high, 0x20),
                                                _mm256_permute2f128_pd(low, high, 0x31)));
  }
}
template <class T> LSNN_INLINE void sum_lanes(const Vec<T>* a, T* out) {
  sum_lanes((const typename Vec<T>::Native*)a, out);
}
#endif
#if LSNN_TARGET == LSNN_TARGET_AVX512
// In each quarter of 16 bytes: sums of adjacent pairs of x, then of y.
LSNN_INLINE __m512 add_quarters(__m512 x, __m512 y) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}
LSNN_INLINE __m512d add_quarters(__m512d x, __m512d y) {
  return _mm512_add_pd(_mm512_shuffle_f64x2(x, y, 0x88), _mm512_shuffle_f64x2(x, y, 0xdd));
}
// In each quarter the partial sums of four vectors of floats, or of two of doubles.
LSNN_INLINE __m512 sum_in_quarters(const Vec<float>* a) {
  const __m512 low =
      _mm512_add_ps(_mm512_unpacklo_ps(a[0].v, a[1].v), _mm512_unpackhi_ps(a[0].v, a[1].v));
  const __m512 high =
      _mm512_add_ps(_mm512_unpacklo_ps(a[2].v, a[3].v), _mm512_unpackhi_ps(a[2].v, a[3].v));
  return _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
}
LSNN_INLINE __m512d sum_in_quarters(const Vec<double>* a) {
  return _mm512_add_pd(_mm512_unpacklo_pd(a[0].v, a[1].v), _mm512_unpackhi_pd(a[0].v, a[1].v));
}
LSNN_INLINE void sum_lanes(const Vec<float>* a, float* out) {
  const __m512 halves = add_quarters(sum_in_quarters(a), sum_in_quarters(a + 4));
  _mm256_storeu_ps(out, _mm512_castps512_ps256(add_quarters(halves, halves)));
}
LSNN_INLINE void sum_lanes(const Vec<double>* a, double* out) {
  const __m512d first = add_quarters(sum_in_quarters(a), sum_in_quarters(a + 2));
  const __m512d second = add_quarters(sum_in_quarters(a + 4), sum_in_quarters(a + 6));
  _mm512_storeu_pd(out, add_quarters(first, second));
}
#elif LSNN_TARGET == LSNN_TARGET_NEON
LSNN_INLINE void sum_lanes(const Vec<float>* a, float* out) {
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
    vst1q_f32(out + i,
              vpaddq_f32(vpaddq_f32(a[i].v, a[i + 1].v), vpaddq_f32(a[i + 2].v, a[i + 3].v)));
}
LSNN_INLINE void sum_lanes(const Vec<double>* a, double* out) {
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) vst1q_f64(out + i, vpaddq_f64(a[i].v, a[i + 1].v));
}
#elif LSNN_TARGET == LSNN_TARGET_PORTABLE
template <class T> LSNN_INLINE void sum_lanes(const Vec<T>* a, T* out) {
  for (int i = 0; i < 8; i++) {
    out[i] = a[i].v[0];
    for (int l = 1; l < Vec<T>::lanes; l++) out[i] += a[i].v[l];
  }
}
#endif

}  // namespace
}  // namespace lsnn
