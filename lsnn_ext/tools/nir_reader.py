"""From a graph of NIR to modules: each edge is read once, and what has no module is refused."""
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._core.coefficients import complete_coefficients
from ..models import MODELS, default_values
from ..modules import LIF, LeakyReadout, Linear
from .description import shorten

OURS = "lsnn_ext"  # of the metadata of a node: what NIR does not express
_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    "dtype": (str,), "dt": _NUMBER, "time_unit": _NUMBER, "dynamics": (str,), "surrogate": (str,),
    "dampening": _NUMBER, "surrogate_cutoff": _NUMBER, "autapses": (bool,),
    "width": (*_NUMBER, list)}


def has_v_reset(nir: Any) -> bool:
    """Whether a spike of nir.LIF sets the membrane to v_reset, as since nir 1.0.6; before, it
    subtracts the threshold."""
    return "v_reset" in nir.LIF.__dataclass_fields__


def find_models(to: bool | None = None) -> list[str]:
    """The models whose spike resets the membrane in its own step; to: those that set it to a value,
    or those that subtract from it. Without adaptation their neurons are those of nir.LIF."""
    return [name for name, model in MODELS.items() if model.when == "now" and model.test == "new"
            and model.beta == "0" and to in (None, model.reset == "to")]


def read_metadata(node: Any, where: str) -> dict[str, Any]:
    """What to_nir has written into the metadata of a node or graph, in plain types. Raises
    ValueError for values of other types."""
    told = {} if node.metadata is None else node.metadata
    told = told.get(OURS, {}) if isinstance(told, Mapping) else told
    if not isinstance(told, Mapping):
        raise ValueError(f"{where}: expected a dict as metadata, got {shorten(told)}")
    plain = {}
    for key in (key for key in _TYPES if key in told):
        value = told[key]
        value = value.tolist() if hasattr(value, "tolist") else value
        plain[key] = value.decode() if isinstance(value, bytes) else value
        if type(plain[key]) not in _TYPES[key]:
            wanted = " or ".join(kind.__name__ for kind in _TYPES[key])
            raise ValueError(f"{where}: expected {wanted} as {key}, got {shorten(plain[key])}")
    return plain


def _same(name: str, what: str, values: Tensor, wanted: float) -> None:
    if not bool((values == wanted).all()):
        raise ValueError(f"node {name}: expected {what} {wanted} everywhere, got "
                         f"{values.tolist()}")


