"""Single steps of a prepared layer under autograd on the CPU: one light node a step.

The kernels are those of whole sequences. Steps share the packed weights and the graph from learned
constants to coefficients. Both are made once with the layer, and last until the parameters change:
the backward pass of a step uses the weights of its forward pass.

All steps of a layer depend on one node in the graph, that of its parameters. A backward pass sums
the gradients of its steps where they are computed, and this node, which runs last, returns them. So
no step makes a matrix for autograd to add.
"""
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from .._ops import materialize
from .arguments import Delay
from .autograd_rules import forbid_second_derivative
from .bits import count_words, make_carrier
from .options import NeuronArguments
from .prepared_layer import PreparedLayer, RecurrentWeights
from .state import State
from .torch_internals import current_backward_pass, is_batched, is_reached, keep_during_pass

_Gradients = tuple[Tensor | None, ...]


class Projection(NamedTuple):
    w_in: Tensor  # (N, I)
    bias: Tensor | None  # (N,)


class _Sums(NamedTuple):
    """Sums of the gradients of what the steps of a layer share; None where none is required."""

    w_rec: Tensor | None  # (S, N, NP) for each delay, in the rows of the kernels
    w_in: Tensor | None
    bias: Tensor | None
    coefficients: Tensor | None  # (11, N)


@dataclass(eq=False)
class _Pass:
    """The sums of a backward pass, until they are returned."""

    sums: _Sums


_NO_SUMS = _Sums(None, None, None, None)


def _shape_and_grad(tensor: Tensor | None) -> tuple[torch.Size, bool] | None:
    return None if tensor is None else (tensor.shape, tensor.requires_grad)


class RecordedLayer(PreparedLayer):
    """A prepared layer whose steps autograd records."""

    def __init__(self, constants: Hashable, sources: dict[str, Tensor], neuron: NeuronArguments,
                 delays: Delay, N: int, dtype: torch.dtype, synapses: RecurrentWeights | None,
                 learned: dict[str, Tensor], projection: Projection) -> None:
        """As PreparedLayer; learned: copies of the sources that require a gradient, from which the
        coefficients of neuron were made."""
        super().__init__(constants, sources, neuron, delays, N, dtype, synapses, recorded=True)
        self.synapses, self.projection, self.copies = synapses, projection, tuple(learned.values())
        self.forms = [_shape_and_grad(part) for part in projection]
        # By the number of the backward pass, which owns them, so a failed one discards them.
        self.passes: WeakValueDictionary[int, _Pass] = WeakValueDictionary()
        with torch.enable_grad():
            stored = None if synapses is None else synapses.stored
            self.parameters = _Parameters.apply(self, stored, *projection,
                                                *(sources[name] for name in learned))

    def has_projection(self, projection: Projection) -> bool:
        """Whether its input weights are these, and the same parameters require a gradient."""
        return all(one is other and form == _shape_and_grad(one) for one, other, form in zip(
            projection, self.projection, self.forms, strict=True)) and all(
            source.requires_grad is learns for _, source, _, _, learns in self.sources)

    def find_sums(self) -> _Sums:
        """The sums of the current backward pass; none where it does not reach the parameters."""
        node, number = self.parameters.grad_fn, current_backward_pass()
        if node is None or not is_reached(node):
            return _NO_SUMS
        found = self.passes.get(number)
        if found is None:
            self.passes[number] = found = _Pass(self._zeros())
            keep_during_pass(found)
        return found.sums

    def _zeros(self) -> _Sums:
        (w_in, bias), stored = self.projection, self.synapses and self.synapses.stored
        N, S = w_in.shape[0], len(self.delays)

        def zeros(is_required: bool, *shape: int) -> Tensor | None:
            return torch.zeros(shape, dtype=self.dtype, device="cpu") if is_required else None

        return _Sums(zeros(stored is not None and stored.requires_grad, S, N, self.row),
                     zeros(w_in.requires_grad, *w_in.shape),
                     zeros(bias is not None and bias.requires_grad, N),
                     zeros(bool(self.gradient_bits), *self.coefficients.shape))

    def compute_gradients(self, sums: _Sums) -> _Gradients:
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
        # Autograd copies a gradient that has another reference.
        sums, ended.sums = ended.sums, _NO_SUMS
        with torch.no_grad():
            found = ctx.layer.compute_gradients(sums)
        return None, *forbid_second_derivative(found, (g, ctx.layer.parameters))


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


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
        layer.record(B, current.data_ptr(), _addresses(before), _addresses(after),
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


def _compute_adjoint(layer: RecordedLayer, needed: Sequence[bool], saved: Sequence[Tensor | None],
                     g: _Gradients) -> _Gradients:
    """The needed gradients of x, where w_in is saved, and of the state.

    Gradients of the parameters are added to the sums of this backward pass.
    """
    v, a, i, r, z, y, bits, x, w_in = saved
    assert y is not None and bits is not None and x is not None
    before, sums = (v, a, i, r, z), layer.find_sums()
    g_v, g_a, g_i, g_r, g_z = (None if leaf is None or not need else torch.empty_like(leaf)
                               for leaf, need in zip(before, needed, strict=True))
    current = torch.empty_like(y)
    dense = [None if one is None else _make_dense(one) for one in g]
    del dense[4]  # of r, which has none
    gradient_bits = layer.gradient_bits if sums.coefficients is not None else 0
    layer.adjoint(y.shape[0], gradient_bits, _addresses(before), y.data_ptr(), bits.data_ptr(),
                  _addresses(dense), _addresses((current, g_v, g_a, g_i, g_z)),
                  _addresses((sums.w_rec, sums.bias, sums.coefficients)))
    if sums.w_in is not None:
        sums.w_in.addmm_(current.t(), x)
    g_x = None if w_in is None else torch.mm(current, w_in)
    return g_x, g_v, g_a, g_i, None, g_z


def _make_dense(g: Tensor) -> Tensor | None:
    """A contiguous tensor whose memory holds its numbers."""
    return materialize((g if g.layout is torch.strided else g.to_dense()).contiguous())


def record_step(layer: RecordedLayer, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One step of a layer for which is_current() holds: inputs (B, I), a state of plain tensors ->
    spikes (B, N), and a state with the same shapes."""
    spikes, *after = _Step.apply(layer, x, *state, layer.parameters)
    return spikes, State(*after)
