// What run.cpp has chosen, for the passes that it does not make itself.
#pragma once
#include "layout.h"

namespace lsnn::cpu {

// Those of the instruction set in use.
template <class T> const Kernels<T>& chosen_kernels();

// first_r: [B,N] the refractory counters before the first step, or null: all 0. want: coefficients
// whose gradient is asked for, a bit each.
template <class T> GeneralSpec general_spec(const Layer& l, const void* first_r, unsigned want);

}  // namespace lsnn::cpu
