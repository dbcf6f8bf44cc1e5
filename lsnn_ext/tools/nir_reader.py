"""Converts a NIR graph to modules. Each edge is read once; nodes without a module are refused."""
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from .._core.coefficients import complete_coefficients
from .._core.options import PASSED_TO_NEURONS, LIFOptions
from ..models import MODELS, find_defaults
from ..modules import LIF, LeakyReadout, Linear

OURS = "lsnn_ext"  # the key, in the metadata of a node, of what NIR does not express
# The options of a layer among that; to_nir refuses other refractory times than 0.
SETTINGS = (*(name for name in PASSED_TO_NEURONS if name != "refractory"), "autapses")
_NUMBER = (int, float)


def _find_types(hint: Any) -> tuple[type, ...]:
    kind = (*get_args(hint), hint)[0]  # of a type, or of a type or None
    return _NUMBER if kind is float else (kind,)


_TYPES: dict[str, tuple[type, ...]] = {
    "dtype": (str,), "dt": _NUMBER, "time_unit": _NUMBER,
    **{name: _find_types(get_type_hints(LIFOptions)[name]) for name in SETTINGS},
    "width": (*_NUMBER, list)}


def describe_settings(layer: Any) -> dict[str, Any]:
    """The SETTINGS of a layer, with "" or -1 in place of None, which NIR files do not hold."""
    return {name: value if (value := getattr(layer, name)) is not None
            else "" if str in _TYPES[name] else -1.0 for name in SETTINGS}


def has_v_reset(nir: Any) -> bool:
    """Whether a spike of nir.LIF sets the membrane to v_reset (since nir 1.0.6) instead of
    subtracting the threshold."""
    return "v_reset" in nir.LIF.__dataclass_fields__


def find_models(to: bool | None = None) -> list[str]:
    """The models whose spike resets the membrane in the same step; to: only those that set it to a
    value, or that subtract from it. Without adaptation their neurons are those of nir.LIF."""
    return [name for name, model in MODELS.items() if model.when == "now" and model.test == "new"
            and model.beta == "0" and to in (None, model.reset == "to")]


def read_metadata(node: Any, where: str) -> dict[str, Any]:
    """The metadata that to_nir wrote to a node or graph, in plain types. Raises ValueError."""
    metadata = {} if node.metadata is None else node.metadata
    metadata = metadata.get(OURS, {}) if isinstance(metadata, Mapping) else metadata
    if not isinstance(metadata, Mapping):
        raise ValueError(f"{where}: expected a dict as metadata, got {metadata!r:.60}")
    plain = {}
    for key in (key for key in _TYPES if key in metadata):
        value = metadata[key]
        value = value.tolist() if hasattr(value, "tolist") else value
        plain[key] = value.decode() if isinstance(value, bytes) else value
        if type(plain[key]) not in _TYPES[key]:
            kinds = " or ".join(kind.__name__ for kind in _TYPES[key])
            raise ValueError(f"{where}: expected {kinds} as {key}, got {plain[key]!r:.60}")
    return plain


def _check_equal(name: str, what: str, values: Tensor, expected: float) -> None:
    if not bool((values == expected).all()):
        raise ValueError(f"node {name}: expected {what} {expected} for all neurons, got "
                         f"{values.tolist()}")


