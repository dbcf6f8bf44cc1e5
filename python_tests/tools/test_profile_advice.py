"""The advice of lsnn_ext.profile follows from measured conditions, and what is asked for wrongly is
refused."""
import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from lsnn_ext import ALIF, Profile, _ops
from lsnn_ext.tools.profiler.report import BACKWARD, FORWARD

needs_kernels = pytest.mark.skipif(
    _ops._C is None or "LSNN_EMULATE" in os.environ, reason="no CPU kernels run here")
ROOT = Path(__file__).resolve().parents[2]

QUIET = Profile(
    layer="ALIF", repeats=1, threads=2, cores=2, lost=0.0, instruction_set="avx512", forward=1.0,
    backward=1.0, phases={**dict.fromkeys((*FORWARD, *BACKWARD), 0.0), "sums": 0.9, "write": 0.1,
                          "product_active": 1.0},
    projection=("inside the operator",), rate=0.02, active=0.2, input_density=0.05,
    product_steps_dense=0, product_steps_active=100, product_steps_sparse=0,
    calls=1, batch=64, tiles=4, neuron_steps=10_000_000, delays=1, surrogates=("triangle",),
    checkpoint_every=0, spikes_beside_readout=0, fresh_bytes=0, fresh_time=0.0,
    page_faults=10, page_fault_time=1e-5, cache_mb="1024", counters={},
)


@pytest.mark.parametrize(("change", "words"), [
    ({"batch": 20, "tiles": 5}, "32 sequences or more"),
    ({"neuron_steps": 1000, "phases": {"outside_forward": 0.8}}, "torch.compile"),
    ({"projection": ("as a matrix product",), "input_density": 0.6}, "60% of the inputs"),
    ({"product_steps_dense": 200, "active": 0.7}, "70% of the surrogates"),
    ({"product_steps_dense": 200, "surrogates": ("triangle", "arctan")},
     "surrogate arctan is nowhere zero"),
    ({"delays": 4}, "4 distinct delays"),
    ({"page_faults": 90_000, "page_fault_time": 0.5}, "90,000 page faults take 25%.*jemalloc"),
    ({"fresh_bytes": 50_000_000, "fresh_time": 0.5},
     "50 MB of memory are fresh.* 25%.*LSNN_CACHE_MB, 1024 now"),
    ({"spikes_beside_readout": 4_000_000}, "4.0 MB of spikes"),
    ({"lost": 0.3}, "For 30% of their time the kernels had no core"),
    ({"instruction_set": "portable"}, "portable kernels"),
    ({"checkpoint_every": 64, "phases": {"recompute": 0.5}}, "Recomputation takes 25%.*42 MB"),
    ({"cores": 8, "tiles": 16}, "set_num_threads"),
], ids=str)
def test_advice_follows_from_a_condition(change: dict[str, Any], words: str) -> None:
    pattern = re.compile(words)
    assert not any(pattern.search(text) for text in QUIET.advice), QUIET.advice
    phases = QUIET.phases | change.get("phases", {})
    report = dataclasses.replace(QUIET, **{**change, "phases": phases})
    assert any(pattern.search(text) for text in report.advice), report.advice
    assert len(report.advice) == 2 and str(report).count("\n* ") == 2


@pytest.mark.parametrize("largest", [*FORWARD, *BACKWARD])
def test_there_is_a_word_about_every_phase(largest: str) -> None:
    """Where nothing calls for advice the largest phases are named, and what they grow with."""
    report = dataclasses.replace(QUIET, phases={**dict.fromkeys(QUIET.phases, 0.01), largest: 1.8})
    start = "Recomputation takes 90%" if largest == "recompute" else "90% of the time is "
    assert report.advice[0].startswith(start) and len(report.advice) == 2


def test_much_advice_is_cut_and_sorted() -> None:
    report = dataclasses.replace(
        QUIET, batch=2, tiles=1, cores=4, instruction_set="portable", delays=3, fresh_time=0.9,
        active=0.9, product_steps_dense=200, spikes_beside_readout=10, surrogates=("triangle",))
    assert len(report.advice) == 5 and "portable" in report.advice[0]