class Reader:
    """Walks along a graph, from its input to its output."""

    def __init__(self, nir: Any, graph: Any, dt: float, second: float, dynamics: str,
                 dtype: torch.dtype) -> None:
        self.nir, self.nodes, self.dt, self.second = nir, dict(graph.nodes), dt, second
        self.dynamics, self.dtype = dynamics, dtype
        self.after: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.unread = [(str(source), str(target)) for source, target in graph.edges]
        for source, target in self.unread:
            for name in (source, target):
                if name not in self.nodes:
                    raise ValueError(f"node {name}: expected a node of the graph, got only its "
                                     f"name in the edge {source} -> {target}")
            self.after[source].append(target)

    def follow(self, *way: str) -> None:
        """Notes that the edges along these nodes are read; each edge can be read once."""
        for edge in pairwise(way):
            self.unread.remove(edge)

    def find_cycle(self, name: str) -> tuple[str | None, str | None, list[str]]:
        """The map and the delay on the cycle through a LIF, None where there are none, and the
        nodes that follow the LIF outside of the cycle. Raises ValueError for any other cycle."""
        nir, maps = self.nir, self.nir.Linear | self.nir.Affine
        for first in self.after[name]:
            way, node = [], first
            while (isinstance(self.nodes[node], nir.Delay | maps) and node not in way
                   and len(self.after[node]) == 1):
                way.append(node)
                (node,) = self.after[node]
            if node == name:
                recurrent = [step for step in way if isinstance(self.nodes[step], maps)]
                delays = [step for step in way if step not in recurrent]
                if len(recurrent) != 1 or len(delays) > 1:
                    raise ValueError(f"node {name}: expected one map and at most one nir.Delay on "
                                     f"the way back to it, got {way}")
                self.follow(name, *way, name)
                return recurrent[0], delays[0] if delays else None, [
                    other for other in self.after[name] if other != first]
        return None, None, self.after[name]

    def affine(self, name: str) -> tuple[Tensor, Tensor | None]:
        node = self.nodes[name]
        weight = torch.as_tensor(np.asarray(node.weight), dtype=self.dtype)
        bias = getattr(node, "bias", None)
        if weight.dim() != 2:
            raise ValueError(f"node {name}: expected weights (N, I), got {tuple(weight.shape)}")
        return weight, None if bias is None else torch.as_tensor(np.asarray(bias),
                                                                 dtype=self.dtype)

    def read(self, name: str, key: str, size: int) -> Tensor:
        """The numbers (size,) that a unit has under this key, in double precision."""
        found = torch.as_tensor(np.array(getattr(self.nodes[name], key), np.float64))
        if found.shape not in ((), (size,)) or not bool(found.isfinite().all()):
            raise ValueError(f"node {name}: expected finite numbers {key} ({size},), got "
                             f"{tuple(found.shape)}: {found.tolist()}")
        return found.expand(size)

    def layer(self, name: str, weight: Tensor, bias: Tensor | None) -> tuple[nn.Module, list[str]]:
        node, (recurrent, delayed, rest) = self.nodes[name], self.find_cycle(name)
        N = weight.shape[0]
        _same(name, "v_leak", self.read(name, "v_leak", N), 0.0)
        told = {"dynamics": self.dynamics, **read_metadata(node, f"node {name}")}
        dynamics = told["dynamics"]
        if dynamics not in find_models():
            raise ValueError(f"node {name}: expected dynamics that reset in the step of the spike, "
                             f"{', '.join(find_models())}, got {dynamics}")
        w_rec, extra = (None, None) if recurrent is None else self.affine(recurrent)
        if extra is not None and bool(extra.any()):
            raise ValueError(f"node {recurrent}: expected no bias in recurrent weights, got one")
        if w_rec is not None and w_rec.shape != (N, N):
            raise ValueError(f"node {recurrent}: expected weights {(N, N)}, got "
                             f"{tuple(w_rec.shape)}")
        delay = 0 if delayed is None else self.count_steps(delayed, N)
        tau, theta = self.read(name, "tau", N) / self.second, self.read(name, "v_threshold", N)
        chosen = {key: told[key] for key in ("surrogate", "dampening", "surrogate_cutoff", "width")
                  if told.get(key, "") not in ("", -1.0)}
        if "sigma" in default_values(dynamics, "LIF"):
            chosen["sigma"] = 0.0
        v_reset = self.read(name, "v_reset", N) if has_v_reset(self.nir) else torch.zeros(N)
        if MODELS[dynamics].reset != "to":
            _same(name, f"v_reset, which dynamics={dynamics!r} do not have,", v_reset, 0.0)
        elif bool(v_reset.any()):
            chosen["R"] = v_reset
        autapses = None if w_rec is None else (
            bool(told.get("autapses", True)) or bool(w_rec.diagonal().any()))
        try:
            if "width" in chosen:
                chosen["width"] = torch.tensor(chosen["width"], dtype=torch.float64)
            made: Any = LIF(weight.shape[1], N, bias=bias is not None, recurrent=w_rec is not None,
                            delay=delay, dynamics=dynamics, tau_mem=tau, threshold=theta,
                            refractory=0, dt=self.dt, autapses=autapses, dtype=self.dtype, **chosen)
        except (TypeError, ValueError) as error:
            raise ValueError(f"node {name}: {error}") from error
        alpha = torch.exp(-self.dt / tau)
        kappa = torch.as_tensor(complete_coefficients(dynamics, alpha=alpha, theta=theta)["kappa"])
        gain = self.read(name, "r", N) * (1 - alpha) / kappa
        close = torch.isclose(gain, torch.ones_like(gain), rtol=1e-12, atol=0)
        gain = torch.where(close, 1.0, gain).to(self.dtype)  # else it goes into the weights
        with torch.no_grad():
            made.weight_ih_l0.copy_(weight * gain[:, None])
            if bias is not None:
                made.bias_ih_l0.copy_(bias * gain)
            if w_rec is not None:
                made.weight_hh_l0.copy_(w_rec * gain[:, None])
        return made, rest

    def count_steps(self, name: str, size: int) -> int:
        delay = self.read(name, "delay", size) / (self.dt * self.second)
        whole = round(float(delay[0]))
        if whole < 0 or not np.allclose(delay, whole, rtol=0, atol=1e-6):
            raise ValueError(f"node {name}: expected one delay of whole steps, got "
                             f"{delay.tolist()} of them")
        return whole

    def readout(self, name: str, weight: Tensor) -> LeakyReadout:
        O = weight.shape[0]
        _same(name, "v_leak", self.read(name, "v_leak", O), 0.0)
        tau, r = self.read(name, "tau", O) / self.second, self.read(name, "r", O)
        _same(name, f"tau / {self.second}", tau, float(tau[0]))
        try:
            made = LeakyReadout(weight.shape[1], O, float(tau[0]), dt=self.dt, bias=False,
                                dtype=self.dtype)
        except ValueError as error:
            raise ValueError(f"node {name}: {error}") from error
        with torch.no_grad():
            made.weight.copy_(weight * r.to(self.dtype)[:, None])
        return made

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        made = Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=self.dtype)
        with torch.no_grad():
            made.weight.copy_(weight)
            if bias is not None:
                made.bias.copy_(bias)
        return made

    def modules(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        inputs = [key for key, node in self.nodes.items() if isinstance(node, self.nir.Input)]
        if len(inputs) != 1:
            raise ValueError(f"graph: expected one nir.Input, got {inputs}")
        (name,) = inputs
        held: tuple[Tensor, Tensor | None] | None = None  # a map whose unit may follow
        rest, seen = self.after[name], {name}
        while True:
            if len(rest) != 1:
                raise ValueError(f"node {name}: expected one node behind it, got {rest}")
            self.follow(name, *rest)
            (name,) = rest
            if name in seen:
                raise ValueError(f"node {name}: expected cycles through a nir.LIF only, got one "
                                 f"back to this {type(self.nodes[name]).__name__}")
            seen.add(name)
            node, rest = self.nodes[name], self.after[name]
            if isinstance(node, self.nir.LIF) and held is not None:
                made, rest = self.layer(name, *held)
                found.append(made)
                held = None
            elif isinstance(node, self.nir.LI) and held is not None:
                if held[1] is not None:
                    raise ValueError(f"node {name}: expected no bias in front of a nir.LI, got one")
                found.append(self.readout(name, held[0]))
                held = None
            else:
                if held is not None:
                    found.append(self.linear(*held))
                    held = None
                if isinstance(node, self.nir.Affine | self.nir.Linear):
                    held = self.affine(name)
                elif isinstance(node, self.nir.Output):
                    for source, target in self.unread:
                        raise ValueError(f"node {target}: expected one chain from the input to the "
                                         f"output, got an edge from {source} outside of it")
                    return found
                else:
                    raise ValueError(f"node {name}: expected Affine, Linear, LIF or LI behind a "
                                     f"map, got {type(node).__name__}")
