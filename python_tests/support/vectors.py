"""One vector of the paper's own code, loaded and mapped to the arguments of alif.

The official cell works with weights w V0, spikes z/dt and a buffer of currents yet to come; ours
takes the current itself and z in {0, 1}. Every official parameter is a leaf here and the mapping is
written in torch, so that gradients for the official parameters come through it and can be compared
with the ones that the paper's code gave.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compare import assert_all_same, assert_same
from lsnn_ext import State

# Values and gradients, relative to the largest of each. float32: the official code sums in another
# order.
TOLERANCE = {torch.float64: (1e-12, 1e-11), torch.float32: (5e-6, 3e-5)}
NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "vectors").glob("*.npz"))

# The eligibility_propagation cells: the model that each one is, without and with stop_z_gradients.
EPROP_MODELS = {"LightLIF": "eprop", "LightALIF": "eprop", "EligALIF": "eprop_elig",
                "CustomALIF": "eprop_timit"}


@dataclass
class Vector:
    """Arguments of alif, and what the official code made of them."""

    name: str
    dtype: torch.dtype
    leaves: dict[str, Tensor]  # the official parameters
    arguments: dict[str, Any]  # what alif takes, computed from the leaves
    dt: float
    # spikes v a threshold r, time first; a and threshold where the official cell has them
    outputs: dict[str, Tensor]
    losses: dict[str, dict[str, Tensor]]  # per loss: the weights of the outputs in it
    gradients: dict[str, dict[str, Tensor]]  # per loss: the gradients of the leaves

    def run(self,
            alif: Callable[..., Any]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The outputs and gradients of this alif, named as self.outputs and self.gradients."""
        spikes, state, traces = alif(**self.arguments, trace=True)
        got = {"spikes": spikes / self.dt, "v": traces.v, "a": traces.a,
               "threshold": traces.threshold, "r": state.r}
        gradients = {}
        for loss, weights in self.losses.items():
            total = torch.stack(
                [(got[name] * weight).sum() for name, weight in weights.items()]).sum()
            wanted = self.gradients[loss]
            found = torch.autograd.grad(total, [self.leaves[name] for name in wanted],
                                        retain_graph=True, allow_unused=True)
            # A beta that was one number there has one gradient there: the sum over the neurons of
            # ours.
            gradients[loss] = {name: torch.zeros_like(wanted[name]) if value is None
                               else value.sum() if wanted[name].ndim == 0 else value
                               for name, value in zip(wanted, found, strict=True)}
        return {name: got[name].detach() for name in self.outputs}, gradients


