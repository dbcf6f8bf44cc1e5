"""Calls for the fuzz that are in order, of the functions of lsnn_ext.functional."""

from typing import Any

import torch
from torch import Tensor

from fuzz_calls import MOST, RANGES, Call, Draw, packed_bits, rows, state
from lsnn_ext import functional
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.functional import PackedSpikes, State
from lsnn_ext.models import COEFFICIENTS, MODELS


def _leaf(d: Draw, value: Tensor, share: float = 0.4) -> Tensor:
    return value.requires_grad_() if d.chance(share) else value


def _coefficient(d: Draw, name: str, N: int, dtype: torch.dtype) -> float | Tensor:
    low, high = RANGES[name]
    if d.chance(0.4):
        return d.random.uniform(low, high)
    return _leaf(d, d.real(low, high, *d.one_of((), (1,), (N,)), dtype=dtype))


def _recurrent(d: Draw, N: int, dtype: torch.dtype) -> tuple[Tensor | None, list[int] | None]:
    """Recurrent weights, and the delays where these have a matrix for each."""
    if d.chance(0.1):
        return None, None
    delays = sorted(d.random.sample(range(4), d.one_of(1, 2, 3))) if d.chance(0.15) else None
    shape = (N, N) if delays is None else (len(delays), N, N)
    w_rec = d.real(-0.4, 0.4, *shape, dtype=dtype)
    if w_rec.numel() <= MOST and d.chance(0.4):
        w_rec = w_rec * d.spikes(0.2, *shape, dtype=dtype)
    return _leaf(d, w_rec, 0.6), delays


def _neuron(d: Draw, T: int, B: int, N: int, dtype: torch.dtype, w_rec: Tensor | None,
            delays: list[int] | None) -> dict[str, Any]:
    """The keyword arguments of functional.alif; dtype is that of the computation."""
    names = ["alpha", "theta",
             *(name for name in COEFFICIENTS if name not in ("alpha", "theta") and d.chance(0.4))]
    neuron: dict[str, Any] = {name: _coefficient(d, name, N, dtype) for name in names}
    delay: Any = 0 if w_rec is None else d.one_of(0, 0, 1, 3)
    D = 1 + delay
    if delays is not None:
        delay, D = delays, 1 + delays[-1]
    elif w_rec is not None and N * N <= MOST and d.chance(0.4):
        delay, D = d.whole(4, N, N), 4
        delay[0, 0] = 3
        delay = functional.Delays.of(delay) if d.chance(0.3) else delay
    elif w_rec is not None and d.chance(0.2):
        delay = sorted(d.random.sample(range(4), d.one_of(1, 2, 3)))
        D = 1 + delay[-1]
        neuron["delay_kernel"] = _leaf(d, d.real(-1, 1, len(delay), N, dtype=dtype))
    if w_rec is not None and d.chance(0.1):
        neuron["recurrent_mask"] = d.spikes(0.7, B, N) > 0
    neuron |= {"delay": delay, "refractory": d.one_of(0, 0, 2), "dynamics": d.one_of(*MODELS)}
    if d.chance(0.5):
        neuron["state"] = State(*(_leaf(d, leaf, 0.2) for leaf in state(d, D, B, N, dtype)))
    lengths = d.whole(T + 1, B) if B <= MOST and T < 1 << 31 else None
    options = {
        "surrogate": d.one_of(None, *SURROGATES), "dampening": d.one_of(None, 0.5),
        "trace": d.chance(0.6), "smooth": d.chance(0.3),
        "checkpoint_every": d.one_of(None, 1, 16, 33, "1 GB"),
        "saved_dtype": d.one_of(None, torch.bfloat16),
        "sparse_grad": d.one_of("all", "existing"), "lengths": lengths,
        "autapses": d.chance(0.5),
    }
    return neuron | {name: value for name, value in options.items() if d.chance(0.4)}


