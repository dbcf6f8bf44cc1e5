"""Functions of tensors: the recurrence over a whole sequence, the projection in front of it and the
readout behind."""

from typing import Any, Literal

import torch
from torch import Tensor

from ._core.arguments import Delay, Delays
from ._core.around import linear
from ._core.bits import PackedSpikes, pack_spikes
from ._core.call import Layered, Readout, leaky_readout, of_current, of_inputs
from ._core.coefficients import Coefficient
from ._core.lengths import GivenLengths
from ._core.poisson import poisson
from ._core.resolve import Neuron
from ._core.state import State, Traces
from ._core.torch_internals import make_savable
from ._ops import use_reference
from .codegen.call import Arguments
from .codegen.call import recurrent as _recurrent
from .codegen.neuron import Neuron as AnyNeuron
from .codegen.state import NeuronState

__all__ = ["Delays", "Layered", "NeuronState", "PackedSpikes", "State", "Traces", "alif", "layer",
           "leaky_readout", "linear", "pack_spikes", "poisson", "recurrent", "use_reference"]

make_savable(State)
make_savable(Traces)
make_savable(PackedSpikes)
make_savable(NeuronState)


def alif(
    current: Tensor | PackedSpikes, w_rec: Tensor | None, *, w_in: Tensor | None = None,
    bias: Tensor | None = None, alpha: Coefficient, theta: Coefficient,
    rho: Coefficient | None = None, beta: Coefficient | None = None,
    kappa: Coefficient | None = None, q: Coefficient | None = None, p: Coefficient | None = None,
    eta: Coefficient | None = None, sigma: Coefficient | None = None, R: Coefficient | None = None,
    refractory: int = 0, delay: Delay = 0, dynamics: str = "lsnn", surrogate: str | None = None,
    dampening: float | None = None, surrogate_cutoff: float = 0.0,
    width: Coefficient | None = None, state: State | None = None, trace: bool = False,
    smooth: bool = False, checkpoint_every: int | str | None = None,
    saved_dtype: torch.dtype | None = None, sparse_grad: str = "all",
    lengths: GivenLengths | None = None, autapses: bool = True,
) -> tuple[Tensor, State] | tuple[Tensor, State, Traces]:
    """Recurrent neurons with adaptation over a whole sequence, as one operator; docs/equations.md
    has the equations.

    With w_in the projection of the inputs is part of the call, which then takes the same ways as
    layer: what stands in front as torch.nn.functional.linear writes a current (T, B, N) into fresh
    memory, and its gradient too.

    Args:
        current: (T, B, N) input current x_t, already projected; with w_in the inputs (T, B, I),
            or spikes of another layer as bits. float32 and float64 are computed as such; bfloat16
            and float16 in float32, the spikes are then returned in the dtype of current. T = 0 and
            B = 0 are allowed.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k; (S, N, N): w_rec[s,
            j, k] acts with the s-th of S delays; None: no recurrence, at no cost.
        w_in: (N, I) input weights, as of torch.nn.functional.linear: the current is their product
            with the inputs, made on the same ways as by layer. Default None: no projection.
        bias: (N,) added to the projected inputs.
        alpha: decay of the membrane over a step, exp(-dt/tau); in [0, 1]. Every coefficient is a
            number or a tensor (N,), and differentiable.
        theta: base threshold.
        rho: decay of the adaptation, in [0, 1]. Default 0.
        beta: strength of the adaptation. Default 0 (LIF); per neuron, 0 for the regular neurons of
            an LSNN.
        kappa, q: gain of the current, and of a spike in the adaptation. Default what the model
            says.
        p, eta: coupling of the membrane into the adaptation, and of the adaptation into the
            current. Default 0 (adLIF: eta 1).
        sigma: decay of the synaptic current, in [0, 1]. Default 0: no synapse.
        R: what a spike subtracts, or resets to, in models with such a reset. Default theta, or 0.
        refractory: steps without a spike after each spike.
        delay: extra delay of the recurrent spikes in steps, one int, or integers (N, N) for each
            synapse; Delays of them where torch.compile is to see no data-dependent step. With a
            w_rec of shape (S, N, N): S ascending ints.
        dynamics: the name of a model; "lsnn" is the network of Bellec et al., NeurIPS 2018.
        surrogate, dampening, width: shape, height and width of the surrogate. Default what the
            model says.
        surrogate_cutoff: a share of the surrogate's height, from 0 to 0.01. From the distance on
            beyond which |psi| stays below it no gradient passes the spike, and where most neurons
            are so far from their threshold the backward pass computes their products with the
            weights no more. A gradient of 1e-8 of the others is lost in their rounding; a larger
            share is an approximation. For surrogates without an end: fast_sigmoid, arctan, sigmoid,
            exponential, gaussian, multi_gaussian. Default 0: none.
        state: State to start from. Default zeros. Of a longer history of spikes the newest are
            used.
        trace: also return Traces of membrane, adaptation and moving threshold, each (T, B, N),
            differentiable.
        smooth: spikes become the antiderivative of the surrogate, real numbers, for gradient
            checks.
        checkpoint_every: None: y of equation (5) is saved for every step, 4 bytes per neuron-step.
            An int K: only the state every K steps (rounded up to a multiple of 16) and a bit per
            neuron-step; the backward pass computes the rest again, to the same bits and gradients
            (that of sigma: to rounding), K steps at a time. A text such as "500 MB": the saved
            tensors and the scratch memory of the backward pass stay below it, with the K that takes
            least where saving all does not fit. CPU only: on other devices everything is saved,
            and a warning says so once.
        saved_dtype: torch.bfloat16: y is saved in half the memory, 2.25 bytes per neuron-step in
            all instead of 4.25; the spikes stay as they are, and gradients are those of membranes
            rounded to 8 bits. None: the dtype of the computation. Of no effect in float64, or with
            checkpoint_every, which saves no y.
        sparse_grad: which synapses get a gradient in w_rec, "all" or "existing": those that are not
            zero, and 0 the others, which takes less time where these are most. The CPU kernels
            follow few synapses one by one in all else, whatever is said here.
        lengths: (B,) steps of each sequence, from 0 to T, whole numbers on the CPU. Each ends after
            its own last step: spikes and traces are 0 from there on, its state is that of this
            step, and what is given for later steps, gradients too, is not read. Time grows with the
            sum of lengths. Default: all have T steps.
        autapses: False: no neuron has a synapse onto itself: the diagonal of w_rec counts as 0,
            and has no gradient.

    Returns:
        spikes (T, B, N) of 0 and 1, the State after the last step, and with trace=True the Traces.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of a wrong kind, shape, dtype, device or
            range; the message names the argument, what is expected and what was given.

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
    neuron = Neuron(
        alpha=alpha, theta=theta, rho=rho, beta=beta, kappa=kappa, q=q, p=p, eta=eta, sigma=sigma,
        R=R, width=width, refractory=refractory, delay=delay, dynamics=dynamics,
        surrogate=surrogate, dampening=dampening, surrogate_cutoff=surrogate_cutoff, state=state,
        trace=trace, smooth=smooth, checkpoint_every=checkpoint_every, saved_dtype=saved_dtype,
        sparse_grad=sparse_grad, lengths=lengths, autapses=autapses,
    )
    if w_in is not None:
        made = of_inputs(current, w_in, w_rec, bias, neuron, "current")
    elif bias is not None:
        raise ValueError("bias: expected w_in beside it, got none")
    else:
        # PackedSpikes are refused there
        made = of_current(current, w_rec, neuron)  # type: ignore[arg-type]
    assert made.spikes is not None
    if made.traces is None:
        return made.spikes, made.state
    return made.spikes, made.state, made.traces


def layer(
    x: Tensor | PackedSpikes, w_in: Tensor, w_rec: Tensor | None, *, bias: Tensor | None = None,
    w_out: Tensor | None = None, k_out: Coefficient = 0.0, readout_state: Tensor | None = None,
    b_out: Tensor | None = None,
    spikes: bool | Literal["bits"] = True, **neuron: Any,
) -> Layered:
    """The input projection, the recurrence and a leaky readout in one call, and in one operator
    where that is faster.

    On the CPU mostly zero inputs, as spikes are, meet their weights inside the recurrence, event by
    event: no current (T, B, N) is ever written, nor its gradient. The readout runs inside too, so
    without spikes nothing of the size of (T, B, N) is left but what the backward pass needs; see
    checkpoint_every of alif.

    Args:
        x: (T, B, I) inputs, or spikes of another layer as bits.
        w_in: (N, I) input weights, as of torch.nn.functional.linear.
        w_rec: (N, N) recurrent weights, w_rec[j, k] from neuron j to neuron k, or (S, N, N), or
            None, as of alif.
        bias: (N,) added to the projected inputs.
        w_out: (O, N) weights of a readout p_t = k_out p_{t-1} + (1 - k_out) w_out z_t; None: no
            readout.
        k_out: its decay over a step, from 0 to 1, a number; or a tensor, () or (O,), which then has
            a gradient, and the readout stands behind the operator, as leaky_readout.
        readout_state: (B, O) the readout before the first step. Default zeros.
        b_out: (O,) added to the readout of every step that a sequence has, and not to its state.
            Default none.
        spikes: whether to return the spikes; without w_out they always are. "bits": packed, for the
            next layer. The backward pass keeps these bits anyway, so returning them takes no
            further memory. As inputs they are read as bits on the CPU, and on CUDA in float32 from
            compute capability 8.0 on; elsewhere they are made numbers, and a warning says so once.
        **neuron: the keyword arguments of alif.

    Returns:
        Layered: spikes, state, traces, readout, readout_state, packed.

    Raises:
        TypeError, ValueError, RuntimeError: as alif.

    Equivalent to, with w_out and without lengths:
        >>> spikes, state = alif(linear(x, w_in, bias), w_rec, **neuron)
        >>> readout, readout_state = leaky_readout(spikes, w_out, k_out, readout_state)
        >>> readout = readout + b_out
    """
    unknown = set(neuron) - (set(Neuron._fields) - {"rows"})
    if unknown:
        raise TypeError(
            f"layer: expected the keyword arguments of alif, got {sorted(unknown)[0]!r}")
    for name in ("alpha", "theta"):
        if name not in neuron:
            raise TypeError(f"{name}: expected a number or a tensor, got none")
    return layer_of(x, w_in, w_rec, Neuron(**neuron), bias=bias, w_out=w_out, k_out=k_out,
                    readout_state=readout_state, b_out=b_out, spikes=spikes)


def layer_of(
    x: Tensor | PackedSpikes, w_in: Tensor, w_rec: Tensor | None, neuron: Neuron, *,
    bias: Tensor | None = None, w_out: Tensor | None = None, k_out: Coefficient = 0.0,
    readout_state: Tensor | None = None, b_out: Tensor | None = None,
    spikes: bool | Literal["bits"] = True,
) -> Layered:
    """layer, of keyword arguments of alif that stand together."""
    return of_inputs(x, w_in, w_rec, bias, neuron, "x",
                     Readout(w_out, k_out, readout_state, b_out), spikes)


def recurrent(
    x: Tensor | PackedSpikes, w_rec: Tensor | None, neuron: AnyNeuron, *,
    w_in: Tensor | None = None, bias: Tensor | None = None, delay: Delay = 0,
    state: NeuronState | None = None, trace: bool = False,
    checkpoint_every: int | str | None = None, sparse_grad: str = "all",
    lengths: GivenLengths | None = None, autapses: bool = True, **coefficients: Coefficient,
) -> tuple[Tensor, NeuronState] | tuple[Tensor, NeuronState, dict[str, Tensor]]:
    """Recurrent neurons of any step over a whole sequence, as one operator.

    The step is traced once, with its gradient, and runs inside the kernels of the CPU. On other
    devices, inside of use_reference() and of transforms of torch.func it runs as a loop over time.

    Args:
        x: (T, B, N) input current, already projected; (T, B, K, N) for a neuron of K > 1 currents.
            With w_in the inputs (T, B, I), or spikes of another layer as bits. float32 and float64
            are computed as such; bfloat16 and float16 in float32, the spikes are then returned in
            the dtype of x. T = 0 and B = 0 are allowed.
        w_rec: (N, N) recurrent weights, w_rec[j, n] from neuron j to neuron n; (K, N, N): w_rec[k,
            j, n] to the current k of n. With one more axis in front, (S, N, N) or (S, K, N, N),
            weights for each of S delays. None: no recurrence.
        neuron: what makes the step, lsnn_ext.Neuron(step).
        w_in: (N, I) or (K, N, I) input weights, as of torch.nn.functional.linear. Default None: no
            projection.
        bias: (N,) or (K, N), added to the projected inputs.
        delay: extra delay of the recurrent spikes in steps: an int, or integers (N, N) or (K, N,
            N) for each synapse; Delays of them where torch.compile is to see no data-dependent
            step. With weights for each of S delays: S ascending ints.
        state: NeuronState to start from. Default zeros. Of a longer history of spikes the newest
            are used.
        trace: also return the states of every step.
        checkpoint_every: steps between saved states, or bytes such as "500 MB", as of alif. The
            loop ignores it.
        sparse_grad: "existing": synapses that are 0 get no gradient; "all".
        lengths: (B,) steps of each sequence, from 0 to T, whole numbers on the CPU. Each ends after
            its own last step, as of alif. Default: all have T steps.
        autapses: False: the diagonal of w_rec counts as 0, and has no gradient.
        **coefficients: keyword-only arguments of the step: numbers, or tensors () or (N,), which
            are differentiable and may be complex; of a step with axes also (1, K) or (N, K).

    Returns:
        spikes (T, B, N), the NeuronState after the last step, and with trace=True a dict of the
        states (T, B, N) by name, differentiable.

    Raises:
        TypeError, ValueError, RuntimeError: an argument of a wrong kind, shape, dtype, device or
            range; the message names the argument, what is expected and what was given.

    Equivalent to, for one current, without delay:
        >>> states, z = [torch.zeros_like(x[0])] * S, torch.zeros_like(x[0])
        >>> for x_t in x:
        ...     *states, z = step(x_t + z @ w_rec, *states, z, **coefficients)

    Example:
        >>> spikes, state = lsnn_ext.functional.recurrent(x, w_rec, neuron, tau=20.0)
    """
    made = _recurrent(x, w_rec, neuron, Arguments(
        w_in, bias, delay, state, trace, checkpoint_every, sparse_grad, lengths, autapses),
        coefficients)
    return made  # type: ignore[return-value]
