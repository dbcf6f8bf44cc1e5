"""Any loop: a recorded call of a model, the recurrences in its loops, and their kernels."""
