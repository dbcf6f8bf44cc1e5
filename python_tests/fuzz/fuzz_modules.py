"""Calls for the fuzz that are in order: modules, forward and step, and the functions of
lsnn_ext._C."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lsnn_ext
from fuzz_calls import Call, Draw
from lsnn_ext import _ops
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import MODELS


def _made(kind: str, options: dict[str, Any], parameters: dict[str, Any]) -> nn.Module:
    """The module, with some parameters replaced by what a user may have put there."""
    torch.manual_seed(5)
    module: nn.Module = getattr(lsnn_ext, kind)(**options)
    for path, value in parameters.items():
        part, name = (module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2])
        known = part._parameters if name in part._parameters else part._buffers
        plain = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        known[name] = nn.Parameter(value.detach()) if known is part._parameters and plain else value
    return module


def _called(kind: str, options: dict[str, Any], parameters: dict[str, Any], method: str,
            times: int, grad: bool, **args: Any) -> Any:
    """What the last of several calls returns, of which each starts from the state that the one
    before has left."""
    module = _made(kind, options, parameters)
    state, out = args.pop("state"), ()
    with torch.set_grad_enabled(grad):
        for _ in range(times):
            out = getattr(module, method)(args["x"], state,
                                          **{k: v for k, v in args.items() if k != "x"})
            state = out[1]
    return out, list(module.parameters()) if grad else []


def _options(d: Draw, kind: str, size: dict[str, int]) -> dict[str, Any]:
    N, dtype = size["N"], d.one_of(torch.float32, torch.float32, torch.float64)
    if kind == "LeakyReadout":
        return {"n": N, "output_size": size["O"], "tau": d.one_of(1.0, 20.0), "bias": d.chance(0.5),
                "tau_syn": d.one_of(None, None, 0, 5.0), "batch_first": d.chance(0.3),
                "dtype": dtype}
    options: dict[str, Any] = {"input_size": size["I"], "threshold": 0.3, "dtype": dtype}
    if kind == "LSNN":
        options |= {"n_regular": N // 2, "n_adaptive": N - N // 2, "output_size": size["O"]}
    else:
        options |= {"hidden_size": N, "num_layers": d.one_of(1, 1, 2),
                    "bidirectional": d.chance(0.2)}
    several = torch.randint(0, 4, (N, N), generator=d.generator) if N * N <= 1 << 20 else 0
    extra = {
        "refractory": d.one_of(0, 3), "delay": d.one_of(0, 2, several), "dt": d.one_of(0.5, 1.0),
        "surrogate": d.one_of(None, *SURROGATES), "batch_first": True, "bias": d.chance(0.5),
        "autapses": True, "checkpoint_every": d.one_of(1, 16, "1 GB"),
        "saved_dtype": torch.bfloat16, "sparse_grad": "existing",
        "tau_mem": d.one_of(10.0, d.real(5.0, 30.0, N)),
    }
    options |= {name: value for name, value in extra.items() if d.chance(0.25)}
    if d.chance(0.3):
        options["learn"] = d.one_of(("tau_mem",), ("threshold",), ("tau_mem", "threshold"))
    return options


def module(d: Draw) -> Call:
    """ALIF, LIF, LSNN or LeakyReadout: forward or step, with gradients or without, once or on from
    its own state."""
    kind, size = d.one_of("ALIF", "ALIF", "LIF", "LSNN", "LeakyReadout"), d.sizes()
    if d.odd:  # modules hold memory for all that they are told
        size = {name: min(value, 1 << 12) for name, value in size.items()}
        size |= {"I": max(1, min(size["I"], 64)), "N": max(1, min(size["N"], 64)),
                 "O": max(1, min(size["O"], 64))}
    T, B, I = size["T"], size["B"], size["N" if kind == "LeakyReadout" else "I"]
    options, grad = _options(d, kind, size), d.chance(0.5)
    dtype, method = options["dtype"], "step" if d.chance(0.35) and not options.get(
        "bidirectional") else "forward"
    shape: tuple[int, ...] = (B, I) if d.chance(0.7) else (I,)
    if method == "forward":
        shape = (T, *shape)
        shape = (B, T, I) if options.get("batch_first") and len(shape) == 3 else shape
    x: Any = d.spikes(0.2, *shape, dtype=dtype) if d.chance(0.5) else d.real(
        -1, 2, *shape, dtype=dtype)
    args: dict[str, Any] = {"x": x.requires_grad_() if grad and d.chance(0.3) else x, "state": None}
    if kind in ("ALIF", "LIF") and method == "forward":
        if d.chance(0.3):
            args["trace"] = True
        if len(shape) == 3 and T * B and d.chance(0.25):
            lengths = torch.randint(1, T + 1, (B,), generator=d.generator)
            args["x"] = pack_padded_sequence(x, lengths, bool(options.get("batch_first")),
                                             enforce_sorted=False)
    elif kind == "LSNN" and method == "forward":
        args["return_spikes"] = d.chance(0.5)
    if method == "forward" and isinstance(args["x"], Tensor) and len(shape) == 3 and d.chance(0.2):
        args["lengths"] = torch.randint(0, T + 1, (B,), generator=d.generator)
    parameters: dict[str, Any] = {}
    if T * B:  # a module that has run gives a state, and parameters for the mutations
        made = _made(kind, options, {})
        if d.chance(0.5):
            with torch.no_grad():
                args["state"] = getattr(made, method)(args["x"])[1]
        if d.chance(0.4):
            values = {**dict(made.named_parameters()), **dict(made.named_buffers())}
            name = d.one_of(*values)
            parameters[name] = values[name].detach().clone()
    args |= {"kind": kind, "options": options, "parameters": parameters, "method": method,
             "grad": grad, "times": d.one_of(1, 1, 2, 3) if not isinstance(args["x"],
                                                                           PackedSequence) else 1}
    return Call(f"{kind}.{method}", _called, args, gradients=grad, also=lambda found: found[1])


def plan(d: Draw) -> Call:
    size = d.sizes()
    delays = sorted(d.random.sample(range(9), d.one_of(1, 1, 3)))
    args = {"T": size["T"], "B": size["B"], "N": size["N"], "delays": delays,
            "dtype": d.one_of("float32", "float64"), "smooth": d.chance(0.3), "spikes": 0.02,
            "active": 0.3, "device": d.one_of("t4", "a100", "rtx3090", "rtx4090", "h100", "b200",
                                              "rtx5090"),
            "options": [] if d.chance(0.6) else [0, 0, 0, d.random.randrange(5)]}
    return Call("_C.plan", _ops._C.plan, args)


def _prepared_layer(memory: Tensor, wide: bool, **numbers: Any) -> str:
    """A prepared layer; its addresses are those of a block that is long enough for the sizes that
    are drawn here."""
    start = memory.data_ptr()
    addresses = {"coefficients": start, "w": start, "delay": 0, "stored": start,
                 "sources": [(start, 64)]}
    return type(_ops._C.PreparedLayer(wide=wide, **numbers, **addresses)).__name__


def prepared_layer(d: Draw) -> Call:
    memory = torch.full((1 << 16,), 0.5, dtype=torch.float64 if (wide := d.chance(0.5))
                        else torch.float32)
    constants = _ops.Constants(dynamics=d.random.randrange(len(MODELS)),
                               surrogate=d.random.randrange(len(SURROGATES)),
                               refractory=d.one_of(0, 2))
    args = {"memory": memory, "wide": wide, "N": d.one_of(1, 5, 33),
            "constants": list(constants), "numbers": [0.3, 0.0, math.inf],
            "delays": [d.one_of(0, 1, 3)], "autapses": d.chance(0.5), "recorded": d.chance(0.5)}
    return Call("_C.PreparedLayer", _prepared_layer, args)
