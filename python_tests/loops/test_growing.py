"""Tensors that torch.cat makes longer in each iteration."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext import fuse
from lsnn_ext.loops.ir import Refused
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.record import record
from small_loops import compare, random, spike

T, B, N = 12, 3, 5


def read_in_an_iteration(seq: Tensor, z: Tensor, t: int) -> Tensor:
    return torch.cat([seq, z[None] * (seq.sum() if t == 5 else 1.0)])


def without_grad(seq: Tensor, z: Tensor, t: int) -> Tensor:
    with torch.no_grad():
        made = torch.cat([seq, z[None]])
    return made if t < 3 else torch.cat([seq, z[None]])


def written(seq: Tensor, z: Tensor, t: int) -> Tensor:
    """To z, after it has gone into the tensor."""
    made, z = torch.cat([seq, z[None]]), z * 2
    z.add_(1.0)
    return made


# Its first shape, None for none; what makes it longer; what is returned.
GROWN: dict[str, tuple[tuple[int, ...] | None, Callable[..., Any], Callable[[Tensor], Any]]] = {
    "from nothing": (None, lambda seq, z, t: (
        z[None] if seq is None else torch.cat([seq, z[None]])), lambda seq: seq),
    "from tensor([])": ((0,), lambda seq, z, t: torch.cat((seq, z.unsqueeze(0))), lambda seq: seq),
    "batch first": ((B, 0, N), lambda seq, z, t: torch.concat((seq, z.unsqueeze(1)), dim=-2),
                    lambda seq: (seq, seq[:, -1])),
    "columns": ((B, 0), lambda seq, z, t: torch.cat(tensors=(seq, z), dim=1),
                lambda seq: seq.view(B, -1, N)),
    "rows": ((0, N), lambda seq, z, t: torch.cat((seq, z)), lambda seq: seq),
    "after zeros": ((1, B, N), lambda seq, z, t: torch.cat((seq, z[None])), lambda seq: seq[1:]),
    "in front": ((0, B, N), lambda seq, z, t: torch.cat((z[None], seq)), lambda seq: seq),
    "two at once": ((0, B, N), lambda seq, z, t: torch.cat((seq, z[None], 2 * z[None])),
                    lambda seq: torch.cat((seq, seq))),
    "a view": ((0, B, N), lambda seq, z, t: torch.cat((seq, z.view(1, B, N))), lambda seq: seq),
    "another dimension": ((0, B, N), lambda seq, z, t: torch.cat((seq, z[None])),
                          lambda seq: torch.cat((seq, seq), 2)),
    "from the start again": ((0, B, N), lambda seq, z, t: (
        z[None] if t == 6 else torch.cat((seq, z[None]))), lambda seq: seq),
    "written": ((0, B, N), written, lambda seq: seq)}
PARTLY = {"read": read_in_an_iteration, "partly under no_grad": without_grad,
          "partly detached": lambda seq, z, t: torch.cat([seq, (z if t % 2 else z.detach())[None]]),
          "written in place": lambda seq, z, t: torch.cat([seq, z[None]]).mul_(0.5),
          "its last part": lambda seq, z, t: torch.cat([seq, z[None] + seq[-1:] if t else z[None]])}


def make_model(shape: tuple[int, ...] | None, grow: Callable[..., Any],
               finish: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    def model(x: Tensor, w: Tensor) -> Any:
        v = z = torch.zeros(B, N, dtype=x.dtype)
        seq = None if shape is None else torch.zeros(shape, dtype=x.dtype)
        for t, one in enumerate(x):
            v = 0.9 * v + one + z @ w - z
            z = spike(v - 0.5)
            seq = grow(seq, z, t)
        return finish(seq)

    return model


@pytest.mark.parametrize("name", GROWN)
def test_tensors_that_grow(name: str) -> None:
    plan = compare(make_model(*GROWN[name]), random(T, B, N), random(N, N, seed=1))
    if name in ("from nothing", "from tensor([])", "batch first"):
        assert "cat" not in [call.name for call in plan.recording.calls]


@pytest.mark.parametrize("name", PARTLY)
def test_tensors_that_grow_are_equal_or_refused(name: str) -> None:
    model = make_model((0, B, N), PARTLY[name], lambda seq: seq)
    given = random(T, B, N), random(N, N, seed=1).requires_grad_()
    try:
        fused = fuse(model, given)
    except Refused:
        return
    for seed in range(2):
        x = random(T, B, N, seed=seed)
        made = [one(x, given[1]) for one in (model, fused)]
        torch.testing.assert_close(made[1], made[0])
        gradients = [torch.autograd.grad(one.square().sum(), given[1])[0] for one in made]
        torch.testing.assert_close(gradients[1], gradients[0])


def test_shorter_ones_take_no_memory() -> None:
    given = random(T, B, N), random(N, N, seed=1)
    model = make_model(*GROWN["batch first"])
    _, recording = record(model, given, {}, Origins(model, given, {}), True)
    lengths = [one.shape[1] for one in recording.numbers.values() if len(one) == B]
    assert {*lengths} == {0, 1, N, T}


def test_a_few_parts_of_an_iteration_are_multiplied() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        v = z = a = torch.zeros(B, N, dtype=x.dtype)
        made = []
        for one in x:
            v = 0.9 * v + torch.cat((torch.cat((one, z), 1), a), 1) @ w - z
            z, a = spike(v - 0.5), 0.9 * a + z
            made.append(z)
        return torch.stack(made)

    compare(model, random(T, B, N), random(3 * N, N), fused=1)
