"""Functions of tensors: the recurrence over a whole sequence, the projection in front of it and the
readout behind."""

from typing import Any, Literal, Unpack

from torch import Tensor

from ._core.arguments import Delay, Delays
from ._core.bits import PackedSpikes, pack_spikes
from ._core.call import Layered, leaky_readout, run_layer, run_neurons
from ._core.coefficients import Coefficient
from ._core.lengths import LengthsArgument
from ._core.options import ALIF_DEFAULTS, AlifOptions, CallArguments, document, split_options
from ._core.poisson import poisson
from ._core.route import linear
from ._core.state import State, Traces
from ._core.torch_internals import make_savable
from ._ops import use_reference
from .codegen.call import recurrent as _recurrent
from .codegen.neuron import Neuron as AnyNeuron
from .codegen.state import NeuronState

__all__ = ["Delays", "Layered", "NeuronState", "PackedSpikes", "State", "Traces", "alif", "layer",
           "leaky_readout", "linear", "pack_spikes", "poisson", "recurrent", "use_reference"]

for _kind in (State, Traces, PackedSpikes, NeuronState):
    make_savable(_kind)


@document(AlifOptions, ALIF_DEFAULTS)
def alif(
    current: Tensor | PackedSpikes, w_rec: Tensor | None, *, w_in: Tensor | None = None,
    bias: Tensor | None = None, **options: Unpack[AlifOptions],
) -> tuple[Tensor, State] | tuple[Tensor, State, Traces]:
    """Recurrent neurons with adaptation over a whole sequence, as one operator; docs/equations.md
    has the equations.

    Args:
        current: (T, B, N) input current, already projected; with w_in the inputs (T, B, I), or
            spikes of another layer as bits. float32 and float64 are computed as such; bfloat16 and
            float16 in float32, with spikes in the dtype of current. T = 0 and B = 0 are allowed.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k; (S, N, N): w_rec[s,
            j, k] acts with the s-th of S delays; None: no recurrence.
        w_in: (N, I) input weights, as of torch.nn.functional.linear: current is projected inside
            the call, dispatched as by layer. Default None: no projection.
        bias: (N,) added to the projected inputs.
        **options

    Returns:
        spikes (T, B, N) of 0 and 1, the State after the last step, and with trace=True the Traces.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of a wrong kind, shape, dtype, device or
            range; the message names the argument.

    Equivalent to, for dynamics="lsnn" without delay, refractory period and synapse:
        >>> v = a = z = torch.zeros_like(current[0])
        >>> for x_t in current:
        ...     a = rho * a + (1 - rho) * z
        ...     A = theta + beta * a
        ...     m = (v - A) / A  # of the membrane before this step, equation (7)
        ...     v = alpha * v + (1 - alpha) * (x_t + z @ w_rec) - z * A
        ...     z = (m > 0).to(v.dtype)  # its gradient is dampening * relu(1 - abs(m))

    Source: Bellec et al., NeurIPS 2018 (arXiv 1803.09574) and the models' own papers.
    """
    neuron, call = split_options("alif", options)
    result: Any
    if w_in is not None:
        result = run_layer(current, w_in, w_rec, bias, neuron, call, "current")
    elif bias is not None:
        raise ValueError("bias: expected w_in with it, got None")
    else:
        # run_neurons raises for PackedSpikes
        result = run_neurons(current, w_rec, neuron, call)  # type: ignore[arg-type]
    found = result.spikes, result.state
    return found if result.traces is None else (*found, result.traces)


@document(AlifOptions, ALIF_DEFAULTS)
def layer(
    x: Tensor | PackedSpikes, w_in: Tensor, w_rec: Tensor | None, *, bias: Tensor | None = None,
    w_out: Tensor | None = None, k_out: Coefficient = 0.0, readout_state: Tensor | None = None,
    b_out: Tensor | None = None, spikes: bool | Literal["bits"] = True,
    **options: Unpack[AlifOptions],
) -> Layered:
    """The input projection, the recurrence and a leaky readout in one call, fused into one operator
    where that is faster.

    On the CPU, sparse inputs such as spikes are projected inside the recurrence, event by event:
    neither a current (T, B, N) nor its gradient is written. The readout is fused too, so without
    spikes only the tensors saved for the backward pass have the size (T, B, N); see
    checkpoint_every.

    Args:
        x: (T, B, I) inputs, or spikes of another layer as bits.
        w_in: (N, I) input weights, as of torch.nn.functional.linear.
        w_rec: (N, N), (S, N, N) or None, as of alif.
        bias: (N,) added to the projected inputs.
        w_out: (O, N) weights of a readout p_t = k_out p_{t-1} + (1 - k_out) w_out z_t. Default
            None: no readout.
        k_out: decay of the readout per step, 0 to 1: a number; or a differentiable tensor, () or
            (O,), with which leaky_readout runs after the operator.
        readout_state: (B, O) the readout before the first step. Default zeros.
        b_out: (O,) added to the readout of every step, and not to its state. Default None: 0.
        spikes: whether to return the spikes; without w_out they always are. "bits": packed, for the
            next layer, at no cost in memory, since the backward pass saves these bits anyway. The
            CPU kernels read them as inputs, and so does CUDA in float32 from compute capability
            8.0; otherwise they are unpacked, with a warning.
        **options

    Returns:
        Layered: spikes, state, traces, readout, readout_state, packed.

    Raises:
        TypeError, ValueError, RuntimeError: as alif.

    Equivalent to, with w_out and without lengths:
        >>> spikes, state = alif(linear(x, w_in, bias), w_rec, **options)
        >>> readout, readout_state = leaky_readout(spikes, w_out, k_out, readout_state)
        >>> readout = readout + b_out
    """
    neuron, call = split_options("layer", options)
    return run_layer(x, w_in, w_rec, bias, neuron, call, "x", w_out=w_out, k_out=k_out,
                     readout_state=readout_state, b_out=b_out, spikes=spikes)


