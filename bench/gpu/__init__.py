"""All that a machine with a CUDA card is asked, in one call: `python -m bench.gpu --help`."""
