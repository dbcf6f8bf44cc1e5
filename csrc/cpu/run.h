// The CPU path: the whole sequence, forward and backward. T is float or double; no pointer of the arguments may be null but
// those that alif.h allows.
#pragma once
#include "../alif.h"

namespace lsnn::cpu {

template <class T> void forward(const ForwardArgs& args, Parallel parallel);
template <class T> void backward(const BackwardArgs& args, Parallel parallel);

// The instruction set in use: "avx512", "avx2" or "portable", the best one of this processor unless LSNN_CPU names another.
// Throws std::runtime_error when LSNN_CPU names one that is unknown or that this processor lacks.
const char* instruction_set();

}  // namespace lsnn::cpu
