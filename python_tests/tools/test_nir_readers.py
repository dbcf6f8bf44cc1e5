"""Graphs of to_nir in other packages, against the table in docs/modules.md."""
import contextlib
import copy
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import LIF, LeakyReadout
from lsnn_ext.tools.nir import to_nir
from originals import package

nir = pytest.importorskip("nir")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "modules.md"
if not PAGE.exists():
    pytest.skip("docs/ is not beside these tests", allow_module_level=True)
HARD = "v_reset" in nir.LIF.__dataclass_fields__
TAU, N, DT = 20.0, 8, 0.1  # snnTorch reads every graph with steps of 0.1 ms

# What a column of the table adds to two layers without recurrent weights.
COLUMNS: dict[str, dict[str, Any]] = {
    "LIF": {},
    "`tau_mem` (N,)": {"tau_mem": torch.linspace(10, 30, N)},
    "recurrent": {"recurrent": True, "autapses": True},
    "`delay`": {"recurrent": True, "autapses": True, "delay": 20},
    "`kappa`": {"kappa": 0.02},
    "`R`": {"R": 0.2},
    "LeakyReadout": {}}


def _steps(module: nn.Module, x: Tensor) -> Tensor:
    """The outputs of a module that takes a step and a state."""
    state: tuple[Any, ...] = ()
    found = []
    for now in x:
        out = module(now, *state)
        out, state = (out[0], (out[1],)) if isinstance(out, tuple) else (out, ())
        found.append(out[0] if isinstance(out, tuple) else out)
    return torch.stack(found).detach()


READERS: dict[str, Callable[[Any], nn.Module]] = {
    "norse": lambda graph: package("norse.torch").from_nir(graph, dt=DT * 1e-3),
    "SpikingJelly": lambda graph: package("spikingjelly.activation_based.nir_exchange")
    .import_from_nir(graph, dt=DT * 1e-3),
    "snnTorch": lambda graph: package("snntorch.import_nir").import_from_nir(graph),
    "sinabs": lambda graph: package("sinabs.nir").from_nir(graph, batch_size=4)}


def _table() -> list[tuple[str, str, str]]:
    """Reader, column and verdict of each cell."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in re.findall(r"^\|.*\|$", PAGE.read_text(), re.MULTILINE)]
    start = next(n for n, row in enumerate(rows) if row[0] == "NIR reader")
    found = []
    for row in rows[start + 2:]:
        if row[0].split()[0] not in READERS:
            break
        found += [(row[0].split()[0], *pair) for pair in zip(rows[start][2:], row[2:], strict=True)]
    return found


def _networks(reader: str, column: str) -> tuple[nn.Sequential, nn.Sequential]:
    """A network, and what a reader that reads all of it makes of it: norse, SpikingJelly and
    snnTorch step by Euler's method, with decays 1 - dt / tau."""
    given: dict[str, Any] = {"tau_mem": TAU, "threshold": 0.3, "refractory": 0, "dt": DT,
                             "recurrent": False, **COLUMNS[column]}
    if reader == "sinabs":  # its tau is in steps, and it multiplies no current
        given |= {"dynamics": "sinabs_sub", "dt": 1.0, "threshold": 2.0,
                  "kappa": 25 * COLUMNS[column].get("kappa", 0.04)}
    else:
        given |= {"dynamics": "norse_lif", "sigma": 0.0}
    euler = dict(given)
    if reader != "sinabs":
        share = DT / torch.as_tensor(euler.pop("tau_mem"))
        euler["alpha"] = 1 - share
        if "kappa" in euler:
            euler["kappa"] *= share / (1 - torch.exp(-share))
    made = []
    for arguments in (given, euler):
        torch.manual_seed(0)
        layers: list[nn.Module] = [LIF(5, N, num_layers=2, **arguments)]
        if column == "LeakyReadout":
            layers.append(LeakyReadout(N, 2, TAU, dt=given["dt"]))
        with torch.no_grad():
            for name, p in layers[0].named_parameters():
                # a spike of a step of 0.1 ms is a short current
                strength = 0.5 if "ih_l0" in name or reader == "sinabs" else 40
                p.copy_(strength * (p if "hh" in name else p.abs()))
                if "bias" in name:
                    p.fill_(0.05)
        made.append(nn.Sequential(*layers))
    return made[0], made[1]


def _run(network: nn.Sequential, x: Tensor) -> Tensor:
    for module in network:
        x, _ = module(x)
    return x.detach()


def _input(network: nn.Sequential) -> Tensor:
    """An input for which no membrane comes so close to its threshold that rounding decides."""
    moved = copy.deepcopy(network)
    for name, threshold in moved[0].named_buffers():
        if name.startswith("threshold"):
            threshold *= 1 + 1e-5
    for seed in range(100):
        torch.manual_seed(seed)
        x = torch.rand(20, 4, 5).repeat_interleave(50, 0)
        spikes = _run(network[:1], x)
        if 0.001 < spikes.mean() < 0.5 and torch.equal(spikes, _run(moved[:1], x)):
            return x
    raise AssertionError("expected an input among 100")


def test_the_table_is_complete() -> None:
    assert [(r, c) for r, c, _ in _table()] == [(r, c) for r in READERS for c in COLUMNS]


@pytest.mark.parametrize(("reader", "column", "verdict"), _table())
def test_readers(reader: str, column: str, verdict: str) -> None:
    if (reader == "sinabs") == HARD:
        pytest.skip(f"{reader} needs nir {'1.0.4' if HARD else '1.0.8'}, installed is "
                    f"{nir.version}")
    if verdict == "-":
        return
    network, euler = _networks(reader, column)
    x = _input(euler)
    want = _run(euler, x)
    graph = to_nir(network, time_unit=1.0 if reader == "sinabs" else 1e-3)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = READERS[reader](graph)
        got = _steps(module, x)
    except ValueError as error:
        assert verdict == "refused", error
        return
    except (AttributeError, KeyError, RuntimeError) as error:  # of a reader that has lost a node
        assert verdict == "other", error
        return
    assert verdict == ("same" if got.shape == want.shape and torch.equal(got, want) else "other")