class Reader:
    def __init__(self, nir: Any, graph: Any, dt: float, second: float, dynamics: str,
                 dtype: torch.dtype) -> None:
        self.nir, self.nodes, self.dt, self.second = nir, dict(graph.nodes), dt, second
        self.dynamics, self.dtype = dynamics, dtype
        self.after: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.unread = [(str(source), str(target)) for source, target in graph.edges]
        for source, target in self.unread:
            for name in (source, target):
                if name not in self.nodes:
                    raise ValueError(f"node {name}: expected a node of the graph, got an "
                                     f"edge {source} -> {target} without it")
            self.after[source].append(target)

    def follow(self, *path: str) -> None:
        """Marks the edges along these nodes as read."""
        for edge in pairwise(path):
            self.unread.remove(edge)

    def find_cycle(self, name: str) -> tuple[str | None, str | None, list[str]]:
        """The map and the delay on the cycle through a LIF, None without one, and the nodes after
        the LIF outside of the cycle. Raises ValueError for any other cycle."""
        nir, maps = self.nir, self.nir.Linear | self.nir.Affine
        for first in self.after[name]:
            path, node = [], first
            while (isinstance(self.nodes[node], nir.Delay | maps) and node not in path
                   and len(self.after[node]) == 1):
                path.append(node)
                (node,) = self.after[node]
            if node == name:
                recurrent = [step for step in path if isinstance(self.nodes[step], maps)]
                delays = [step for step in path if step not in recurrent]
                if len(recurrent) != 1 or len(delays) > 1:
                    raise ValueError(f"node {name}: expected one map and at most one nir.Delay in "
                                     f"its cycle, got {path}")
                self.follow(name, *path, name)
                return recurrent[0], delays[0] if delays else None, [
                    other for other in self.after[name] if other != first]
        return None, None, self.after[name]

    def read_affine(self, name: str) -> tuple[Tensor, Tensor | None]:
        node = self.nodes[name]
        weight = torch.as_tensor(np.asarray(node.weight), dtype=self.dtype)
        bias = getattr(node, "bias", None)
        if weight.dim() != 2:
            raise ValueError(f"node {name}: expected weights (N, I), got {tuple(weight.shape)}")
        return weight, None if bias is None else torch.as_tensor(np.asarray(bias), dtype=self.dtype)

    def read(self, name: str, key: str, size: int) -> Tensor:
        """The numbers (size,) of a unit, in double precision."""
        found = torch.as_tensor(np.array(getattr(self.nodes[name], key), np.float64))
        if found.shape not in ((), (size,)) or not bool(found.isfinite().all()):
            raise ValueError(f"node {name}: expected finite {key} of shape ({size},), got "
                             f"{found.tolist()} of shape {tuple(found.shape)}")
        return found.expand(size)

    def make_layer(self, name: str, weight: Tensor,
                   bias: Tensor | None) -> tuple[nn.Module, list[str]]:
        node, (recurrent, delayed, rest) = self.nodes[name], self.find_cycle(name)
        N = weight.shape[0]
        _check_equal(name, "v_leak", self.read(name, "v_leak", N), 0.0)
        metadata = {"dynamics": self.dynamics, **read_metadata(node, f"node {name}")}
        dynamics = metadata["dynamics"]
        if dynamics not in find_models():
            raise ValueError(f"node {name}: expected dynamics that reset in the step of the spike, "
                             f"{', '.join(find_models())}, got {dynamics}")
        w_rec, extra = (None, None) if recurrent is None else self.read_affine(recurrent)
        if extra is not None and bool(extra.any()):
            raise ValueError(f"node {recurrent}: expected recurrent weights without a bias, got "
                             f"one")
        if w_rec is not None and w_rec.shape != (N, N):
            raise ValueError(f"node {recurrent}: expected weights {(N, N)}, got "
                             f"{tuple(w_rec.shape)}")
        delay = 0 if delayed is None else self.count_steps(delayed, N)
        tau, theta = self.read(name, "tau", N) / self.second, self.read(name, "v_threshold", N)
        options = {key: metadata[key] for key in (*SETTINGS, "width")
                   if key not in ("dynamics", "autapses")
                   and metadata.get(key, "") not in ("", -1.0)}
        if "sigma" in find_defaults(dynamics, "LIF"):
            options["sigma"] = 0.0
        v_reset = self.read(name, "v_reset", N) if has_v_reset(self.nir) else torch.zeros(N)
        if MODELS[dynamics].reset != "to":
            _check_equal(name, f"v_reset, which dynamics={dynamics!r} ignores,", v_reset, 0.0)
        elif bool(v_reset.any()):
            options["R"] = v_reset
        autapses = None if w_rec is None else (
            bool(metadata.get("autapses", True)) or bool(w_rec.diagonal().any()))
        try:
            if "width" in options:
                options["width"] = torch.tensor(options["width"], dtype=torch.float64)
            made: Any = LIF(weight.shape[1], N, bias=bias is not None, recurrent=w_rec is not None,
                            delay=delay, dynamics=dynamics, tau_mem=tau, threshold=theta,
                            refractory=0, dt=self.dt, autapses=autapses, dtype=self.dtype,
                            **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"node {name}: {error}") from error
        alpha = torch.exp(-self.dt / tau)
        kappa = torch.as_tensor(complete_coefficients(dynamics, alpha=alpha, theta=theta)["kappa"])
        gain = self.read(name, "r", N) * (1 - alpha) / kappa
        close = torch.isclose(gain, torch.ones_like(gain), rtol=1e-12, atol=0)
        gain = torch.where(close, 1.0, gain).to(self.dtype)  # other gains scale the weights
        with torch.no_grad():
            made.weight_ih_l0.copy_(weight * gain[:, None])
            if bias is not None:
                made.bias_ih_l0.copy_(bias * gain)
            if w_rec is not None:
                made.weight_hh_l0.copy_(w_rec * gain[:, None])
        return made, rest

    def count_steps(self, name: str, size: int) -> int:
        delay = self.read(name, "delay", size) / (self.dt * self.second)
        steps = round(float(delay[0]))
        if steps < 0 or not np.allclose(delay, steps, rtol=0, atol=1e-6):
            raise ValueError(f"node {name}: expected one delay of whole steps, got "
                             f"{delay.tolist()} steps")
        return steps

    def make_readout(self, name: str, weight: Tensor) -> LeakyReadout:
        O = weight.shape[0]
        _check_equal(name, "v_leak", self.read(name, "v_leak", O), 0.0)
        tau, r = self.read(name, "tau", O) / self.second, self.read(name, "r", O)
        _check_equal(name, f"tau / {self.second}", tau, float(tau[0]))
        try:
            made = LeakyReadout(weight.shape[1], O, float(tau[0]), dt=self.dt, bias=False,
                                dtype=self.dtype)
        except ValueError as error:
            raise ValueError(f"node {name}: {error}") from error
        with torch.no_grad():
            made.weight.copy_(weight * r.to(self.dtype)[:, None])
        return made

    def make_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        made = Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=self.dtype)
        made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        return made

    def make_modules(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        inputs = [key for key, node in self.nodes.items() if isinstance(node, self.nir.Input)]
        if len(inputs) != 1:
            raise ValueError(f"graph: expected one nir.Input, got {inputs}")
        (name,) = inputs
        pending: tuple[Tensor, Tensor | None] | None = None  # a map whose unit may follow
        rest, seen = self.after[name], {name}
        while True:
            if len(rest) != 1:
                raise ValueError(f"node {name}: expected one node after it, got {rest}")
            self.follow(name, *rest)
            (name,) = rest
            if name in seen:
                raise ValueError(f"node {name}: expected cycles through a nir.LIF only, got one "
                                 f"through a {type(self.nodes[name]).__name__}")
            seen.add(name)
            node, rest = self.nodes[name], self.after[name]
            unit, pending = pending, None
            if unit is not None and not isinstance(node, self.nir.LIF | self.nir.LI):
                found.append(self.make_linear(*unit))
            if unit is not None and isinstance(node, self.nir.LIF):
                made, rest = self.make_layer(name, *unit)
                found.append(made)
            elif unit is not None and isinstance(node, self.nir.LI):
                if unit[1] is not None:
                    raise ValueError(f"node {name}: expected a map without a bias before a "
                                     f"nir.LI, got one")
                found.append(self.make_readout(name, unit[0]))
            elif isinstance(node, self.nir.Affine | self.nir.Linear):
                pending = self.read_affine(name)
            elif isinstance(node, self.nir.Output):
                for source, target in self.unread:
                    raise ValueError(f"node {target}: expected one chain from the input to the "
                                     f"output, got an edge from {source} outside of it")
                return found
            else:
                raise ValueError(f"node {name}: expected Affine or Linear, or LIF or LI after one, "
                                 f"got {type(node).__name__}")
