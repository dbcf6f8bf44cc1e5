// Dispatch to the kernels of the instruction set in use; defined in run.cpp.
#pragma once
#include "layout.h"

namespace lsnn::cpu {

// Kernels of the instruction set in use.
template <class T> const Kernels<T>& chosen_kernels();

// first_r: [B,N] refractory counters before the first step, or null: all 0. want: a bit for each
// coefficient with a gradient.
template <class T> GeneralSpec general_spec(const Layer& l, const void* first_r, unsigned want);

}  // namespace lsnn::cpu
