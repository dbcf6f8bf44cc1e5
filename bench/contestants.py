"""Contestants: one recurrent layer over a whole sequence, input projection included.

Ours, the eager loop, the compiled step and the jax scan compute the same equations with the same
weights (no bias). The layers of other packages and nn.LSTM compute their own with their own
weights: what they cost is what is compared.
"""
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from bench.peers import LAYERS
from bench.problem import ALPHA, BETA, DAMPENING, RHO, TAU_ADAPT, TAU_MEM, THETA, Problem
from lsnn_ext import ALIF
from lsnn_ext.zoo.surrogates import _make_spike

OURS = "lsnn_ext"


class Contestant:
    """A layer with its input, ready to run."""

    name: str
    spiking = True

    def forward(self) -> Tensor:
        """The outputs (T, B, N), no graph kept."""
        raise NotImplementedError

    def forward_backward(self) -> list[Tensor]:
        """The gradients of all weights for the fixed cotangent of the outputs."""
        raise NotImplementedError


class Differentiated(Contestant):
    """A layer of functions, whose gradients are those of leaves."""

    leaves: Sequence[Tensor]
    cotangent: Tensor

    def spikes(self) -> Tensor:
        """(T, B, N), with a graph where one is asked for."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.spikes()

    def forward_backward(self) -> list[Tensor]:
        return list(torch.autograd.grad(self.spikes(), self.leaves, self.cotangent))


class Within(Contestant):
    """Another contestant, whose passes run in a context."""

    def __init__(self, inner: Contestant,
                 context: Callable[[], AbstractContextManager[Any]]) -> None:
        self.name, self.inner, self.context = inner.name, inner, context

    def forward(self) -> Tensor:
        with self.context():
            return self.inner.forward()

    def forward_backward(self) -> list[Tensor]:
        with self.context():
            return self.inner.forward_backward()


@contextmanager
def rounding(precision: str) -> Iterator[None]:
    """torch's precision of products in float32, while this lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class TorchContestant(Contestant):
    """Any nn.Module from x to outputs."""

    def __init__(self, name: str, module: nn.Module, problem: Problem) -> None:
        self.name, self.module, self.problem = name, module.to(problem.x.device), problem
        self.spiking = not isinstance(module, _LSTM)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.module(self.problem.x)

    def forward_backward(self) -> list[Tensor]:
        self.module.zero_grad(set_to_none=True)
        self.module(self.problem.x).backward(self.problem.cotangent)
        return [p.grad for p in self.module.parameters() if p.grad is not None]


spike = _make_spike(lambda gradient, m: gradient * (DAMPENING * torch.relu(1 - m.abs())))
LoopState = tuple[Tensor, Tensor, Tensor]


def lsnn_step(x: Tensor, w_rec: Tensor, v: Tensor, a: Tensor, z: Tensor) -> LoopState:
    """One step of the model `lsnn`, without refractory period, delay and options."""
    a = RHO * a + (1 - RHO) * z
    A = THETA + BETA * a
    u = ALPHA * v + (1 - ALPHA) * (x + z @ w_rec) - z * A
    return u, a, spike((v - A) / A)


# One wrapper for all shapes and instances: what was compiled for the warm-up serves the run.
_compiled_step: Callable[..., LoopState] = torch.compile(lsnn_step, fullgraph=True, dynamic=False)


class _Loop(nn.Module):
    def __init__(self, problem: Problem, step: Callable[..., LoopState]) -> None:
        super().__init__()
        self.w_in = nn.Parameter(problem.w_in.clone())
        self.w_rec = nn.Parameter(problem.w_rec.clone())
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        current = x @ self.w_in.T
        v = a = z = torch.zeros_like(current[0])
        spikes = []
        for c in current:
            v, a, z = self.step(c, self.w_rec, v, a, z)
            spikes.append(z)
        return torch.stack(spikes)