@needs_kernels
def test_advice_of_real_layers() -> None:
    torch.manual_seed(0)
    delays = torch.arange(900).view(30, 30) % 3
    small = lsnn_ext.profile(ALIF(20, 30, delay=delays), torch.randn(5, 2, 20), file=io.StringIO())
    found = [text for _, text in small._found()]  # before it is cut to five
    assert any("full tiles of 16" in text for text in found), found
    assert any("3 distinct delays" in text for text in found), found
    dense = lsnn_ext.profile(ALIF(20, 30, surrogate="arctan"), torch.randn(300, 40, 20),
                             file=io.StringIO())
    found = [text for _, text in dense._found()]
    assert any("matrix product" in text and "100%" in text for text in found), found
    assert any("arctan" in text for text in found) and dense.projection == ("as a matrix product",)
    assert dense.input_density == 1 and dense.active == 1 and dense.phases["projection"] > 0


@needs_kernels
@pytest.mark.parametrize(("variable", "value", "wanted"), [
    ("LSNN_CACHE_MB", "0", "True 0"), ("LSNN_CACHE_MB", "1024", "False 1024"),
    ("LSNN_CPU", "portable", "portable kernels")])
def test_the_environment(variable: str, value: str, wanted: str) -> None:
    """Without memory kept for reuse y and the spikes, 13 MB each, are fresh in every pass."""
    code = ("import torch, lsnn_ext\n"
            "r = lsnn_ext.profile(lsnn_ext.ALIF(20, 200), (torch.rand(500, 32, 20) < .05).float(), "
            "repeats=3)\nprint(r.fresh_bytes > 25e6 and r.fresh_time > 0, r.cache_mb)")
    environment = {**os.environ, variable: value, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment)
    assert done.returncode == 0 and wanted in done.stdout, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------- errors
GOOD = {"layer": ALIF(5, 6), "x": torch.zeros(3, 2, 5)}


@needs_kernels
@pytest.mark.parametrize(("change", "error", "words"), [
    ({"layer": 3}, TypeError, "layer: expected a module with some of ALIF, LIF, LSNN inside, got "
                              "int"),
    ({"layer": nn.Linear(5, 2)}, ValueError, "layer: expected a module with .* got Linear without"),
    ({"layer": nn.Sequential(nn.Linear(5, 2))}, ValueError, "layer: .*got Sequential"),
    ({"x": [1.0]}, TypeError, "x: expected a tensor or a PackedSequence, got list"),
    ({"x": torch.zeros(0, 2, 5)}, ValueError, r"x: expected one step and one sequence or more, got "
                                              r"shape \(0, 2, 5\)"),
    ({"x": torch.zeros(3, 0, 5)}, ValueError, r"x: .*got shape \(3, 0, 5\)"),
    ({"x": torch.zeros(3, 2, 4)}, ValueError, r"x: expected shape .* got \(3, 2, 4\)"),
    ({"x": torch.zeros(3, 2, 5, device="meta")}, ValueError,
     "x: expected the CPU.*got device meta"),
    ({"layer": ALIF(5, 6, device="meta")}, ValueError, "layer: expected the CPU.*got device meta"),
    ({"state": 3}, TypeError, "state: expected a State"),
    ({"repeats": 0}, ValueError, "repeats: expected an int >= 1, got 0"),
    ({"repeats": 2.0}, TypeError, "repeats: expected an int >= 1, got float"),
    ({"repeats": True}, TypeError, "repeats: expected an int >= 1, got bool"),
    ({"file": "report.txt"}, TypeError, "file: expected a text file or None, got str"),
], ids=str)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lsnn_ext.profile(**{**GOOD, **change})
    assert _ops._C.profile(False) is False


@needs_kernels
def test_a_module_that_calls_none_or_returns_none() -> None:
    class Idle(nn.Module):
        def __init__(self, result: Any) -> None:
            super().__init__()
            self.inside, self.result = ALIF(5, 6), result

        def forward(self, x: Tensor) -> Any:
            return self.result

    with pytest.raises(ValueError, match="layer: expected a module that calls its layers"):
        lsnn_ext.profile(Idle(torch.zeros(3)), torch.zeros(3, 2, 5))
    with pytest.raises(TypeError, match="layer: expected a module that returns a tensor, got Idle"):
        lsnn_ext.profile(Idle(None), torch.zeros(3, 2, 5))


def test_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "_C", None)
    monkeypatch.setattr(_ops, "load_error", ImportError("not built"))
    with pytest.raises(RuntimeError, match=r"lsnn_ext.profile: expected the compiled part.*\(not "
                                           r"built\)"):
        lsnn_ext.profile(**GOOD)


@needs_kernels
def test_it_prints_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    report = lsnn_ext.profile(**GOOD)
    assert capsys.readouterr().out == f"{report}\n" and report.repeats == 5
