#include "launch.cuh"

const lsnn::cuda::Entry lsnn::cuda::entry_f64 = entry_of<double>;
