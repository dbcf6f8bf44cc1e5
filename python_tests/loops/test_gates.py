"""Gates: parts of one product, taken apart along the last axis, as in an LSTM."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lsnn_ext import fuse
from small_loops import compare, random, spike
from small_loops import run as run_plan

T, B, I, N = 9, 3, 4, 6


def run(cell: Callable[..., Any]) -> Callable[..., Any]:
    """A loop over x with a hidden state and a cell."""
    def model(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor, h: Tensor) -> Any:
        c, made = torch.zeros_like(h), []
        for one in x:
            h, c = cell(one, w_in, w, b, h, c)
            made.append(h)
        return torch.stack(made), c

    return model


def lstm(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor, h: Tensor, c: Tensor) -> Any:
    i, f, g, o = (F.linear(x, w_in) + F.linear(h, w, b)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def spiking_lstm(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor, h: Tensor, c: Tensor) -> Any:
    """All gates are spikes."""
    gates = spike(F.linear(torch.cat([x, h], 1), torch.cat([w_in, w], 1), b))
    i, f, g, o = gates.split(N, -1)
    c = f * c + i * g
    return o * c, c


def gru(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor, h: Tensor, c: Tensor) -> Any:
    r_x, u_x, n_x = F.linear(x, w_in).chunk(3, 1)
    r, u, n = (h @ w.t() + b).tensor_split(3, dim=1)
    u = torch.sigmoid(u + u_x)
    n = torch.tanh(n_x + torch.sigmoid(r + r_x) * n)
    return (1 - u) * n + u * h, c


def sliced(x: Tensor, w_in: Tensor, w: Tensor, b: Tensor, h: Tensor, c: Tensor) -> Any:
    """A sigmoid of two gates at once, and slices of several kinds."""
    gates = F.linear(x, w_in, b) + F.linear(h, w)
    f, i = torch.sigmoid(gates[:, :2 * N]).chunk(2, -1)
    c = f * c + i * gates[..., 2 * N:3 * N]
    return spike(c - gates[:, -N:]), c


@pytest.mark.parametrize(("cell", "gates"), [
    (lstm, 4), (spiking_lstm, 4), (gru, 3), (sliced, 4)],
    ids=lambda one: getattr(one, "__name__", ""))
def test_gates(cell: Callable[..., Any], gates: int) -> None:
    compare(run(cell), random(T, B, I), random(gates * N, I, seed=1), random(gates * N, N, seed=2),
            random(gates * N, seed=3), random(B, N, seed=4))


@pytest.mark.parametrize("biases", [0, 1, 2])
@pytest.mark.parametrize(("cell", "gates"), [
    (torch.lstm_cell, 4), (torch.gru_cell, 3), (torch.rnn_tanh_cell, 1),
    (torch.rnn_relu_cell, 1)], ids=lambda one: getattr(one, "__name__", ""))
def test_cells_of_torch(cell: Any, gates: int, biases: int) -> None:
    def model(x: Tensor, h: Tensor, *weights: Tensor) -> Any:
        c, made = torch.zeros_like(h), []
        for one in x:
            if gates == 4:
                h, c = cell(one, (h, c), *weights)
            else:
                h = cell(one, h, *weights)
            made.append(spike(h))
        return torch.stack(made), h, c

    weights = [random(gates * N, I, seed=1), random(gates * N, N, seed=2)]
    added = [random(gates * N, seed=3), random(gates * N, seed=5)][:biases]
    compare(model, random(T, B, I), random(B, N, seed=4), *weights, *added)


def test_cells_under_autocast_are_equal() -> None:
    def model(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            for one in x:
                h = torch.gru_cell(one, h, *weights)
        return h

    shapes = (T, B, I), (B, N), (3 * N, I), (3 * N, N), (3 * N,), (3 * N,)
    want, got, plan = run_plan(model, [random(*shape).float() for shape in shapes])
    assert "gru_cell" in [call.name for call in plan.recording.calls]
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)


def test_a_state_of_all_gates() -> None:
    """The gates of the step before are read, and those of the last step are a result."""
    def model(x: Tensor, w: Tensor, v: Tensor, gates: Tensor) -> Any:
        made = []
        for one in x:
            before, _ = gates.chunk(2, 1)
            gates = 0.5 * gates + F.linear(v, w) + one
            f, i = gates.chunk(2, 1)
            v = torch.tanh(torch.sigmoid(f) * v + i - before)
            made.append(gates)
        return torch.stack(made), v

    given = (random(T, B, 2 * N), random(2 * N, N, seed=1), random(B, N, seed=2),
             random(B, 2 * N, seed=3))
    compare(model, *given)
    fuse(model, tuple(one.requires_grad_() for one in given))  # which compares each step
