// Vectors of LSNN_VECTOR_BITS and the functions of operators.h on them.
//
// Vectors are those of the compiler's vector extension. Parsing immintrin.h takes longer than
// compiling a neuron, so the few instructions that have no operator come from builtins. All names
// have internal linkage: each instruction set is a translation unit of its own, and the linker must
// not share a function between them. Denormals are never flushed.
#pragma once
#include <stdint.h>

#define LSNN_FUSE_INLINE static inline __attribute__((always_inline))
#define LSNN_FUSE_METHOD inline __attribute__((always_inline))

namespace lsnn::neuron {
namespace {

constexpr int vector_bytes = LSNN_VECTOR_BITS / 8;

template <class T> struct VectorOf;
template <> struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(vector_bytes)));
  typedef int32_t Whole __attribute__((vector_size(vector_bytes)));
};
template <> struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(vector_bytes)));
  typedef int64_t Whole __attribute__((vector_size(vector_bytes)));
};
template <class T> using Vector = typename VectorOf<T>::Type;
template <class T> using Whole = typename VectorOf<T>::Whole;  // integers as wide as T
template <class T> using Mask = decltype(Vector<T>{} > Vector<T>{});  // all bits of a lane, or none
template <class T> constexpr int lanes = vector_bytes / (int)sizeof(T);

template <class T> LSNN_FUSE_INLINE Vector<T> broadcast(T x) { return x - Vector<T>{}; }

