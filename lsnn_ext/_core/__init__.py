"""What a call passes before the compiled operators: arguments, resolve, route, call. Not public.

It is imported before any other file, so an older torch raises ImportError with a hint instead of an
error of the linker.
"""
import torch

OLDEST_TORCH = (2, 11)  # whose interface the compiled part is built for

if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
    _version = ".".join(map(str, OLDEST_TORCH))
    raise ImportError(f"lsnn_ext: expected torch {_version} or newer, got torch "
                      f"{torch.__version__}; pip install \"torch>={_version}\"")
