"""The arguments and results of the recurrence, of models and of registered neurons."""
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .._core.coefficients import Rows
from ..models import COEFFICIENTS
from .load import Constants, Numbers, count_bf16_parts, forced_options, make_mask

CHUNK = 16  # steps between two saved states, of csrc/alif.h


class NeuronSizes(NamedTuple):
    states: int
    traces: int  # and the first states, which are all that have a gradient
    currents: int
    coefficients: int
    gradients: int  # coefficients of the caller
    has_number_spikes: bool  # spikes may be other numbers than 0 and 1


# Of neurons with registered kernels, by key; 0: a model, with v, a, i and the counter r.
_sizes = {0: NeuronSizes(4, 3, 1, len(COEFFICIENTS), len(COEFFICIENTS), False)}


def register_sizes(key: int, sizes: NeuronSizes) -> None:
    """Must run before a call with this key."""
    _sizes[key] = sizes


def find_sizes(key: int) -> NeuronSizes:
    """The sizes of a neuron. Raises RuntimeError for a key without kernels in this process, such as
    one in a graph of another process."""
    if key not in _sizes:
        raise RuntimeError(f"neuron: expected a key that is registered in this process, got {key}; "
                           f"call lsnn_ext.functional.recurrent with the neuron once")
    return _sizes[key]


class Tensors(NamedTuple):
    """The tensors of a call without the states before the first step, (B, N) each, and without its
    coefficients, which are Rows. All but x may be None."""

    # (T, B, K N) the currents, or (T, B, I) the inputs of w_in; a carrier where x_bits are set
    x: Any
    z: Any  # (D, B, N); None: all states are zeros, and there are none of them
    w_rec: Any  # (N, N) or (K, N, N), or with S in front for each of S delays
    delay: Any = None  # of each synapse, as a matrix of w_rec
    w_in: Any = None  # (N, I)
    bias: Any = None  # (N,)
    x_bits: Any = None  # (T, B, ceil(I / 32))
    w_out: Any = None  # (O, N) of the readout
    p: Any = None  # (B, O) its state; None: zeros
    b_out: Any = None  # (O,) added to the readout, on a GPU
    lengths: Any = None  # (B,) steps of each sequence, descending, on the CPU; None: all T
    delay_kernel: Any = None  # (S, N) of axonal delays
    recurrent_mask: Any = None  # (B, N) bool
    # (C, N) as the kernels of a generated neuron read its coefficients, without a gradient
    rows: Any = None

    @property
    def neurons(self) -> int:
        if self.rows is not None:
            return int(self.rows.shape[1])
        if self.w_rec is not None:
            return int(self.w_rec.shape[-1])
        return self.x.shape[2] if self.w_in is None else self.w_in.shape[0]  # type: ignore[no-any-return]


class Outputs(NamedTuple):
    """The results of a call; shape (0,) where not requested."""

    spikes: Tensor  # (T, B, N), or their carrier where bits alone are requested
    state: tuple[Tensor, ...]  # (B, N) each, after the last step, and z (D, B, N)
    traces: tuple[Tensor, ...]  # (T, B, N) each
    p: Tensor  # (T, B, O)
    p_last: Tensor  # (B, O)
    # For the backward pass: y, bits, smooth_z and carry, see docs/equations.md; the coefficients
    # (11, N) of a model; weights and coefficients as the CUDA kernels read them, if they are kept.
    saved: tuple[Tensor, ...]


class Settings(NamedTuple):
    """The arguments of a call that are not tensors."""

    delays: tuple[int, ...]  # distinct, ascending
    constants: Any  # Constants
    numbers: Any  # Numbers
    options: tuple[int, ...] = ()  # Options, or none
    key: int = 0  # of a generated neuron; 0: a model

    @classmethod
    def of_neuron(cls, key: int, delays: tuple[int, ...], outputs: Sequence[str], *,
                  checkpoint: int = 0, coefficient_gradients: int = 0, autapses: bool = True,
                  is_existing: bool = False) -> "Settings":
        """Of a generated neuron; the constants and numbers that only models use are 0."""
        constants = Constants(
            checkpoint=checkpoint, outputs=make_mask("outputs", outputs),
            coefficient_gradients=coefficient_gradients, bf16_parts=count_bf16_parts(),
            without_autapses=int(not autapses), existing=int(is_existing))
        numbers = Numbers(dampening=0.0, k_out=0.0, cutoff=math.inf)
        return cls(delays, constants, numbers, forced_options(), key)


class Inputs(NamedTuple):
    settings: Settings
    t: Tensors
    states: Sequence[Tensor]  # (B, N) each, before the first step
    rows: Rows

    @classmethod
    def of(cls, args: Sequence[Any]) -> "Inputs":
        """The call of the arguments of _Recurrence."""
        delays, constants, numbers, options, key, each, stacks, _, *tensors = args
        t = Tensors(*tensors[:FIELDS])
        n = FIELDS + (0 if t.z is None else find_sizes(key).states)
        return cls(Settings(delays, Constants(*constants), numbers, options, key), t,
                   tensors[FIELDS:n], Rows(each, tuple(tensors[n:]), stacks))


FIELDS = len(Tensors._fields)
# Arguments of the function of autograd that are not of Tensors, the last of them the link.
IN_FRONT = len(Settings._fields) + 3
