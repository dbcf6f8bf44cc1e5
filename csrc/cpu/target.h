// The target of this translation unit. LSNN_TARGET is the instruction set, which selects
// intrinsics; LSNN_VECTOR_BITS is the width of a vector, which gives the number of lanes. Targets
// may share a width, and a target may have several.
//
// For example, 128-bit SVE needs LSNN_TARGET_SVE and the pair (SVE, 128) in this file, a line
// X(sve128, SVE, 128, "-march=armv8-a+sve -msve-vector-bits=128", ...) in instruction_sets.h, and
// branches in simd.h and bits.h.
#pragma once

// From 1, as undefined names are 0 in #if.
#define LSNN_TARGET_PORTABLE 1  // baseline of the architecture
#define LSNN_TARGET_NEON 2
#define LSNN_TARGET_AVX2 3
#define LSNN_TARGET_AVX512 4

#define LSNN_IS_PAIR(target, bits) (LSNN_TARGET == LSNN_TARGET_##target && LSNN_VECTOR_BITS == bits)
static_assert(LSNN_IS_PAIR(PORTABLE, 128) || LSNN_IS_PAIR(NEON, 128) || LSNN_IS_PAIR(AVX2, 256) ||
                  LSNN_IS_PAIR(AVX512, 512),
              "LSNN_TARGET, LSNN_VECTOR_BITS: expected a pair that target.h lists, got another");
#undef LSNN_IS_PAIR
