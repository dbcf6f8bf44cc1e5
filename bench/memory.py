"""Memory: bytes saved for the backward pass, the peak of a fresh process, and an estimate of it."""
import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contestants import Contestant, JaxContestant, TorchContestant, make, warm_up
from bench.problem import Problem, Yardstick

# Beyond what is saved, per neuron-step: the outputs and their gradients, stacked and one by one, a
# current and its own. Loops were seen to need 9 to 19 bytes, so that this is the upper end of what
# is likely.
BYTES_BEYOND_SAVED = 20


def _kib(path: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines()
                if line.startswith(f"{field}:"))


def needed_bytes(name: str, problem: Problem, steps: int = 32) -> float:
    """About what one forward+backward would take beyond inputs and weights, from what a few steps
    save."""
    saved, _ = saved_bytes(make(name, problem.first(steps)))
    return (saved + BYTES_BEYOND_SAVED) * problem.cotangent.numel()


def saved_bytes(contestant: Contestant) -> tuple[float, float]:
    """Bytes kept for backward per neuron-step without inputs and weights; the same without the
    outputs."""
    if isinstance(contestant, JaxContestant):
        # jax keeps a copy of its own and never the array that the caller has, so nothing is taken
        # off.
        kept_by_jax = sum(size for _, size in contestant.residuals()) / contestant.cotangent.size
        return kept_by_jax, kept_by_jax
    assert isinstance(contestant, TorchContestant)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no later storage gets the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = contestant.module(contestant.problem.x)
    for tensor in _context_tensors(out.grad_fn):
        keep(tensor)
    for tensor in (contestant.problem.x, *contestant.module.parameters(),
                   *contestant.module.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    kept.pop(0, None)  # empty tensors
    total = sum(storage.nbytes() for storage in kept.values())
    kept.pop(out.untyped_storage().data_ptr(), None)
    return total / out.numel(), sum(storage.nbytes() for storage in kept.values()) / out.numel()


def _context_tensors(root: Any) -> Iterator[Tensor]:
    """What custom Functions hold as attributes of their ctx, which the hooks do not see."""
    seen, todo = {None}, [root]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
            for value in getattr(node, "__dict__", {}).values():
                held = value if isinstance(value, (list, tuple)) else [value]
                yield from (each for each in held if isinstance(each, Tensor))


def peak_mib(name: str, yardstick: Yardstick, scale: float) -> float:
    """The most resident memory of the first full forward+backward of a fresh process, above what
    stood before it.

    A fresh process, because memory that an allocator or a cache kept from an earlier pass would
    hide what this uses.
    """
    return peak_of(_warm_pass, name, yardstick, scale)


def _warm_pass(name: str, yardstick: Yardstick, scale: float) -> Callable[[], object]:
    problem = yardstick.problem().scaled(scale)
    warm_up(name, problem)
    return make(name, problem).forward_backward


def peak_of(prepare: Callable[..., Callable[[], object]], *args: Any) -> float:
    """MiB of the peak of prepare(*args)() in a fresh process, above what stood before it; NaN if it
    can't tell."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_here, torch.get_num_threads(), prepare, args).result()


def _peak_here(threads: int, prepare: Callable[..., Callable[[], object]],
               args: tuple[Any, ...]) -> float:
    torch.set_num_threads(threads)
    run = prepare(*args)
    gc.collect()
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        # makes VmHWM start again from what is resident now
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return float("nan")  # only Linux with glibc can tell
    before = _kib(status, "VmRSS")
    run()
    return (_kib(status, "VmHWM") - before) / 1024
