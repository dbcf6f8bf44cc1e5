"""Forward and backward passes of a module or function, as profile and plan run them."""
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import _ops
from .._core.torch_internals import find_tensors, tree_map

one_at_a_time = threading.Lock()  # the counters and the listener are shared by all threads


class Passes:
    """Runs target(*inputs), and the backward pass of its first tensor times fixed numbers."""

    def __init__(self, user: str, target: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        if _ops._C is None:
            raise RuntimeError(f"{user}: expected the compiled part, got none ({_ops.load_error})")
        if not callable(target):
            raise TypeError(f"target: expected a module or function, got {type(target).__name__}")
        self.target = target
        # without a history, so that several passes can go through them
        self.inputs = tree_map(lambda one: one.detach().requires_grad_(one.requires_grad)
                               if isinstance(one, Tensor) else one, inputs)
        module = getattr(target, "__self__", target)  # target may be one of its methods
        self.modules = [module] if isinstance(module, nn.Module) else []
        self.cotangents: dict[tuple[int, ...], Tensor] = {}
        self.leaves: list[Tensor] = []  # of the graph of the last result

    @property
    def name(self) -> str:
        """Of the class of the module, or of the function."""
        kind = type(self.target).__name__
        return kind if self.modules else str(getattr(self.target, "__name__", kind))

    def tensors(self) -> list[Tensor]:
        """Inputs, parameters and buffers."""
        return [*find_tensors(self.inputs), *(one for module in self.modules
                                            for one in (*module.parameters(), *module.buffers()))]

    def forward(self) -> Tensor:
        """The first floating-point tensor of the result."""
        result = next((t for t in find_tensors(self.target(*self.inputs))
                       if t.is_floating_point()), None)
        if result is None:
            raise TypeError(f"target: expected a module or function that returns a tensor, got "
                            f"{self.name}, which does not")
        return result

    def backward(self, out: Tensor) -> None:
        """Computes the gradients of all leaves of the graph, and drops them."""
        if not out.requires_grad:
            return
        if not self.leaves:
            self.leaves = _leaves_of(out)
        if out.shape not in self.cotangents:
            random = torch.Generator().manual_seed(0)
            self.cotangents[out.shape] = torch.randn(out.shape, generator=random).to(out)
        torch.autograd.grad(out, self.leaves, self.cotangents[out.shape], allow_unused=True)

    def warm_up(self) -> None:
        """Fills caches: neurons are compiled, models recorded from the first and next state."""
        for _ in range(2):
            self.backward(self.forward())

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Restores buffers, such as the means of a batch norm, and the random generators."""
        before = [(part._buffers, name, buffer, buffer.clone()) for module in self.modules
                  for part in module.modules()
                  for name, buffer in part._buffers.items() if buffer is not None]
        cards = {one.device.index for one in self.tensors() if one.is_cuda}
        with torch.random.fork_rng(devices=sorted(cards)):
            try:
                yield
            finally:
                with torch.no_grad():
                    for buffers, name, buffer, value in before:
                        buffers[name] = buffer
                        if not torch.equal(buffer, value):
                            buffer.copy_(value)


@contextmanager
def counting() -> Iterator[None]:
    """Has the CPU kernels count, from zero."""
    before = _ops._C.profile(True)
    try:
        _ops._C.counters()
        yield
    finally:
        _ops._C.profile(before)
        _ops._C.counters()


def _leaves_of(out: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    seen, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):
                found.append(node.variable)
            todo += [one for one, _ in node.next_functions]
    return found