def recurrent(
    x: Tensor | PackedSpikes, w_rec: Tensor | None, neuron: AnyNeuron, *,
    w_in: Tensor | None = None, bias: Tensor | None = None, delay: Delay = 0,
    delay_kernel: Tensor | None = None, recurrent_mask: Tensor | None = None,
    state: NeuronState | None = None, trace: bool = False,
    checkpoint_every: int | str | None = None, sparse_grad: str = "all",
    lengths: LengthsArgument | None = None, autapses: bool = True, **coefficients: Coefficient,
) -> tuple[Tensor, NeuronState] | tuple[Tensor, NeuronState, dict[str, Tensor]]:
    """Recurrent neurons whose step is written in PyTorch over a whole sequence, as one operator.

    The step and its gradient are traced once and run inside the CPU kernels, or in CUDA kernels. On
    other devices, within use_reference() and under transforms of torch.func the step runs as a loop
    over time.

    Args:
        x: (T, B, N) input current, already projected; (T, B, K, N) for a neuron of K > 1 currents.
            With w_in the inputs (T, B, I), or spikes of another layer as bits. float32 and float64
            are computed as such; bfloat16 and float16 in float32, with spikes in the dtype of x.
            T = 0 and B = 0 are allowed.
        w_rec: (N, N) recurrent weights, w_rec[j, n] from neuron j to neuron n; (K, N, N): w_rec[k,
            j, n] to the current k of n. (S, N, N) or (S, K, N, N): weights for each of S delays.
            None: no recurrence.
        neuron: lsnn_ext.Neuron(step).
        w_in: (N, I) or (K, N, I) input weights, as of torch.nn.functional.linear. Default None: no
            projection.
        bias: (N,) or (K, N), added to the projected inputs.
        delay: extra delay of recurrent spikes in steps: an int; integers (N, N) or (K, N, N), one
            for each synapse, or Delays of these so that torch.compile meets no data-dependent
            control flow; with weights for each of S delays or delay_kernel, S ascending ints.
            Default 0.
        delay_kernel, recurrent_mask: (S, N) and (B, N), as of alif. Default None.
        state: NeuronState to start from. Of a longer spike history the newest steps are used.
            Default None: zeros.
        trace: also return the states of every step.
        checkpoint_every: steps between saved states, or a size such as "500 MB", as in alif. The
            loop over time ignores it.
        sparse_grad: "existing": only recurrent weights that are not 0 receive a gradient. "all":
            every weight.
        lengths: (B,) steps of each sequence, 0 to T, integers on the CPU, as in alif. Default None:
            all have T steps.
        autapses: False: the diagonal of w_rec acts as 0 and has no gradient.
        **coefficients: keyword-only arguments of the step: numbers, or differentiable tensors () or
            (N,), real or complex; of a step with axes also (1, K) or (N, K).

    Returns:
        spikes (T, B, N), the NeuronState after the last step, and with trace=True a dict of the
        states (T, B, N) by name, differentiable.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of a wrong kind, shape, dtype, device or
            range; the message names the argument.

    Equivalent to, for one current, without delay:
        >>> states, z = [torch.zeros_like(x[0])] * S, torch.zeros_like(x[0])
        >>> for x_t in x:
        ...     *states, z = step(x_t + z @ w_rec, *states, z, **coefficients)

    Example:
        >>> spikes, state = lsnn_ext.functional.recurrent(x, w_rec, neuron, tau=20.0)
    """
    options = CallArguments(delay, delay_kernel, recurrent_mask, autapses, state, trace,
                            checkpoint_every=checkpoint_every, sparse_grad=sparse_grad,
                            lengths=lengths)
    return _recurrent(  # type: ignore[return-value]
        x, w_rec, neuron, options, coefficients, w_in, bias)