def load(name: str, device: torch.device | str = "cpu") -> Vector:
    """The vector with this name; its dtype is the one that the official code ran in."""
    with np.load(Path(__file__).parents[1] / "vectors" / f"{name}.npz", allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    dtype = {"f32": torch.float32, "f64": torch.float64}[name[-3:]]

    def tensor(key: str) -> Tensor:
        return torch.tensor(data[key], dtype=dtype, device=device)

    kind, dt = str(data["kind"]), float(data["dt"])
    leaves, arguments = (_official if kind in ("LIF", "ALIF") else _eprop)(kind, data, tensor)
    arguments["dampening"] = float(data["dampening"])

    sequences = {"spikes": "z", "v": "v", "threshold": "thr_t"}
    if kind != "LightLIF":  # its adaptation is recorded as 0, ours runs and has beta = 0
        sequences["a"] = "b"
    outputs = {ours: tensor(theirs).transpose(0, 1) for ours, theirs in sequences.items()
               if theirs in data}
    if "zbuf_final" in data:
        outputs["r"] = _refractory_steps(tensor("zbuf_final"))
    weights = {ours: tensor(key).transpose(0, 1)
               for ours, key in (("spikes", "cz"), ("v", "cv"), ("threshold", "ca")) if key in data}
    if kind == "LIF":
        del weights["threshold"]  # the official LIF does not return its constant threshold
    losses = {"z": {"spikes": weights["spikes"]}, "all": weights}
    gradients = {loss: {key: tensor(f"g_{loss}_{key}") for key in leaves
                        if f"g_{loss}_{key}" in data}
                 for loss in losses}
    return Vector(name, dtype, leaves, arguments, dt, outputs, losses, gradients)


def _official(kind: str, data: dict[str, Any], tensor: Callable[[str], Tensor],
              ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """LSNN-official LIF and ALIF: the model lsnn."""
    dt, V0, n_delay = float(data["dt"]), float(data["V0"]), int(data["n_delay"])
    leaves = {key: tensor(key) for key in ("x", "w_in", "w_rec", "thr", "decay")}
    if kind == "ALIF":
        leaves |= {key: tensor(key) for key in ("beta", "decay_b")}
    B, T, N = data["z"].shape
    for key, shape in (("v", (B, N)), ("z", (B, N)), ("b", (B, N)), ("ibuf", (B, N, n_delay))):
        leaves[f"{key}0"] = tensor(f"{key}0") if f"{key}0" in data else torch.zeros(shape).to(
            leaves["x"])
    for leaf in leaves.values():
        leaf.requires_grad_()

    # Slot d of the initial buffer is read at step d; an input with delay d acts d steps later.
    in_delay = torch.tensor(data["in_delay"], device=leaves["x"].device)
    x, current = leaves["x"].transpose(0, 1), torch.zeros(max(T, n_delay), B, N).to(leaves["x"])
    current = current + torch.cat([leaves["ibuf0"].permute(2, 0, 1), current[n_delay:]])
    for d in range(n_delay):
        late = x[:T - d] @ torch.where(in_delay == d, leaves["w_in"] * V0, 0.0)
        current = current + torch.cat([torch.zeros_like(current[:d]), late,
                                       torch.zeros_like(current[T:])])

    # Their z is 1/dt, ours 1: z0 dt and w/dt. Spikes before the last one already are in the buffer
    # of currents.
    z0 = leaves["z0"] * dt
    past = torch.cat([z0[None], torch.zeros(n_delay - 1, B, N).to(z0)])
    r0 = _refractory_steps(tensor("zbuf0")) if "zbuf0" in data else torch.zeros_like(z0)
    rho = leaves.get("decay_b", torch.zeros(N).to(z0))
    arguments = {
        "current": current[:T],
        "w_rec": _without_autapses(leaves["w_rec"]) * (V0 / dt),
        "alpha": leaves["decay"],
        "theta": leaves["thr"],
        "rho": rho,
        "q": (1 - rho) / dt,
        "beta": leaves["beta"] * V0 if kind == "ALIF" else 0.0,
        "refractory": int(data["n_refractory"]),
        "delay": torch.tensor(data["rec_delay"], device=z0.device, dtype=torch.int64),
        "dynamics": "lsnn",
        "state": State(leaves["v0"], leaves["b0"], torch.zeros_like(z0), r0.detach(), past)}
    return leaves, arguments


def _eprop(kind: str, data: dict[str, Any], tensor: Callable[[str], Tensor],
           ) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The cells of eligibility_propagation: the models eprop, eprop_elig and eprop_timit."""
    dt = float(data["dt"])
    if dt != 1.0:
        raise NotImplementedError("the models eprop* are mapped for dt = 1 only")
    leaves = {key: tensor(key).requires_grad_() for key in ("x", "w_in", "w_rec")}
    return leaves, {
        "current": leaves["x"].transpose(0, 1) @ leaves["w_in"],
        "w_rec": _without_autapses(leaves["w_rec"]),
        "alpha": math.exp(-dt / float(data["tau"])),
        "theta": float(data["thr"]),
        "rho": math.exp(-dt / float(data["tau_a"])),
        "beta": float(data["beta"]),
        # Their counter silences one step fewer than its name says.
        "refractory": 0 if kind.startswith("Light") else int(data["n_refractory"]) - 1,
        "dynamics": EPROP_MODELS[kind] + ("_stop" if bool(data["stop_z_gradients"]) else "")}


def _without_autapses(w: Tensor) -> Tensor:
    return w * (1 - torch.eye(len(w)).to(w))


def _refractory_steps(ring: Tensor) -> Tensor:
    """The ring of the last spikes, newest last, as the steps without a spike to come."""
    n = ring.shape[-1]
    left = torch.arange(1, n + 1).to(ring) * (ring > 0)
    return left.amax(-1) if n else torch.zeros(ring.shape[:-1]).to(ring)


def check(name: str, alif: Callable[..., Any], device: str = "cpu") -> None:
    """Compares outputs and gradients of alif with those of the official code."""
    vector = load(name, device)
    outputs, gradients = vector.run(alif)
    values, slopes = TOLERANCE[vector.dtype]
    assert_same("spikes", outputs.pop("spikes"), vector.outputs.pop("spikes"))
    assert_all_same(outputs, vector.outputs, tolerance=values)
    for loss, want in vector.gradients.items():
        assert_all_same(gradients[loss], want, tolerance=slopes)
