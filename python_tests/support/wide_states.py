"""Checks of neurons with complex states or axes, in functions and layers."""
import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, unpack_sequence

from compare import assert_same
from lsnn_ext import Neuron, NeuronState, Recurrent, use_reference
from lsnn_ext.functional import recurrent

T, B, N = 30, 3, 13
TOLERANCES = {torch.float64: (1e-12, 1e-9), torch.float32: (1e-4, 1e-3)}


def leaves_of(values: dict[str, Any]) -> dict[str, Any]:
    return {name: one.detach().clone().requires_grad_()
            if isinstance(one, Tensor) else one for name, one in values.items()}


def as_real(tensor: Tensor) -> Tensor:
    """Complex numbers as an axis of their parts."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def total(results: list[Tensor], seed: int = 7) -> Tensor:
    """A random real sum of the parts of all results."""
    random = torch.Generator().manual_seed(seed)
    return sum(((part * torch.randn(part.shape, generator=random).to(part)).sum()
                for part in map(as_real, results)), torch.zeros(()))


def plain_loop(step: Callable[..., Any], x: Tensor, w: Tensor, states: list[Tensor], z: Tensor,
               coefficients: dict[str, Any]) -> list[Tensor]:
    """Spikes, states after the last step, traces."""
    spikes, traces = [], []
    for now in x:
        *states, z = step(now + z @ w, *states, z, **coefficients)
        spikes.append(z)
        traces.append(states)
    return [torch.stack(spikes), *states, *(torch.stack(one) for one in zip(*traces, strict=True))]


def check(neuron: Neuron, loop_step: Callable[..., Any], zeros: list[Tensor],
          coefficients: dict[str, Any], *, drive: float = 2.0, mean: float = 0.5, seed: int = 0,
          dtype: torch.dtype = torch.float64, are_used: bool = True, **more: Any) -> None:
    """Spikes equal, all else close to the loop; are_used: no gradient is 0."""
    random = torch.Generator().manual_seed(seed)
    x = (mean + drive * torch.randn(T, B, N, generator=random, dtype=torch.float64)).to(dtype)
    w = (0.5 * torch.randn(N, N, generator=random, dtype=torch.float64)).to(dtype)
    given = {"x": x, "w_rec": w, **coefficients}
    mine, theirs = leaves_of(given), leaves_of(given)
    spikes, state, traces = recurrent(neuron=neuron, trace=True, **mine, **more)
    got = [spikes, *state.states.values(), *traces.values()]
    named = {name: theirs[name] for name in coefficients}
    wanted = plain_loop(loop_step, theirs["x"], theirs["w_rec"], zeros, x.new_zeros(B, N), named)
    assert 0.01 < float(spikes.detach().mean()) < 0.9
    assert torch.equal(spikes, wanted[0])
    close, of_gradients = TOLERANCES[dtype]
    for one, other in zip(map(as_real, got), map(as_real, wanted), strict=True):
        largest = float(other.detach().abs().max())
        assert_same("result", one, other, tolerance=close, scale=max(1.0, largest))
    names = [name for name, one in mine.items() if isinstance(one, Tensor)]
    found, expected = (torch.autograd.grad(total(results), [leaves[name] for name in names])
                       for results, leaves in ((got, mine), (wanted, theirs)))
    for name, one, other in zip(names, map(as_real, found), map(as_real, expected), strict=True):
        largest = float(other.abs().max())
        assert largest > 0 or not are_used, name
        assert_same(name, one, other, tolerance=of_gradients,
                    scale=largest + 1e-13 / of_gradients)


def check_with_the_reference(neuron: Neuron, tensors: dict[str, Tensor],
                             state: Callable[[dict[str, Any]], NeuronState] | None = None,
                             **more: Any) -> None:
    """Results and gradients of the kernels are those of the loop over time.

    Args:
        tensors: arguments of recurrent, which get gradients; "u0" only goes to `state`.
        state: makes the first state of the leaves.
    """
    found = []
    for context in (nullcontext, use_reference):
        leaves = leaves_of(tensors)
        call = {name: leaf for name, leaf in leaves.items() if name != "u0"}
        with context():
            spikes, end, traces = recurrent(neuron=neuron, trace=True, **call, **more,
                                            state=state and state(leaves))
        outputs = [spikes, *end.states.values(), *traces.values()]
        found.append([*outputs, *torch.autograd.grad(total(outputs), list(leaves.values()))])
    assert torch.equal(found[0][0], found[1][0]) and bool(found[0][0].any())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def check_parts(neuron: Neuron, x: Tensor, w_rec: Tensor | None, name: str,
                **coefficients: Any) -> NeuronState:
    """Returns the state between two calls, which are bitwise one; a mask resets it."""
    whole, last = recurrent(x, w_rec, neuron, **coefficients)
    first, state = recurrent(x[:9], w_rec, neuron, **coefficients)
    second, end = recurrent(x[9:], w_rec, neuron, state=state, **coefficients)
    assert torch.equal(torch.cat([first, second]), whole) and bool(whole.any())
    assert torch.equal(end.states[name], last.states[name])
    mask = torch.tensor([True, False, True])
    reset = state.reset(mask).states[name]
    assert not reset[mask].any() and torch.equal(reset[1], state.states[name][1])
    return state


def check_compiled(neuron: Neuron, name: str, **coefficients: Tensor) -> None:
    """A compiled call is bitwise identical."""
    def call(x: Tensor, **given: Tensor) -> Any:
        return recurrent(x, None, neuron, **given)

    x = 2 * torch.randn(T, B, N, dtype=torch.float64)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    spikes, state = compiled(x, **leaves_of(coefficients))
    wanted, end = call(x, **coefficients)
    assert torch.equal(spikes, wanted) and torch.equal(state.states[name], end.states[name])


def check_layer(layer: Recurrent, other: Recurrent, learned: tuple[str, ...], name: str) -> None:
    """Gradients, state dicts, copies and forms of input of a layer; other: with other numbers."""
    x = 2 * torch.randn(T, B, 5, dtype=torch.float64)
    spikes, state = layer(x)
    assert bool(spikes.any())
    total([spikes, *state.states.values()]).backward()
    for one in learned:
        gradient = layer.get_parameter(one).grad
        assert gradient is not None and float(gradient.abs().min()) > 0
    assert not torch.equal(other(x)[0], spikes)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x)[0], spikes) and torch.equal(copy.deepcopy(layer)(x)[0], spikes)
    _, end, traces = layer(x[:, 0], trace=True)
    shape = state.states[name].shape[1:]
    assert end.states[name].shape == shape and traces[name].shape == (T, *shape)
    assert torch.equal(layer(x[:, 0], end)[0], layer(x[:, :1], layer(x[:, :1])[1])[0][:, 0])
    assert not end.reset(torch.tensor(True)).states[name].any()
    packed = pack_padded_sequence(x, torch.tensor([T, 7, 3]))
    rows = unpack_sequence(layer(packed, trace=True)[2][name])
    torch.testing.assert_close(rows[1], layer(x[:7, 1], trace=True)[2][name])
    assert pickle.loads(pickle.dumps(layer.neuron)) == layer.neuron


def draw_operators(draw: Random, unary: list[Callable[[Tensor], Tensor]],
                   binary: list[Callable[[Tensor, Tensor], Tensor]],
                   ) -> Callable[[list[Tensor]], list[Tensor]]:
    """A function that appends results of random operators to a list of tensors."""
    plan = [(draw.random() < 0.5, draw.choice(unary), draw.choice(binary), draw.random(),
             draw.random()) for _ in range(draw.randint(2, 6))]

    def grow(made: list[Tensor]) -> list[Tensor]:
        for is_unary, one, two, i, j in plan:
            a, b = made[int(i * len(made))], made[int(j * len(made))]
            made.append(one(a) if is_unary else two(a, b))
        return made
    return grow
