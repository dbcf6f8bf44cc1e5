// What this translation unit is compiled for. LSNN_TARGET is the instruction set: code that calls
// intrinsics depends on it. LSNN_VECTOR_BITS is the width of a vector: the number of lanes follows
// from it. Several targets may have vectors of one width, and one target vectors of several.
//
// SVE with vectors of 128 bits needs LSNN_TARGET_SVE and the pair (SVE, 128) in this file, a line
// X(sve128, SVE, 128, "-march=armv8-a+sve -msve-vector-bits=128", ...) in instruction_sets.h, and
// its branches beside those of NEON in simd.h and bits.h.
#pragma once

// From 1: a name that does not exist is 0 in #if, and equal to none of these.
#define LSNN_TARGET_PORTABLE 1  // what every processor of the kind has
#define LSNN_TARGET_NEON 2
#define LSNN_TARGET_AVX2 3
#define LSNN_TARGET_AVX512 4

#define LSNN_IS_PAIR(target, bits) (LSNN_TARGET == LSNN_TARGET_##target && LSNN_VECTOR_BITS == bits)
static_assert(LSNN_IS_PAIR(PORTABLE, 128) || LSNN_IS_PAIR(NEON, 128) || LSNN_IS_PAIR(AVX2, 256) ||
                  LSNN_IS_PAIR(AVX512, 512),
              "LSNN_TARGET, LSNN_VECTOR_BITS: expected a pair that target.h lists, got another");
#undef LSNN_IS_PAIR
