"""Any neuron: a step written in PyTorch is traced, and runs inside the kernels."""
