"""Builds, tests and times lsnn_ext on a CUDA card: `python -m bench.gpu --help`."""
