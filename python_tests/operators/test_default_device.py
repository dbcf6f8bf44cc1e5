"""Modules on the CPU while another device is the default one, as after
torch.set_default_device("cuda")."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lsnn_ext import ALIF, LSNN, LearnedDelay, Recurrent, zoo
from lsnn_ext.optim import DeepR
from module_kinds import run_steps

T, B, I, N = 9, 3, 5, 7


Case = tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]
CASES: dict[str, Case] = {
    "lengths": (lambda: ALIF(I, N, num_layers=2, bidirectional=True),
                lambda model, x: model(x, lengths=[9, 4, 6])[0]),
    "packed": (lambda: ALIF(I, N),
               lambda model, x: model(pack_padded_sequence(x, [9, 7, 2]))[0].data),
    "dropout": (lambda: LSNN(I, 4, 3, 2, recurrent_dropout=0.3), lambda model, x: model(x)[0]),
    "steps": (lambda: LSNN(I, 4, 3, 2), lambda model, x: run_steps(model, x)[0]),
    "learned delay": (lambda: LearnedDelay(I, N, longest=4), lambda model, x: model(x)[0]),
    "any neuron": (lambda: Recurrent(zoo.brf.neuron, I, N), lambda model, x: model(x)[0])}


@pytest.mark.parametrize("has_grad", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_module_on_the_cpu(name: str, has_grad: bool) -> None:
    torch.manual_seed(0)
    make, run = CASES[name]
    model, x = make(), torch.randn(T, B, I)

    def compute() -> list[Tensor]:
        torch.manual_seed(1)
        with torch.set_grad_enabled(has_grad):
            result = run(model, x)
        if not has_grad:
            return [result]
        return [result.detach(), *torch.autograd.grad(result.square().sum(), model.parameters())]

    wanted = compute()
    with torch.device("meta"):
        got = compute()
    assert all(map(torch.equal, got, wanted))


def test_rewiring_on_the_cpu() -> None:
    def train() -> Tensor:
        weight = nn.Parameter(torch.ones(N, N, device="cpu"))
        optimizer = DeepR(torch.optim.SGD([{"params": [weight], "connectivity": 0.5}], 0.1),
                          temperature=0.01, generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            weight.grad = torch.full_like(weight, 8.0)
            optimizer.step()
        return weight.detach()

    wanted = train()
    assert 0 < int((wanted == 0).sum()) < N * N
    with torch.device("meta"):
        assert torch.equal(train(), wanted)
