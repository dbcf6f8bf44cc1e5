"""Several processes that train as one does, each on its share of every batch.

    torchrun --nproc-per-node 2 examples/store_recall/train.py

--batch is that of all processes together: each draws all of it, from the same generator, and takes
its share. Means go over all processes, and what a penalty squares is such a mean; gradients are
added up before they are clipped. Signals count on whichever process they arrive, the time of a run
is the first one's, and the first alone writes files and prints. So the run is that of one process,
to rounding, and its checkpoint may be resumed by another number of processes. One process alone
computes what it would without this module, to the bit.
"""
import atexit
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Made = TypeVar("Made")


def join() -> None:
    """Meets the other processes, where torchrun has started this one; the second time it does
    nothing."""
    if not dist.is_available() or dist.is_initialized() or not dist.is_torchelastic_launched():
        return
    # With its first optimizer torch loads modules that keep a group they find, and gloo's threads
    # with it, to the end of the interpreter, which such a thread may abort.
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    dist.init_process_group("gloo")
    atexit.register(leave)
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def leave() -> None:
    """Parts from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return count() == 1 or dist.get_rank() == 0


# -------------------------------------------------------------------------------------- one process
def from_first(value: Made) -> Made:
    """The value that the first process has."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def on_first(make: Callable[[], Made]) -> Made:
    """What the first process makes; where that ends the program there, all processes end."""
    if count() == 1:
        return make()
    made: Any = None
    end: SystemExit | None = None
    if is_first():
        try:
            made = make()
        except SystemExit as error:
            end = error
    made, has_ended = from_first((made, end is not None))
    if has_ended:
        raise end or SystemExit(1)
    return made


def after_first(make: Callable[[], Made]) -> Made:
    """What each process makes for itself, the first before the others: it may write files that
    these read."""
    made: list[Made] = []
    on_first(lambda: made.append(make()))
    return made[0] if made else make()


def any_of(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if count() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


# ------------------------------------------------------------------------------------------ batches
def share(B: int) -> slice:
    """The items of a batch of B that are this process's."""
    if count() == 1:
        return slice(0, B)
    if B < count():
        raise SystemExit(f"--batch: expected an item or more for each of {count()} processes in "
                         f"every batch, got a batch of {B}")
    rank = dist.get_rank()
    return slice(B * rank // count(), B * (rank + 1) // count())


def share_of(whole: Any) -> Any:
    """Of a state, tensors (..., B, N) in nested tuples, or None, the part of this process's
    items."""
    return _each(whole, lambda leaf: leaf[..., share(leaf.shape[-2]), :])


def whole(state: Any, B: int) -> Any:
    """The state of a batch of B, of what share_of gives each process."""
    if count() == 1:
        return state

    def joined(leaf: Tensor) -> Tensor:
        found = leaf.new_zeros(*leaf.shape[:-2], B, leaf.shape[-1])
        found[..., share(B), :] = leaf
        dist.all_reduce(found)
        return found

    return _each(state, joined)


def _each(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if state is None or count() == 1:
        return state
    if isinstance(state, Tensor):
        return change(state)
    return type(state)(*(_each(leaf, change) for leaf in state))


# ----------------------------------------------------------------------------- means and gradients
class _Sum(torch.autograd.Function):
    """The sum over the processes. Its gradient is that of this process's term alone: the others
    have their own, and the gradients of the parameters are added up at the end."""

    @staticmethod
    def forward(ctx: Any, term: Tensor) -> Tensor:
        found = term.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def mean(value: Tensor, items: int) -> Tensor:
    """The mean over the items of all processes, where value is that over this one's; of any
    shape."""
    if count() == 1:
        return value
    everywhere = torch.tensor(items)
    dist.all_reduce(everywhere)
    found: Tensor = _Sum.apply(value * (items / int(everywhere)))
    return found


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives each process the sum of the gradients of all."""
    if count() == 1:
        return
    gradients = [one.grad for one in parameters if one.grad is not None]
    total = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(total)
    for gradient, part in zip(gradients, total.split([one.numel() for one in gradients]),
                              strict=True):
        gradient.copy_(part.view_as(gradient))
