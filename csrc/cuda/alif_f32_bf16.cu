#include "launch.cuh"

const lsnn::cuda::Entry lsnn::cuda::entry_f32_bf16 = entry_of<float, bfloat16>;
