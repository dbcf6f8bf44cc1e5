#include "launch.cuh"

const lsnn::cuda::Entry lsnn::cuda::entry_f32 = entry_of<float>;
