"""Calls for the fuzz that are in order, of raw operators; their sizes may be odd."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
import compare
from any_neuron_steps import Choices
from lsnn_ext import _ops, functional
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.functional import State
from lsnn_ext.models import COEFFICIENTS, MODELS

MOST = 1 << 21  # numbers of a tensor that are drawn; a larger one has the memory of a single number
HUGE = (1 << 16, 1 << 28, 1 << 31, (1 << 31) + 33, 1 << 32, 1 << 40, 1 << 56, 1 << 57, 1 << 61,
        1 << 62, 1 << 62, (1 << 63) - 1, (1 << 63) - 1)
RANGES = {
    "alpha": (0.5, 1.0), "kappa": (0.2, 1.0), "rho": (0.5, 1.0), "q": (0.1, 1.0), "p": (-0.2, 0.2),
    "beta": (0.0, 1.5), "eta": (-0.5, 0.5), "theta": (0.3, 0.9), "sigma": (0.0, 0.8),
    "width": (0.5, 1.5), "R": (0.0, 0.8),
}


class Draw(Choices):
    """The random numbers of one case."""

    def __init__(self, seed: int, case: int) -> None:
        super().__init__(f"{seed}/{case}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(60))
        self.odd = False  # whether sizes are such that a refusal is in order

    def real(self, low: float, high: float, *shape: int,
             dtype: torch.dtype = torch.float32) -> Tensor:
        if math.prod(shape) > MOST:
            return torch.full((), low, dtype=dtype).expand(shape)
        return (low + (high - low) * torch.rand(shape, generator=self.generator,
                                                dtype=torch.float64)).to(dtype)

    def spikes(self, share: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if math.prod(shape) > MOST:
            return torch.zeros((), dtype=dtype).expand(shape)
        return (self.real(0.0, 1.0, *shape) < share).to(dtype)

    def whole(self, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self.generator)

    def bits(self, *shape: int) -> Tensor:
        """Any 32-bit words."""
        return torch.randint(-(1 << 31), 1 << 31, shape, generator=self.generator,
                             dtype=torch.int64).to(torch.int32)

    def sizes(self) -> dict[str, int]:
        """T, B, N, inputs I and outputs O: small ones, at times none, at times many, at times
        absurdly many."""
        size = {"T": self.one_of(1, 2, 5, 15, 16, 17, 33, 40), "B": self.one_of(1, 2, 3, 5),
                "N": self.one_of(1, 2, 5, 8, 31, 32, 33, 64, 70),
                "I": self.one_of(1, 3, 31, 32, 33, 40), "O": self.one_of(1, 2, 5)}
        kind = self.random.random()
        if kind < 0.05:
            size |= {"T": 48, "B": self.one_of(40, 44), "N": self.one_of(130, 192), "I": 100}
        elif kind < 0.12:
            size[self.one_of("T", "B")] = 0
        elif kind < 0.24:
            self.odd = True
            size = dict.fromkeys(size, 1) if self.chance(0.5) else {
                name: self.one_of(1, 2, 3, 64) for name in size}
            huge = self.one_of(*size)
            size[huge] = self.one_of(*HUGE)
            if self.chance(0.3):
                size[self.one_of(*size)] = self.one_of(1, 33, *HUGE)
            if self.chance(0.7):  # so that the results take no memory
                size[self.one_of(*(name for name in ("T", "B") if name != huge))] = 0
        return size


def gradients_of(results: list[Tensor], leaves: dict[str, Tensor],
                 is_dense: bool = True) -> dict[str, Tensor | None]:
    """Gradients by name, of a sum of the results, which is weighted where it is dense."""
    draw = torch.Generator().manual_seed(1)
    loss: Any = 0.0
    for one in results:
        weights = torch.randn(one.shape, generator=draw, dtype=torch.float64).to(one.dtype)
        if one.requires_grad:
            loss = loss + ((one * weights).sum() if is_dense else one.sum())
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    if not wanted or not isinstance(loss, Tensor):
        return {}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return dict(zip(wanted, found, strict=True))


@dataclass
class Call:
    """function(**args). gradients: the call is differentiable, and leaves that want a gradient get
    one."""

    name: str
    function: Callable[..., Any]
    args: dict[str, Any]
    raw: bool = False  # a raw operator: the same numbers in another layout give the same bits
    gradients: bool = False
    contents: bool = True  # False: a result that is uninitialised on purpose
    # tensors in the result that want a gradient, and are none of it
    also: Callable[[Any], list[Tensor]] = lambda _: []
    changes: list[str] = field(default_factory=list)
    threads: int = 1


def _operator(name: str) -> Callable[..., Any]:
    """The raw operator of arguments by name, those in lists too; cut: a list, and how many items of
    it are given."""
    operator = getattr(torch.ops.lsnn, name).default
    lists = compare._parts()

    def call(cut: tuple[str, int] | None = None, **args: Any) -> Any:
        given = {}
        for argument in operator._schema.arguments:
            parts = lists.get(argument.name)
            if argument.name == "neuron":  # of steps, which any_neuron.py draws
                continue
            given[argument.name] = args[argument.name] if parts is None else [
                args[part] for part in parts]
            if cut is not None and cut[0] == argument.name and parts is not None:
                given[argument.name] = (given[argument.name] * 2)[: cut[1]]
        return operator(*given.values())

    return call


def _raw(d: Draw, name: str, args: dict[str, Any], contents: bool = True) -> Call:
    if name.startswith("alif") and d.chance(0.04):
        args["cut"] = (d.one_of(*compare._parts()), d.one_of(0, 1, 2, 3, 4, 6, 10))
        d.odd = True
    return Call(f"torch.ops.lsnn.{name}", _operator(name), args, raw=True, contents=contents)


def state(d: Draw, D: int, B: int, N: int, dtype: torch.dtype, *front: int) -> State:
    shape = *front, D, B, N
    past = d.spikes(0.3, *shape, dtype=dtype) if d.chance(0.7) else d.real(
        0, 1, *shape, dtype=dtype)
    v, a, i = (d.real(-0.5, 0.8, *front, B, N, dtype=dtype) for _ in range(3))
    return State(v, a, i, d.real(0, 3, *front, B, N).floor().to(dtype), past)


def _forward_arguments(d: Draw, size: dict[str, int], save: bool) -> dict[str, Any]:
    T, B, N, I, O = size.values()
    dtype = d.one_of(torch.float32, torch.float32, torch.float64)
    delays = sorted(d.random.sample(range(5), d.one_of(1, 1, 1, 2, 3)))
    each, D = None, 1 + delays[-1]
    # of recurrent weights
    kind = d.one_of(*["shared"] * 6, "none", "by delay", "kernel")
    if kind == "none":
        delays, D = [], 1
    elif kind == "shared" and len(delays) > 1:
        each = torch.full((), delays[0]).expand(N, N)
        if N * N <= MOST:
            each = torch.tensor(delays)[d.whole(len(delays), N, N)]
    projected, read = d.chance(0.45), d.chance(0.4)
    as_bits = projected and d.chance(0.4)
    coefficients = [d.real(*RANGES[name], N, dtype=dtype) for name in COEFFICIENTS]
    stacked = torch.stack(coefficients) if N <= MOST else torch.full(
        (), 0.5, dtype=dtype).expand(11, N)
    x = d.real(-1.0, 2.0, T, B, I if projected else N, dtype=dtype)
    if projected and d.chance(0.7) and x.numel() <= MOST:
        x = x * (x > 1.7)
    gain = 2 / max(1, N) ** 0.5
    weights = (len(delays), N, N) if kind == "by delay" else (N, N)
    w_rec = None if kind == "none" else d.real(-gain, gain, *weights, dtype=dtype)
    saved_bf16 = save and dtype == torch.float32 and d.chance(0.2)
    outputs = {"spikes": d.chance(0.8), "traces": d.chance(0.3), "saved": save,
               "bits": d.chance(0.3), "saved_bf16": saved_bf16}
    lengths = None
    if d.chance(0.2) and B <= MOST:
        lengths = d.whole(min(T, 1 << 40) + 1, B).to(torch.int64)
        if d.chance(0.05):
            d.odd = True  # in any order, which the operators refuse
        else:
            lengths = lengths.sort(descending=True)[0]
    rows: list[float] = []  # what the CUDA kernels alone take
    if d.chance(0.03):
        rows = [float(d.one_of(0, 1, -1, math.nan)) for _ in range(d.one_of(4, 44))]
        d.odd = True
    b_out = None
    if d.chance(0.03):
        b_out = d.real(-1, 1, O, dtype=dtype)
        d.odd = True
    return dict(
        sources=d.one_of(None, [x]) if rows else None, rows=rows,
        x=x, lengths=lengths, w_rec=w_rec, coefficients=stacked, delay=each, delays=delays,
        delay_kernel=d.real(-1, 1, len(delays), N, dtype=dtype) if kind == "kernel" else None,
        recurrent_mask=d.spikes(0.7, B, N) > 0 if kind != "none" and d.chance(0.2) else None,
        **state(d, D + (d.one_of(1, 3) if d.chance(0.2) else 0), B, N, dtype)._asdict(),
        w_in=d.real(-1, 1, N, I, dtype=dtype) if projected else None,
        bias=d.real(-0.2, 0.2, N, dtype=dtype) if projected and d.chance(0.5) else None,
        w_out=d.real(-1, 1, O, N, dtype=dtype) if read else None,
        p=d.real(-1, 1, B, O, dtype=dtype) if read and d.chance(0.8) else None,
        b_out=b_out,
        dynamics=d.random.randrange(len(MODELS)), surrogate=d.random.randrange(len(SURROGATES)),
        dampening=0.3, refractory=d.one_of(0, 0, 1, 5), smooth=int(d.chance(0.15)), k_out=0.8,
        cutoff=d.one_of(math.inf, math.inf, 0.7),
        checkpoint=d.one_of(0, 0, 0, 16, 48) if save else 0,
        outputs=_ops.make_mask("outputs", [name for name, wanted in outputs.items() if wanted]),
        gradients=0, coefficient_gradients=0, bf16_parts=0, zero_coefficients=0,
        without_autapses=int(d.chance(0.2)), existing=int(d.chance(0.3)),
        interface=_ops._C.interface,
        options=[] if d.chance(0.6)
        else [d.random.randrange(5), d.one_of(0, 1, 3), d.one_of(0, 1024, 4096), 0,
              d.random.randrange(3)],
        x_bits=packed_bits(d, T, B, I, d.chance(0.2)) if as_bits else None,
    )


def packed_bits(d: Draw, T: int, B: int, I: int, beyond: bool = False) -> Tensor:
    """Spikes as bits; beyond: also where there are no inputs, as after a slice of the inputs of
    others."""
    if T * B * I > MOST:
        return torch.zeros((), dtype=torch.int32).expand(T, B, 1 + (I - 1) // 32)
    if beyond:
        d.odd = True
        return d.bits(T, B, 1 + (I - 1) // 32)
    return functional.pack_spikes(d.spikes(0.1, T, B, I)).bits


def alif_forward(d: Draw) -> Call:
    return _raw(d, "alif_forward", _forward_arguments(d, d.sizes(), d.chance(0.5)))


def alif_backward(d: Draw) -> Call:
    size = d.sizes()
    given = _forward_arguments(d, size, True)
    T, B, N, I, O = size.values()
    like, checkpoint = given["x"], given["checkpoint"]

    def real(*shape: int) -> Tensor:
        return d.real(-1, 1, *shape, dtype=like.dtype)

    if d.odd:  # what the forward pass would have saved, without calling it
        whole, words = (0,) if checkpoint else (T, B, N), 1 + (N - 1) // 32
        every = checkpoint or 128
        bits = torch.zeros((), dtype=torch.int32).expand(T, B, words)
        saved = (real(*whole), bits, real(T, B, N), real((T + every - 1) // every, 4, B, N))
    else:
        saved = tuple(_operator("alif_forward")(**given)[-1])
    reads = given["w_out"] is not None

    def gradient(*shape: int, share: float = 0.6) -> Tensor | None:
        return real(*shape) if d.chance(share) else None

    D = 1 + max([0, *given["delays"]])
    args = dict(g_spikes=gradient(T, B, N, share=0.8), g_trace_v=gradient(T, B, N, share=0.3),
                g_trace_a=gradient(T, B, N, share=0.3), g_threshold=gradient(T, B, N, share=0.3),
                g_v=gradient(B, N), g_a=gradient(B, N), g_i=gradient(B, N), g_z=gradient(D, B, N),
                g_p=gradient(T, B, O) if reads else None,
                g_p_last=gradient(B, O) if reads else None)
    args |= given
    if given["w_in"] is None and not checkpoint and d.chance(0.7):
        args["x"] = None
    args |= dict(zip(("y", "bits", "smooth_z", "carry"), saved, strict=True))
    args |= {"coefficient_gradients": d.random.getrandbits(11) if d.chance(0.6) else 0,
             "gradients": d.random.getrandbits(8), "bf16_parts": d.one_of(0, 0, 0, 1, 2)}
    return _raw(d, "alif_backward", args)


def rows(d: Draw) -> tuple[int, int, int, torch.dtype]:
    size = d.sizes()
    return (min(size["T"] * size["B"], (1 << 63) - 1), size["N"], size["I"],
            d.one_of(torch.float32, torch.float64))


def linear_events(d: Draw) -> Call:
    R, N, I, dtype = rows(d)
    bias = d.real(-1, 1, N, dtype=dtype) if d.chance(0.5) else None
    x = d.spikes(0.1, R, I, dtype=dtype)
    return _raw(d, "linear_events", {"x": x, "weight": d.real(-1, 1, N, I, dtype=dtype),
                                     "bias": bias, "bits": bits_of_rows(d, R, I)})


def bits_of_rows(d: Draw, R: int, I: int) -> Tensor | None:
    """Of a linear map, which has them or not."""
    return packed_bits(d, 1, R, I, d.chance(0.2)) if d.chance(0.4) else None


def leaky_readout_forward(d: Draw) -> Call:
    T, B, _, _, O = d.sizes().values()
    dtype = d.one_of(torch.float32, torch.float64)
    p = d.real(-1, 1, B, O, dtype=dtype) if d.chance(0.6) else None
    return _raw(d, "leaky_readout", {"x": d.real(-1, 1, T, B, O, dtype=dtype), "p": p, "k": 0.9})


def leaky_readout_backward(d: Draw) -> Call:
    T, B, _, _, O = d.sizes().values()
    dtype = d.one_of(torch.float32, torch.float64)
    args = {"g_p": d.real(-1, 1, T, B, O, dtype=dtype), "g_last": d.real(-1, 1, B, O, dtype=dtype),
            "k": 0.9}
    return _raw(d, "leaky_readout_backward", args)


def linear_events_backward(d: Draw) -> Call:
    R, N, I, dtype = rows(d)
    args = {"g": d.real(-1, 1, R, N, dtype=dtype), "x": d.spikes(0.1, R, I, dtype=dtype),
            "bits": bits_of_rows(d, R, I), "bias": d.chance(0.7)}
    return _raw(d, "linear_events_backward", args)


def spike_bits(d: Draw) -> Call:
    size, dtype = d.sizes(), d.one_of(torch.float32, torch.float64)
    x = d.spikes(0.1, size["T"], size["B"], size["I"], dtype=dtype)
    x = x.transpose(0, 1) if d.chance(0.3) else x
    kind = d.one_of(dtype, torch.bool, torch.uint8)
    return _raw(d, "spike_bits", {"x": x.to(kind) if d.chance(0.8) else x / 3})


def buffer(d: Draw) -> Call:
    R, N, _, dtype = rows(d)
    return _raw(d, "buffer", {"like": d.real(0, 1, 3, dtype=dtype), "rows": R, "columns": N},
                contents=False)