def alif(d: Draw) -> Call:
    T, B, N, I, _ = d.sizes().values()
    dtype = d.one_of(torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
    current: Any = _leaf(d, d.real(-1, 2, T, B, N, dtype=dtype))
    projection: dict[str, Tensor] = {}
    if d.chance(0.3):
        current = _leaf(d, d.spikes(d.one_of(0.1, 0.9), T, B, I, dtype=dtype))
        if T * B * I <= MOST and d.chance(0.3):
            current = functional.pack_spikes(current)
        projection = {"w_in": _leaf(d, d.real(-1, 1, N, I, dtype=dtype))}
        if d.chance(0.5):
            projection["bias"] = _leaf(d, d.real(-0.2, 0.2, N, dtype=dtype))
    w_rec, delays = _recurrent(d, N, dtype)
    neuron = _neuron(d, T, B, N, torch.promote_types(dtype, torch.float32), w_rec, delays)
    args = {"current": current, "w_rec": w_rec, **projection, **neuron}
    return Call("functional.alif", functional.alif, args, gradients=True)


def _decay(d: Draw, O: int, dtype: torch.dtype) -> float | Tensor:
    shape = d.one_of((), (O,))
    return 0.7 if d.chance(0.6) else _leaf(d, d.real(0.3, 0.95, *shape, dtype=dtype), 0.7)


def layer(d: Draw) -> Call:
    T, B, N, I, O = d.sizes().values()
    dtype = d.one_of(torch.float32, torch.float32, torch.float64)
    x: Any = d.real(-1, 1, T, B, I, dtype=dtype) if d.chance(0.3) else d.spikes(
        0.1, T, B, I, dtype=dtype)
    if T * B * I <= MOST and d.chance(0.4):
        x = functional.pack_spikes(d.spikes(0.1, T, B, I, dtype=dtype))
        bits = packed_bits(d, T, B, I, True) if d.chance(0.2) else x.bits
        x = PackedSpikes(bits, _leaf(d, x.carrier, 0.3))
    else:
        x = _leaf(d, x, 0.3)
    w_in, (w_rec, delays) = _leaf(d, d.real(-1, 1, N, I, dtype=dtype)), _recurrent(d, N, dtype)
    args = {"x": x, "w_in": w_in, "w_rec": w_rec, "spikes": d.one_of(True, False, "bits")}
    if d.chance(0.4):
        args["bias"] = _leaf(d, d.real(-0.2, 0.2, N, dtype=dtype))
    if d.chance(0.5):
        args |= {"w_out": _leaf(d, d.real(-1, 1, O, N, dtype=dtype)), "k_out": _decay(d, O, dtype)}
        if d.chance(0.5):
            args["readout_state"] = _leaf(d, d.real(-1, 1, B, O, dtype=dtype))
        if d.chance(0.3):
            args["b_out"] = _leaf(d, d.real(-1, 1, O, dtype=dtype))
    neuron = _neuron(d, T, B, N, dtype, w_rec, delays)
    if args["spikes"] == "bits":
        neuron.pop("smooth", None)
    return Call("functional.layer", functional.layer, neuron | args, gradients=True)


def linear(d: Draw) -> Call:
    R, N, I, dtype = rows(d)
    x = d.spikes(d.one_of(0.1, 0.8), R, I, dtype=dtype)
    args = {"x": _leaf(d, x), "weight": _leaf(d, d.real(-1, 1, N, I, dtype=dtype))}
    if d.chance(0.5):
        args["bias"] = _leaf(d, d.real(-1, 1, N, dtype=dtype))
    return Call("functional.linear", functional.linear, args, gradients=True)


def leaky_readout(d: Draw) -> Call:
    T, B, N, _, O = d.sizes().values()
    dtype = d.one_of(torch.float32, torch.float64, torch.bfloat16)
    wide = torch.promote_types(dtype, torch.float32)
    x, w_out = d.spikes(0.2, T, B, N, dtype=dtype), d.real(-1, 1, O, N, dtype=d.one_of(dtype, wide))
    args = {"x": _leaf(d, x), "w_out": _leaf(d, w_out), "k": _decay(d, O, wide)}
    if d.chance(0.5):
        args["p"] = _leaf(d, d.real(-1, 1, B, O, dtype=wide))
    if B <= MOST and T < 1 << 31 and d.chance(0.3):
        args["lengths"] = d.whole(T + 1, B)
    return Call("functional.leaky_readout", functional.leaky_readout, args, gradients=True)


def pack_spikes(d: Draw) -> Call:
    T, B, N, _, _ = d.sizes().values()
    dtype = d.one_of(torch.float32, torch.float64, torch.bfloat16)
    args = {"spikes": _leaf(d, d.spikes(0.3, T, B, N, dtype=dtype))}
    return Call("pack_spikes", functional.pack_spikes, args, gradients=True)


def packed_numbers(d: Draw) -> Call:
    T, B, N, _, _ = d.sizes().values()
    bits = d.bits(T, B, 1 + (N - 1) // 32) if T * B * N <= MOST else packed_bits(d, T, B, N)
    packed = PackedSpikes(bits, torch.zeros(()).expand(T, B, N))
    return Call("PackedSpikes.numbers", lambda packed: packed.numbers(), {"packed": packed},
                gradients=True)


def _seeded_poisson(seed: int, **args: Any) -> PackedSpikes:
    return functional.poisson(**args, generator=torch.Generator().manual_seed(seed))


def poisson(d: Draw) -> Call:
    T, B, N, _, _ = d.sizes().values()
    rates = d.real(0, 1, T, B, N, dtype=d.one_of(torch.float32, torch.float64, torch.bfloat16))
    args = {"rates": rates, "hold": d.one_of(1, 3, 40), "seed": d.random.randrange(9)}
    return Call("functional.poisson", _seeded_poisson, args)
