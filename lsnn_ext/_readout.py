"""The readout behind a recurrence: with a number as its decay an operator of its own, with tensors,
which may learn, neurons whose spikes do nothing."""
import torch
from torch import Tensor

from ._arguments import check_beside, readable
from ._around import check_readout, weighted
from ._around import leaky_readout as with_number
from ._call import of_current
from ._lengths import GivenLengths, end_readout, lengths_of
from ._resolve import Neuron
from .models import Coefficient, State


def leaky_readout(x: Tensor, w_out: Tensor, k: Coefficient, p: Tensor | None = None,
                  lengths: GivenLengths | None = None) -> tuple[Tensor, Tensor]:
    """A leaky integrator of weighted spikes, p_t = k p_{t-1} + (1 - k) w_out x_t, on the CPU and
    CUDA.

    Args:
        x: (T, B, N). T = 0 and B = 0 are allowed.
        w_out: (O, N).
        k: its decay over a step, from 0 to 1: a number; or a tensor, () or (O,) with one for each
            output, which then has a gradient and takes the operator of the recurrence.
        p: (B, O) before the first step. Default zeros.
        lengths: (B,) as of alif: p is 0 after the end of each sequence, and the last one is that of
            its own last step.

    Returns:
        p of every step (T, B, O), and of the last one (B, O), float32 where x is float16 or
        bfloat16. Gradients of x, w_out and p, of any order where k is a number; with a tensor also
        of k, and of first order.

    Raises:
        TypeError, ValueError: an argument of a wrong kind, shape, dtype, device or range.

    Equivalent to:
        >>> all_p = []
        >>> for x_t in x:
        ...     p = k * p + (1 - k) * (x_t @ w_out.T)
        ...     all_p.append(p)
    """
    if not isinstance(k, Tensor):
        return with_number(x, w_out, k, p, lengths)
    check_readout(x, w_out, p)
    _check_decays(k, w_out.shape[0], x)
    each = lengths_of(lengths, x.shape[0], x.shape[1], x.device)
    if each is not None:
        x = x.masked_fill(each.ended(x.shape[0], x.device), 0.0)
    product = weighted(x, w_out)
    decay = k.to(product.dtype)
    # A membrane that no spike changes: R = 0, and neither recurrence nor adaptation.
    neuron = Neuron(alpha=decay, theta=1.0, kappa=1.0, R=0.0, dynamics="eprop_elig_stop",
                    state=None if p is None else _of_membrane(p), trace=True)
    made = of_current((1 - decay) * product, None, neuron)
    assert made.traces is not None
    if each is not None:
        return end_readout(made.traces.v, p, each)
    return made.traces.v, made.state.v


def _check_decays(k: Tensor, outputs: int, x: Tensor) -> None:
    check_beside("k", k, () if k.dim() == 0 else (outputs,), x, "x")
    if not readable(k) or not k.numel():
        return
    low, high = (float(end) for end in k.detach().aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"k: expected numbers from 0 to 1, got {high if 0 <= low else low:.6g}")


def _of_membrane(v: Tensor) -> State:
    """The state of neurons with this membrane (B, O) and nothing else."""
    zero = torch.zeros_like(v)
    return State(v, zero, zero, zero, zero[None])