// ------------------------------------------------------------------------------------------ memory
template <class T> LSNN_FUSE_INLINE Vector<T> load(const T* p) {
  Vector<T> x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
template <class T> LSNN_FUSE_INLINE void store(T* p, Vector<T> x) {
  __builtin_memcpy(p, &x, sizeof x);
}

template <class T> LSNN_FUSE_INLINE Whole<T> lane_numbers() {
  Whole<T> which = {};
  for (int l = 0; l < lanes<T>; l++) which[l] = l;
  return which;
}
// x, with 0 behind the first n lanes.
template <class T> LSNN_FUSE_INLINE Vector<T> first_lanes(Vector<T> x, int64_t n) {
  const Whole<T> keep = (Whole<T>)(lane_numbers<T>() < Whole<T>{} + (decltype(Whole<T>{}[0] + 0))n);
  return (Vector<T>)((Whole<T>)x & keep);
}

// The first n lanes only, none where n < 0, for the end of a row that belongs to the caller; the
// others are 0.
#if LSNN_VECTOR_BITS == 512 && defined(__AVX512F__)
LSNN_FUSE_INLINE unsigned first_bits(int64_t n) { return n > 0 ? (1u << n) - 1 : 0; }
LSNN_FUSE_INLINE Vector<float> load_first(const float* p, int64_t n) {
  return __builtin_ia32_loadups512_mask(p, Vector<float>{}, (uint16_t)first_bits(n));
}
LSNN_FUSE_INLINE Vector<double> load_first(const double* p, int64_t n) {
  return __builtin_ia32_loadupd512_mask(p, Vector<double>{}, (uint8_t)first_bits(n));
}
LSNN_FUSE_INLINE void store_first(float* p, Vector<float> x, int64_t n) {
  __builtin_ia32_storeups512_mask(p, x, (uint16_t)first_bits(n));
}
LSNN_FUSE_INLINE void store_first(double* p, Vector<double> x, int64_t n) {
  __builtin_ia32_storeupd512_mask(p, x, (uint8_t)first_bits(n));
}
#elif LSNN_VECTOR_BITS == 256 && defined(__AVX2__)
// A mask in the type that the builtins take.
template <class T> LSNN_FUSE_INLINE auto first_mask(int64_t n) {
  using Lane = decltype(Whole<T>{}[0] + 0);
  typedef int Ints __attribute__((vector_size(32)));
  typedef long long Longs __attribute__((vector_size(32)));
  const auto mask = lane_numbers<T>() < Whole<T>{} + (Lane)n;
  if constexpr (sizeof(T) == 4) return (Ints)mask;
  else return (Longs)mask;
}
LSNN_FUSE_INLINE Vector<float> load_first(const float* p, int64_t n) {
  return __builtin_ia32_maskloadps256((const Vector<float>*)p, first_mask<float>(n));
}
LSNN_FUSE_INLINE Vector<double> load_first(const double* p, int64_t n) {
  return __builtin_ia32_maskloadpd256((const Vector<double>*)p, first_mask<double>(n));
}
LSNN_FUSE_INLINE void store_first(float* p, Vector<float> x, int64_t n) {
  __builtin_ia32_maskstoreps256((Vector<float>*)p, first_mask<float>(n), x);
}
LSNN_FUSE_INLINE void store_first(double* p, Vector<double> x, int64_t n) {
  __builtin_ia32_maskstorepd256((Vector<double>*)p, first_mask<double>(n), x);
}
#else
template <class T> LSNN_FUSE_INLINE Vector<T> load_first(const T* p, int64_t n) {
  Vector<T> x = {};
#pragma GCC unroll 8
  for (int l = 0; l < lanes<T>; l++)
    if (l < n) x[l] = p[l];
  return x;
}
template <class T> LSNN_FUSE_INLINE void store_first(T* p, Vector<T> x, int64_t n) {
#pragma GCC unroll 8
  for (int l = 0; l < lanes<T>; l++)
    if (l < n) p[l] = x[l];
}
#endif
template <class T> LSNN_FUSE_INLINE Vector<T> load_n(const T* p, int64_t n) {
  return n >= lanes<T> ? load(p) : load_first(p, n);
}
template <class T> LSNN_FUSE_INLINE void store_n(T* p, Vector<T> x, int64_t n) {
  if (n >= lanes<T>) return store(p, x);
  store_first(p, x, n);
}

// ------------------------------------------------------------------------------------------- masks
template <class T> LSNN_FUSE_INLINE Vector<T> select_(Mask<T> m, Vector<T> a, Vector<T> b) {
  return m ? a : b;
}

#if defined(__x86_64__) && LSNN_VECTOR_BITS == 512 && defined(__AVX512DQ__)
LSNN_FUSE_INLINE unsigned to_bits(Mask<float> m) {
  typedef int Lanes __attribute__((vector_size(64)));
  return (unsigned)__builtin_ia32_cvtd2mask512((Lanes)m) & 0xffff;
}
LSNN_FUSE_INLINE unsigned to_bits(Mask<double> m) {
  typedef long long Lanes __attribute__((vector_size(64)));
  return (unsigned)__builtin_ia32_cvtq2mask512((Lanes)m) & 0xff;
}
#elif LSNN_VECTOR_BITS == 256 && defined(__AVX__)
LSNN_FUSE_INLINE unsigned to_bits(Mask<float> m) {
  return (unsigned)__builtin_ia32_movmskps256((Vector<float>)m);
}
LSNN_FUSE_INLINE unsigned to_bits(Mask<double> m) {
  return (unsigned)__builtin_ia32_movmskpd256((Vector<double>)m);
}
#elif LSNN_VECTOR_BITS == 128 && defined(__SSE2__)
LSNN_FUSE_INLINE unsigned to_bits(Mask<float> m) {
  return (unsigned)__builtin_ia32_movmskps((Vector<float>)m);
}
LSNN_FUSE_INLINE unsigned to_bits(Mask<double> m) {
  return (unsigned)__builtin_ia32_movmskpd((Vector<double>)m);
}
#else
template <class M> LSNN_FUSE_INLINE unsigned to_bits(M m) {
  unsigned bits = 0;
  for (int l = 0; l < (int)(sizeof m / sizeof m[0]); l++) bits |= (unsigned)(m[l] != 0) << l;
  return bits;
}
#endif
template <class T> LSNN_FUSE_INLINE Mask<T> from_bits(unsigned bits) {
  Whole<T> which = {};
  for (int l = 0; l < lanes<T>; l++) which[l] = (decltype(which[0] + 0))1 << l;
  return (Mask<T>)(((Whole<T>{} + (decltype(which[0] + 0))bits) & which) == which);
}

// Lanes [n, n + lanes) of a row of 32-bit words; calls of put_bits come in ascending order.
template <class T> LSNN_FUSE_INLINE void put_bits(uint32_t* row, uint64_t n, unsigned bits) {
  const unsigned shift = n % 32;
  row[n / 32] = (shift ? row[n / 32] : 0) | bits << shift;
}
template <class T> LSNN_FUSE_INLINE Mask<T> get_bits(const uint32_t* row, uint64_t n) {
  return from_bits<T>(row[n / 32] >> n % 32);
}

// ------------------------------------------------------------------------------------- mathematics
// Functions of the library of the compiler, lane by lane.
#define LSNN_FUSE_BY_LANE(name, function)                                               \
  template <class V, class... More> LSNN_FUSE_INLINE V name(V a, More... more) {        \
    for (int l = 0; l < (int)(sizeof a / sizeof a[0]); l++)                             \
      if constexpr (sizeof a[0] == 4) a[l] = __builtin_##function##f(a[l], more[l]...); \
      else a[l] = __builtin_##function(a[l], more[l]...);                               \
    return a;                                                                           \
  }
LSNN_FUSE_BY_LANE(sin_lanes, sin)
LSNN_FUSE_BY_LANE(cos_lanes, cos)
LSNN_FUSE_BY_LANE(sqrt_of, sqrt)
LSNN_FUSE_BY_LANE(atan_of, atan)
LSNN_FUSE_BY_LANE(erf_of, erf)
LSNN_FUSE_BY_LANE(pow_of, pow)
LSNN_FUSE_BY_LANE(fmod_of, fmod)

// a b + c, rounded once.
#if LSNN_VECTOR_BITS == 512 && defined(__AVX512F__)
LSNN_FUSE_INLINE Vector<float> fma_of(Vector<float> a, Vector<float> b, Vector<float> c) {
  return __builtin_ia32_vfmaddps512_mask(a, b, c, (uint16_t)-1, 4);
}
LSNN_FUSE_INLINE Vector<double> fma_of(Vector<double> a, Vector<double> b, Vector<double> c) {
  return __builtin_ia32_vfmaddpd512_mask(a, b, c, (uint8_t)-1, 4);
}
#elif LSNN_VECTOR_BITS == 256 && defined(__FMA__)
LSNN_FUSE_INLINE Vector<float> fma_of(Vector<float> a, Vector<float> b, Vector<float> c) {
  return __builtin_ia32_vfmaddps256(a, b, c);
}
LSNN_FUSE_INLINE Vector<double> fma_of(Vector<double> a, Vector<double> b, Vector<double> c) {
  return __builtin_ia32_vfmaddpd256(a, b, c);
}
#else
LSNN_FUSE_BY_LANE(fma_of, fma)
#endif
#undef LSNN_FUSE_BY_LANE
// The same inside of an approximation, where two roundings do no harm: fused where that is an
// instruction.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
template <class V> LSNN_FUSE_INLINE V multiply_add(V a, V b, V c) { return fma_of(a, b, c); }
#else
template <class V> LSNN_FUSE_INLINE V multiply_add(V a, V b, V c) { return a * b + c; }
#endif

template <class T> LSNN_FUSE_INLINE Vector<T> abs_of(Vector<T> a) {
  return (Vector<T>)((Whole<T>)a & ~(Whole<T>)broadcast(T(-0.0)));
}
// The size of a with the sign of b.
template <class T> LSNN_FUSE_INLINE Vector<T> copy_sign(Vector<T> a, Vector<T> b) {
  return (Vector<T>)((Whole<T>)abs_of<T>(a) | ((Whole<T>)b & (Whole<T>)broadcast(T(-0.0))));
}

// What exp needs for each type. Beyond [low, high] the result is 0 or infinity. log 2 has two
// parts, and the product of n with the first is exact (Cody and Waite). Coefficients: minimax of
// (exp(r) - 1 - r) / r^2 for |r| <= log(2) / 2, error relative to r.
template <class T> struct ExpConstants;
template <> struct ExpConstants<float> {
  static constexpr float low = -104.0f, high = 89.0f, shift = 0x1.8p23f;
  static constexpr float log2_high = 0x1.62ep-1f, log2_low = 0x1.0bfbe8p-15f;
  static constexpr int bias = 127, mantissa = 23, terms = 6;
  static constexpr float q[terms] = {0x1.a1a222p-13f, 0x1.6d74e4p-10f, 0x1.11109p-7f,
                                     0x1.5554aep-5f,  0x1.555556p-3f,  0x1p-1f};
};
template <> struct ExpConstants<double> {
  static constexpr double low = -746.0, high = 710.0, shift = 0x1.8p52;
  static constexpr double log2_high = 0x1.62e42fefa3800p-1, log2_low = 0x1.ef35793c76730p-45;
  static constexpr int bias = 1023, mantissa = 52, terms = 10;
  static constexpr double q[terms] = {
      0x1.af7723ce4085bp-26, 0x1.28a2e465dc9c9p-22, 0x1.71dde9beeb53ep-19, 0x1.a019a65547605p-16,
      0x1.a01a01b5f4ec5p-13, 0x1.6c16c17f43c9ep-10, 0x1.111111110e68ap-7,  0x1.55555555520dap-5,
      0x1.555555555555cp-3,  0x1.0000000000005p-1};
};

// exp(x) = 2^n (1 + p + low) with a whole n, where low is what p lost when it was rounded; 2^n in
// two factors, as one could be subnormal or infinite where the result is a normal number.
template <class T> struct ExpParts { Vector<T> p, low, half, rest; };
template <class T> LSNN_FUSE_INLINE ExpParts<T> exp_parts(Vector<T> a) {
  using V = Vector<T>;
  using K = ExpConstants<T>;
  V x = a < K::low ? broadcast(K::low) : a;  // NaN stays
  x = x > K::high ? broadcast(K::high) : x;
  const V shift = broadcast(K::shift);  // a number added to it is rounded to a whole number
  const V shifted = multiply_add(x, broadcast(T(1.4426950408889634)), shift), n = shifted - shift;
  const V first = multiply_add(n, broadcast(-K::log2_high), x), second = n * K::log2_low;
  const V r = first - second, r_low = (first - r) - second;
  V q = broadcast(K::q[0]);
#pragma GCC unroll 10
  for (int i = 1; i < K::terms; i++) q = multiply_add(q, r, broadcast(K::q[i]));
  const V bend = q * (r * r), p = r + bend;
  const Whole<T> exponent = (Whole<T>)shifted - (Whole<T>)shift, half = exponent >> 1;
  return {p, ((r - p) + bend) + r_low, (V)((half + K::bias) << K::mantissa),
          (V)((exponent - half + K::bias) << K::mantissa)};
}
template <class T> LSNN_FUSE_INLINE Vector<T> exp_of(Vector<T> a) {
  const ExpParts<T> parts = exp_parts<T>(a);
  return (parts.p + T(1)) * parts.half * parts.rest;
}
// 1 / (1 + exp(-a)) by the exponential that is at most 1: where a is small the result is e, which
// may be subnormal. What 1 + e lost when it was rounded is corrected to first order.
template <class T> LSNN_FUSE_INLINE Vector<T> sigmoid_of(Vector<T> a) {
  using V = Vector<T>;
  const V e = exp_of<T>(-abs_of<T>(a)), sum = e + T(1), low = (T(1) - sum) + e;
  const auto is_negative = a < T(0);
  const V y = (is_negative ? e : broadcast(T(1))) / sum;
  return y - y * low * (is_negative ? T(1) - y : y);
}
// -E / (E + 2) with E = exp(-2 |a|) - 1 = 2^n p + (2^n - 1), which loses no digits where a is
// small. What E and E + 2 lost when they were rounded is added at the end, to first order;
// the derivative by E has 1 / (E + 2) = (1 + tanh) / 2.
template <class T> LSNN_FUSE_INLINE Vector<T> tanh_of(Vector<T> a) {
  using V = Vector<T>;
  const ExpParts<T> parts = exp_parts<T>(abs_of<T>(a) * T(-2));
  const V power = parts.half * parts.rest, offset = power - T(1), part = parts.p * power;
  const V E = offset + part, E_low = ((offset - E) + part) + parts.low * power;
  const V sum = E + T(2), sum_low = (T(2) - sum) + E;
  const V y = -E / sum;
  return copy_sign<T>(y - (E_low + y * (sum_low + E_low)) * ((y + T(1)) * T(0.5)), a);
}

// g of doubles for floats: of its digits fewer are needed, and subnormal results round once.
template <class G> LSNN_FUSE_INLINE Vector<float> in_double(Vector<float> a, const G& g) {
  typedef float Half __attribute__((vector_size(vector_bytes / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &a, sizeof a);
  for (Half& half : halves)
    half = __builtin_convertvector(g(__builtin_convertvector(half, Vector<double>)), Half);
  __builtin_memcpy(&a, halves, sizeof a);
  return a;
}
template <int n>
LSNN_FUSE_INLINE Vector<double> polynomial(Vector<double> x, const double (&coefficients)[n]) {
  Vector<double> sum = broadcast(coefficients[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; i--) sum = multiply_add(sum, x, broadcast(coefficients[i]));
  return sum;
}

// x = 2^e (1 + f) with 1 + f from sqrt(1/2) to sqrt(2). With s = f / (2 + f), log(1 + f) = 2 s +
// s R(s^2), of which f - f^2 / 2 is exact enough to be added last.
LSNN_FUSE_INLINE Vector<double> log_of(Vector<double> a) {
  using V = Vector<double>;
  typedef uint64_t Bits __attribute__((vector_size(vector_bytes)));
  constexpr double R[] = {0x1.5555555555555p-1, 0x1.9999999999dc9p-2, 0x1.249249242e84cp-2,
                          0x1.c71c7255e170ep-3, 0x1.745cdf05eddd5p-3, 0x1.3b208d14b9b42p-3,
                          0x1.0f5f201397f28p-3, 0x1.0f5045ec5972cp-3};
  constexpr uint64_t one = 0x3ff0000000000000, root = 0x3fe6a09e667f3bcd;  // 1, sqrt(1/2)
  const auto is_subnormal = a < 0x1p-1022;
  const V scaled = is_subnormal ? a * 0x1p54 : a;
  const Bits bits = (Bits)scaled;
  const Bits exponent = (bits - root + one) >> 52;  // biased
  const V e =
      (V)(exponent | 0x4330000000000000) - (0x1p52 + 1023) - (is_subnormal ? broadcast(54.0) : V{});
  const V f = (V)(bits - (exponent << 52) + one) - 1.0;
  const V s = f / (f + 2.0), z = s * s, h = f * f * 0.5;
  const V low = multiply_add(s, h + z * polynomial(z, R), e * ExpConstants<double>::log2_low);
  const V result = e * ExpConstants<double>::log2_high + (f - (h - low));
  const V special = a == 0.0  ? broadcast(-__builtin_inf())
                    : a > 0.0 ? broadcast(__builtin_inf())
                              : broadcast(__builtin_nan(""));
  return (Mask<double>)((a > 0.0) & (a < __builtin_inf())) ? result : special;
}
LSNN_FUSE_INLINE Vector<float> log_of(Vector<float> a) {
  return in_double(a, [](Vector<double> x) { return log_of(x); });
}

// sin(x + quarters pi / 2) of doubles with few digits, |x| <= 2^20: x = n pi / 2 + r, where n times
// the first part of pi / 2 is exact.
LSNN_FUSE_INLINE Vector<double> short_sin(Vector<double> x, int quarters) {
  using V = Vector<double>;
  constexpr double S[] = {1.0,
                          -0x1.55555555524b5p-3,
                          0x1.1111110cabf7fp-7,
                          -0x1.a019f964c0c8ep-13,
                          0x1.71d781749bb5ap-19,
                          -0x1.a968458cfc333p-26};
  constexpr double C[] = {1.0,
                          -0.5,
                          0x1.5555555553392p-5,
                          -0x1.6c16c1679fe25p-10,
                          0x1.a019fadaa7614p-16,
                          -0x1.27e03d793bc64p-22,
                          0x1.1bcd23066dfbap-29};
  const V shift = broadcast(0x1.8p52);
  const V shifted = x * 0x1.45f306dc9c883p-1 + shift, n = shifted - shift;
  const V r = (x - n * 0x1.921fb54p+0) - n * 0x1.10b4611a62633p-30, u = r * r;
  const Whole<double> quadrant = (Whole<double>)shifted + quarters;
  const V size = (Mask<double>)((quadrant & 1) == 0) ? r * polynomial(u, S) : polynomial(u, C);
  return (V)((Whole<double>)size ^ ((quadrant & 2) << 62));
}
LSNN_FUSE_INLINE bool has_large(Vector<float> a) {
  return to_bits((Mask<float>)~(abs_of<float>(a) <= 0x1p20f)) != 0;  // or NaN
}
LSNN_FUSE_INLINE Vector<float> sin_of(Vector<float> a) {
  if (has_large(a)) return sin_lanes(a);
  return in_double(a, [](Vector<double> x) { return short_sin(x, 0); });
}
LSNN_FUSE_INLINE Vector<float> cos_of(Vector<float> a) {
  if (has_large(a)) return cos_lanes(a);
  return in_double(a, [](Vector<double> x) { return short_sin(x, 1); });
}
LSNN_FUSE_INLINE Vector<double> sin_of(Vector<double> a) { return sin_lanes(a); }
LSNN_FUSE_INLINE Vector<double> cos_of(Vector<double> a) { return cos_lanes(a); }

LSNN_FUSE_INLINE Vector<float> float32_of(Vector<float> a) { return a; }
LSNN_FUSE_INLINE Vector<double> float32_of(Vector<double> a) {
  typedef float Half __attribute__((vector_size(vector_bytes / 2)));
  return __builtin_convertvector(__builtin_convertvector(a, Half), Vector<double>);
}

}  // namespace
}  // namespace lsnn::neuron

#include "operators.h"
