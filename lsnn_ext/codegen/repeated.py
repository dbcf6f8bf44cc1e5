"""RepeatedCall: functional.recurrent for a caller that knows its arguments to be right."""
from typing import Any

import torch
from torch import Tensor

from .. import _ops
from .._core.bits import PackedSpikes
from .._core.decisions import is_listening
from .._core.options import CallArguments
from .call import Call, check_call, explain_loop, make_operator, project, recurrent, run_operator
from .closure import Watch
from .kernels import Kernel, NoKernelsError, find_kernel
from .neuron import Neuron, without_autocast
from .state import NeuronState


class RepeatedCall:
    """functional.recurrent of one neuron: the first call with arguments of a kind checks them and
    finds the kernels, later ones run these.

    The caller sees to it that what the step reads is the same, but for the numbers of tensors.
    """

    def __init__(self, neuron: Neuron) -> None:
        self.neuron = neuron
        self._known: dict[Any, tuple[Call, Watch, Kernel, _ops.NeuronCall]] = {}

    def __call__(self, x: Tensor | PackedSpikes, w_rec: Tensor | None, delay: Any,
                 state: NeuronState, coefficients: dict[str, Tensor], trace: bool,
                 w_in: Tensor | None = None, bias: Tensor | None = None,
                 ) -> tuple[Tensor, NeuronState, dict[str, Tensor]]:
        """Returns spikes, state and traces, which are empty unless trace is set."""
        like = x.carrier if isinstance(x, PackedSpikes) else x
        given = CallArguments(delay=delay, state=state, trace=trace)
        kind = (like.shape, like.dtype, None if w_in is None else w_in.shape, bias is None, trace,
                _ops.forced_options(), torch.get_float32_matmul_precision(),
                torch.get_default_dtype(), *(one.requires_grad for one in coefficients.values()))
        known = None if is_listening() or explain_loop(like) else self._known.get(kind)
        if known is None or not known[1].has_same_numbers():
            arguments = x, w_rec, self.neuron, given, coefficients, w_in, bias
            found, after, *traces = recurrent(*arguments)
            self._prepare(kind, check_call(*arguments), given)
            return found, after, traces[0] if traces else {}
        call, _, kernel, operator = known
        parts, (K, N) = call.parts, call.like.shape[-2:]
        current, projection = (like, ()) if w_in is None else project(
            x, like, w_in, bias, w_rec, K, N, None)
        call = call._replace(
            x=current if projection else current.reshape(*like.shape[:2], K, N), w_rec=w_rec,
            coefficients={**coefficients}, projection=projection,
            state=([state.states[name] for name in parts.states], state.z))
        with without_autocast(like.device):
            rows = kernel.rows([*coefficients.values()], call.like)
        out = run_operator(operator, call, rows, given)
        return out.spikes, NeuronState(dict(zip(parts.states, out.states, strict=True)), out.z), (
            dict(zip(parts.states, out.traces, strict=True)) if trace else {})

    def _prepare(self, kind: Any, call: Call, options: CallArguments) -> None:
        """Stores how the kernels run a call; a no-op where a loop over time does."""
        if explain_loop(call.x):
            return
        try:
            with without_autocast(call.x.device):
                watch, kernel = find_kernel(self.neuron, call.parts, call.like, call.coefficients)
        except NoKernelsError:
            return
        operator = make_operator(kernel.key, call, options)
        K, N = call.like.shape[-2:]
        self._known[kind] = call._replace(  # without tensors of this call
            x=call.like.new_empty(0, 0, K, N), w_rec=None, coefficients=dict.fromkeys(
                call.coefficients, 0.0), state=None, projection=()), watch, kernel, operator
