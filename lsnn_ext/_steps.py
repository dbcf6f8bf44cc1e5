"""Single steps under autograd on the CPU, of a prepared layer: a light node for each of them.

The kernels are those of the whole sequence. What many steps share, the packed weights and the way
from the coefficients to what was learned, is made once, with the layer, and lasts as long as the
parameters stay as they are: a backward pass through a step takes the weights of its forward pass.
"""
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._inference import PreparedLayer, Synapses
from ._once import only_once
from ._ops import solid
from ._resolve import Neuron
from ._torch_internals import is_transforming
from .models import State

_Gradients = tuple[Tensor | None, ...]


class RecordedLayer(PreparedLayer):
    """A prepared layer whose steps autograd records."""

    def __init__(
        self, constants: Hashable, sources: dict[str, Tensor], neuron: Neuron, N: int,
        dtype: torch.dtype, synapses: Synapses | None, learned: dict[str, Tensor],
    ) -> None:
        """As PreparedLayer; learned: of the sources that require a gradient the copies that the
        coefficients of neuron were made of."""
        super().__init__(constants, sources, neuron, N, dtype, synapses, recorded=True)
        with torch.enable_grad():
            # a view: its node saves nothing, so any number of backward passes may come through it
            self.weights = None if synapses is None else synapses.stored.t()
            made = self.coefficients.detach()
            if self.want:
                made = _Coefficients.apply(self.coefficients, tuple(learned.values()),
                                           *(sources[name] for name in learned))
        self.coefficients = made


class _Coefficients(torch.autograd.Function):
    """Coefficients (11, N), and the copies that they were made of -> the same for the parameters.

    All steps share this node, so the graph behind it is never freed.
    """

    @staticmethod
    def forward(
        ctx: Any, made: Tensor, copies: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.made, ctx.copies = made, copies
        return made.detach().clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.autograd.grad(ctx.made, ctx.copies, g, retain_graph=True, allow_unused=True)
        return None, None, *only_once(found, (g,))


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


class _Step(torch.autograd.Function):
    """A layer, its current (B, N) and its state in any form, the weights and coefficients whose
    gradients are wanted -> spikes (B, N) and the state after the step."""

    @staticmethod
    def forward(
        ctx: Any, layer: RecordedLayer, current: Tensor, v: Tensor, a: Tensor, i: Tensor, r: Tensor,
        z: Tensor, weights: Tensor | None, coefficients: Tensor,
    ) -> tuple[Tensor, ...]:
        before = v, a, i, r, z
        spikes, y = torch.empty_like(current), torch.empty_like(current)
        after = [torch.empty_like(leaf) for leaf in before]
        B, N = current.shape
        bits = torch.empty((B, (N + 31) // 32), dtype=torch.int32)
        layer.record(B, current.data_ptr(), _addresses(before), _addresses(after),
                     spikes.data_ptr(), y.data_ptr(), bits.data_ptr())
        ctx.mark_non_differentiable(after[3])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*before, y, bits)
        ctx.layer = layer
        return spikes, *after

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> _Gradients:
        saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]

        def adjoint(*g: Tensor | None) -> _Gradients:
            return _adjoint(ctx.layer, needed, saved, g)

        with torch.no_grad():
            found = _ForEach.apply(adjoint, *g) if is_transforming() else adjoint(*g)
        return None, *only_once(found, (*g, *saved))


def _adjoint(
    layer: RecordedLayer, needed: Sequence[bool], saved: Sequence[Tensor], g: _Gradients,
) -> _Gradients:
    """Gradients of what _Step takes behind the layer, those that are needed."""
    *before, y, bits = saved
    dense = [None if one is None else _dense(one) for one in g]
    current, weights, coefficients = torch.empty_like(y), None, None
    v, a, i, r, z = (torch.empty_like(leaf) if need else None
                     for leaf, need in zip(before, needed[1:6], strict=True))
    if needed[6]:
        weights = y.new_empty(y.shape[1], y.shape[1])
    want = layer.want if needed[7] else 0
    if want:
        coefficients = torch.empty_like(layer.coefficients)
    spikes, g_v, g_a, g_i, _, g_z = dense
    layer.adjoint(y.shape[0], want, _addresses(before), y.data_ptr(), bits.data_ptr(),
                  _addresses((spikes, g_v, g_a, g_i, g_z)),
                  _addresses((current, v, a, i, z, weights, coefficients)))
    return current if needed[0] else None, v, a, i, None, z, weights, coefficients


def _dense(g: Tensor) -> Tensor | None:
    """Numbers one after the other, as their addresses say."""
    return solid((g if g.layout is torch.strided else g.to_dense()).contiguous())


class _ForEach(torch.autograd.Function):
    """A function of gradients, called for each of those that torch.vmap runs over."""

    @staticmethod
    def forward(function: Callable[..., _Gradients], *g: Tensor | None) -> _Gradients:
        return function(*g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Gradients) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Callable[..., _Gradients],
        *g: Tensor | None,
    ) -> tuple[_Gradients, tuple[int | None, ...]]:
        found = [
            _ForEach.apply(function, *(
                one if one is None or axis is None else one.select(axis, k)
                for one, axis in zip(g, in_dims[1:], strict=True)
            ))
            for k in range(info.batch_size)
        ]
        stacked = tuple(None if parts[0] is None else torch.stack(parts)
                        for parts in zip(*found, strict=True))
        return stacked, tuple(None if part is None else 0 for part in stacked)


def recorded_step(layer: RecordedLayer, current: Tensor, state: State) -> tuple[Tensor, State]:
    """One step of a layer whose is_current() holds: current (B, N), a state of ordinary tensors in
    any form -> spikes (B, N) and the state of this form."""
    spikes, *after = _Step.apply(layer, current, *state, layer.weights, layer.coefficients)
    return spikes, State(*after)
