"""Witness: sees every operator of torch, and refuses those that no recorded call explains."""
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..codegen.plain import generator_states
from . import functions as of
from .ir import Refused
from .unread import add_read


class Witness(TorchDispatchMode):
    """Refuses operators that run outside of recorded calls."""

    def __init__(self, recorder: Any) -> None:
        super().__init__()
        self.recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to ask whether a compiler is active takes longer than a small operator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.refused is not None:
            return func(*args, **kwargs)
        if not recorder.depth and func is not torch.ops.aten.detach.default:
            with recorder.refusals():
                raise Refused(f"{func}: expected operators that are called from Python, got one of "
                              f"torch.jit or C++")
        effects = of.find_effects(func)
        if effects.reads and not (
                recorder.masked.is_reading or of.is_index_by_integers(func, args)
                or recorder.name in of.FILLS and not recorder.is_size(args[0])
                or recorder.name == "__bool__"):
            with recorder.refusals():
                add_read(recorder, args[0], f"{func}: expected no shape and no branch that depends "
                                            f"on numbers")
        if effects.writes:
            recorder.unversioned |= of.written_statistics(func, args)
        if not effects.draws:
            return func(*args, **kwargs)
        with recorder.refusals():
            recorder.check_generators()
        out = func(*args, **kwargs)
        recorder.is_random = True
        recorder.generators = generator_states()
        return out
