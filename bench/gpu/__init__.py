"""Everything that a machine with a CUDA card is asked, in one call.

Run it as `python -m bench.gpu --help`.
"""
