"""Kernel benchmark: one recurrent layer, a whole sequence, beside its peers.

Run it as `python -m bench --help`.
"""