class Ours(nn.Module):
    def __init__(self, problem: Problem, **options: Any) -> None:
        super().__init__()
        N, I = problem.w_in.shape
        self.layer = ALIF(I, N, bias=False, tau_mem=TAU_MEM, tau_adapt=TAU_ADAPT, beta=BETA,
                          threshold=THETA, dampening=DAMPENING, autapses=True, **options)
        with torch.no_grad():
            weights = dict(self.layer.named_parameters())
            weights["weight_ih_l0"].copy_(problem.w_in)
            weights["weight_hh_l0"].copy_(problem.w_rec.T)  # (to, from), as in nn.LSTM

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class _LSTM(nn.Module):
    kind: type[nn.Module] = nn.LSTM

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        N, I = problem.w_in.shape
        self.layer = self.kind(I, N, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def in_jax(step: Any, **spikes: Any) -> Callable[..., Any]:
    """A step of arithmetic for arrays of jax, with these spikes in place of torch's, by name."""
    return FunctionType(step.__code__, {**step.__globals__, **spikes})


def jax_spike(test: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Any:
    """1 where the test of m holds, with a slope of its own."""
    fire = importlib.import_module("jax").custom_vjp(lambda m: test(m).astype(m.dtype))
    fire.defvjp(lambda m: (fire(m), m), lambda m, g: (g * slope(m),))
    return fire


class JaxContestant(Contestant):
    """A layer of jax, compiled before the first run for this very shape.

    layer: a function of the parameters by name and the inputs.
    """

    def __init__(self, name: str, layer: Callable[[Any, Any], Any],
                 parameters: Mapping[str, Tensor], x: Tensor, cotangent: Tensor) -> None:
        jax = importlib.import_module("jax")
        self.name, self.jax, self.layer = name, jax, layer

        def both(parameters: Any, x: Any, cotangent: Any) -> Any:
            out, pull = jax.vjp(lambda these: layer(these, x), parameters)
            return out, pull(cotangent)[0]

        self.x, self.cotangent = (jax.numpy.asarray(one.numpy()) for one in (x, cotangent))
        self.parameters = {key: jax.numpy.asarray(value.detach().numpy())
                           for key, value in parameters.items()}
        self._forward = jax.jit(layer).lower(self.parameters, self.x).compile()
        self._both = jax.jit(both).lower(self.parameters, self.x, self.cotangent).compile()

    def forward(self) -> Tensor:
        return from_dlpack(self._forward(self.parameters, self.x).block_until_ready())

    def forward_backward(self) -> list[Tensor]:
        _, gradients = self.jax.block_until_ready(
            self._both(self.parameters, self.x, self.cotangent))
        return [from_dlpack(gradients[key]) for key in self.parameters]

    def residuals(self) -> list[tuple[int, int]]:
        """(address, bytes) of what jax.vjp keeps for the backward pass, weights and inputs left
        out."""
        pull = self.jax.jit(lambda w: self.jax.vjp(lambda w: self.layer(w, self.x),
                                                   w)[1])(self.parameters)
        # jit copies them, so addresses do not tell
        given = [(w.shape, w.dtype) for w in (*self.parameters.values(), self.x)]
        kept = []
        for leaf in self.jax.tree_util.tree_leaves(pull):
            same = (leaf.shape, leaf.dtype)
            if same in given:
                given.remove(same)
            else:
                kept.append((leaf.unsafe_buffer_pointer(), leaf.nbytes))
        return kept


def _jax_scan(name: str, problem: Problem) -> JaxContestant:
    """The same equations under jax.lax.scan."""
    jax = importlib.import_module("jax")
    step = in_jax(lsnn_step, spike=jax_spike(
        lambda m: m > 0, lambda m: DAMPENING * jax.numpy.maximum(1 - abs(m), 0)))

    def layer(weights: Any, x: Any) -> Any:
        w_in, w_rec = weights["w_in"], weights["w_rec"]

        def one(state: Any, c: Any) -> Any:
            after = step(c, w_rec, *state)
            return after, after[-1]

        zero = jax.numpy.zeros((x.shape[1], w_rec.shape[0]), x.dtype)
        return jax.lax.scan(one, (zero, zero, zero), x @ w_in.T)[1]

    weights = {"w_in": problem.w_in, "w_rec": problem.w_rec}
    return JaxContestant(name, layer, weights, problem.x, problem.cotangent)


def maker_of(layer: Callable[[Problem], nn.Module]) -> Callable[[str, Problem], Contestant]:
    """Makes the contestant of a layer of torch."""
    return lambda name, problem: TorchContestant(name, layer(problem), problem)


MAKERS: dict[str, Callable[[str, Problem], Contestant]] = {
    OURS: maker_of(Ours),
    "jax scan, jit": _jax_scan,
    "compiled step": maker_of(partial(_Loop, step=_compiled_step)),
    "eager loop": maker_of(partial(_Loop, step=lsnn_step)),
    **{name: maker_of(layer) for name, layer in LAYERS.items()},
    "nn.LSTM": maker_of(_LSTM),
}


def make(name: str, problem: Problem) -> Contestant:
    """The named contestant, its weights drawn from a fixed seed."""
    torch.manual_seed(3)
    return MAKERS[name](name, problem)


def warm_up(name: str, problem: Problem) -> None:
    """Imports and compiles what the contestant needs. Four steps, since the first step and later
    ones are compiled separately."""
    short = make(name, problem.first(4))
    short.forward()
    short.forward_backward()
