"""Refuses a torch that is older than the one whose interface the compiled part is made for, which
would end in a message of the linker."""
import torch

OLDEST = (2, 11)

if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:
    wanted = ".".join(map(str, OLDEST))
    raise ImportError(f"lsnn_ext: expected torch {wanted} or newer, got torch {torch.__version__}; "
                      f"pip install \"torch>={wanted}\"")
