"""Single steps of a prepared layer under autograd on the CPU: one light node a step.

The kernels are those of whole sequences. Steps share the packed weights and the graph from learned
constants to coefficients. Both are made once with the layer, and last until the parameters change:
the backward pass of a step uses the weights of its forward pass.

All steps of a layer depend on one node in the graph, that of its parameters. A backward pass sums
the gradients of its steps where they are computed, and this node, which runs last, returns them. So
no step makes a matrix for autograd to add.
"""
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from .._ops import materialize
from .autograd_rules import forbid_second_derivative
from .bits import count_words, make_carrier
from .prepared_layer import PreparedLayer, find_addresses
from .state import State
from .torch_internals import current_backward_pass, is_batched, is_reached, keep_during_pass

_Gradients = tuple[Tensor | None, ...]


class _Sums(list[Tensor | None]):
    """Sums of the gradients of what the steps of a layer share, None where none is required: w_rec
    (S, N, NP) for each delay, in the rows of the kernels, w_in, bias, coefficients (11, N)."""


class RecordedLayer(PreparedLayer):
    """A prepared layer whose steps autograd records."""

    def __init__(self, *arguments: Any, learned: dict[str, Tensor]) -> None:
        """As PreparedLayer; learned: copies of the sources that require a gradient, from which the
        coefficients of neuron were made."""
        super().__init__(*arguments, recorded=True)
        self.copies = tuple(learned.values())
        # By the number of the backward pass, which owns them, so a failed one discards them.
        self.passes: WeakValueDictionary[int, _Sums] = WeakValueDictionary()
        with torch.enable_grad():
            self.parameters = _Parameters.apply(
                self, self.synapses and self.synapses.stored, *self.projection,
                *(one for name, one, *_ in self.sources if name in learned))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step where is_current() holds: inputs (B, I), a state of plain tensors -> spikes
        (B, N), and a state with the same shapes."""
        spikes, *after = _Step.apply(self, x, *state, self.parameters)
        return spikes, State(*after)

    def find_sums(self) -> _Sums:
        """The sums of the current backward pass; none where it does not reach the parameters."""
        node, number = self.parameters.grad_fn, current_backward_pass()
        if node is None or not is_reached(node):
            return _Sums([None] * 4)
        found = self.passes.get(number)
        if found is not None:
            return found
        (w_in, bias), stored = self.projection, self.synapses and self.synapses.stored
        shapes = (len(self.delays), len(w_in), self.row), w_in.shape, w_in.shape[:1]
        required = [one is not None and one.requires_grad for one in (stored, w_in, bias)]
        found = self.passes[number] = _Sums(
            torch.zeros(shape, dtype=self.dtype, device="cpu") if is_required else None
            for shape, is_required in zip((*shapes, self.coefficients.shape),
                                          (*required, bool(self.gradient_bits)), strict=True))
        keep_during_pass(found)
        return found

    def compute_gradients(self, sums: Sequence[Tensor | None]) -> _Gradients:
        """The gradients of the arguments of _Parameters that follow the layer."""
        w_rec, w_in, bias, coefficients = sums
        if w_rec is not None:
            assert self.synapses is not None
            w_rec = w_rec[..., : w_rec.shape[1]]
            if self.delay is None:
                w_rec = w_rec[0]
            else:
                w_rec = sum((one.masked_fill(self.delay != d, 0.0)
                             for one, d in zip(w_rec, self.delays, strict=True)),
                            torch.zeros_like(w_rec[0]))
            if not self.synapses.autapses:
                w_rec = w_rec.fill_diagonal_(0.0)
            w_rec = w_rec.t()
        learned: _Gradients = (None,) * len(self.copies)
        if self.copies and coefficients is not None:
            learned = torch.autograd.grad(self.coefficients, self.copies, coefficients,
                                          retain_graph=True, allow_unused=True)
        return w_rec, w_in, bias, *learned


class _Parameters(torch.autograd.Function):
    """The parameters of a layer -> a tensor without memory, on which the steps depend.

    It saves nothing, so any number of backward passes may reach it. Steps add to the sums of the
    pass. They pass it a gradient only where the pass is recorded: a zero whose graph contains all
    that the sums depend on.
    """

    @staticmethod
    def forward(ctx: Any, layer: RecordedLayer, *parameters: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.layer = layer
        return make_carrier(layer.projection.w_in, 1)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> _Gradients:
        ended = ctx.layer.passes.pop(current_backward_pass(), None)
        if ended is None:
            return (None,) * len(ctx.needs_input_grad)
        sums = [*ended]
        ended.clear()  # autograd copies a gradient that has another reference
        with torch.no_grad():
            found = ctx.layer.compute_gradients(sums)
        return None, *forbid_second_derivative(found, (g, ctx.layer.parameters))


class _Step(torch.autograd.Function):
    """A layer, its inputs (B, I), a state and its parameters -> spikes (B, N) and the state after
    the step. The leaves of the state may have any shape."""

    @staticmethod
    def forward(ctx: Any, layer: RecordedLayer, x: Tensor, v: Tensor, a: Tensor, i: Tensor,
                r: Tensor, z: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
        before = v, a, i, r, z
        current = nn.functional.linear(x, *layer.projection)
        spikes, y = torch.empty_like(current), torch.empty_like(current)
        after = [torch.empty_like(leaf) for leaf in before]
        B, N = current.shape
        bits = torch.empty((B, count_words(N)), dtype=torch.int32, device="cpu")
        layer.record(B, current.data_ptr(), find_addresses(before), find_addresses(after),
                     spikes.data_ptr(), y.data_ptr(), bits.data_ptr())
        ctx.mark_non_differentiable(after[3])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*before, y, bits, x,
                              layer.projection.w_in if x.requires_grad else None)
        ctx.layer = layer
        return spikes, *after

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> _Gradients:
        if any(one is not None and is_batched(one) for one in g):
            raise RuntimeError("lsnn_ext: expected the gradient of one result, got a batch of "
                               "gradients; call the backward pass for each")
        saved = ctx.saved_tensors
        with torch.no_grad():
            found = _compute_adjoint(ctx.layer, ctx.needs_input_grad[2:7], saved, g)
        parameters = ctx.layer.parameters
        to_parameters = torch.zeros_like(parameters) if torch.is_grad_enabled() else None
        return None, *forbid_second_derivative((*found, to_parameters), (*g, *saved, parameters))


def _compute_adjoint(layer: RecordedLayer, needed: Sequence[bool], saved: Sequence[Any],
                     g: _Gradients) -> _Gradients:
    """The needed gradients of x, where w_in is saved, and of the state. Those of the parameters are
    added to the sums of this backward pass."""
    v, a, i, r, z, y, bits, x, w_in = saved
    before, (w_rec, to_w_in, bias, coefficients) = (v, a, i, r, z), layer.find_sums()
    g_v, g_a, g_i, g_r, g_z = (None if leaf is None or not need else torch.empty_like(leaf)
                               for leaf, need in zip(before, needed, strict=True))
    current = torch.empty_like(y)
    dense = [None if one is None else materialize(  # contiguous, and its memory holds its numbers
        (one if one.layout is torch.strided else one.to_dense()).contiguous()) for one in g]
    del dense[4]  # of r, which has none
    gradient_bits = layer.gradient_bits if coefficients is not None else 0
    layer.adjoint(y.shape[0], gradient_bits, find_addresses(before), y.data_ptr(), bits.data_ptr(),
                  find_addresses(dense), find_addresses((current, g_v, g_a, g_i, g_z)),
                  find_addresses((w_rec, bias, coefficients)))
    if to_w_in is not None:
        to_w_in.addmm_(current.t(), x)
    return None if w_in is None else torch.mm(current, w_in), g_v, g_a, g_i, None, g_z
