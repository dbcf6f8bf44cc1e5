"""The programs of the experiments on a new card, with events, stamps and times made up here."""
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("bench", reason="bench/ is not beside these tests")
from bench.gpu.choices import Timing, find_regrets, find_routes, fit_factors, rows_of  # noqa: E402
from bench.gpu.kernels import kernel_times, load_extension, phase_cycles, short_name  # noqa: E402
from lsnn_ext import _ops  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def _event(name: str, us: float, device: str = "CUDA") -> Any:
    return SimpleNamespace(name=name, device_type=SimpleNamespace(name=device),
                           time_range=SimpleNamespace(elapsed_us=lambda: us))


def test_times_of_kernels() -> None:
    long = ("void lsnn::cuda::forward_kernel<float, lsnn::PaperSpec, 1, (bool)1>"
            "(lsnn::cuda::ForwardSequence<float>)")
    assert short_name(long) == "forward_kernel<float, PaperSpec, 1, (bool)1>"
    assert short_name("Memset (Device)") == "Memset "
    assert short_name("sm90_gemm") == "sm90_gemm"
    events = [_event(long, 10), _event("sm90_gemm", 3), _event(long, 12),
              _event("aten::mm", 50, "CPU")]
    assert kernel_times(events, 2) == [(short_name(long), 11), ("sm90_gemm", 1.5)]


def test_cycles_of_phases() -> None:
    stamps = {"forward": [10, 1000, 0, 50], "backward": [0, 0, 0, 0]}
    assert phase_cycles(stamps) == [("forward, phase 0", 100), ("forward, phase 2", 5)]
    if _ops.available and _ops._C.cuda:
        assert phase_cycles(_ops._C.take_stamps()) == []  # a build without stamps


def test_the_extension_is_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--extension: expected a folder with"):
        load_extension(tmp_path)


@pytest.mark.skipif(_ops._C is None, reason="the compiled part is missing")
def test_the_extension_of_a_folder_is_used(tmp_path: Path) -> None:
    """Also in a process that has not imported torch yet."""
    assert _ops._C is not None
    (tmp_path / "lsnn_ext").mkdir()
    copy = shutil.copy(str(_ops._C.__file__), tmp_path / "lsnn_ext")
    code = ("import sys; from pathlib import Path; from bench.gpu.kernels import load_extension; "
            "load_extension(Path(sys.argv[1])); from lsnn_ext import _ops; print(_ops._C.__file__)")
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True,
                         text=True, timeout=300)
    assert ran.stdout.strip() == str(copy), ran.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
@pytest.mark.parametrize("name", ["kernels", "choices"])
def test_without_a_device(name: str, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-m", f"bench.gpu.{name}", "--csv", tmp_path / "x.csv"],
                         cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 2 and f"bench.gpu.{name}: torch" in ran.stdout, ran.stderr
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.skipif(_ops._C is None, reason="the compiled part is missing")
@pytest.mark.parametrize(("B", "N"), [(256, 220), (16, 512), (1, 1024)])
def test_every_route_of_a_layer_is_forced(B: int, N: int) -> None:
    routes = find_routes(B, N, "h100")
    considered = _ops._C.plan(200, B, N, options=list(_ops.forced_options()), device="h100")
    for direction in ("forward", "backward"):
        possible = {name for name, cost in considered[direction]["considered"].items()
                    if isinstance(cost, float)}
        assert {names[direction] for _, names in routes} == possible
    assert routes[0][0] == {"design": "automatic", "kernels": "automatic"}
    assert len({tuple(names.items()) for _, names in routes}) == len(routes) > 2


def test_regret_and_factors() -> None:
    """The formula of `gather` is half of what it should be, so that the plan selects it wrongly."""
    timings = []
    for n, layer in enumerate(("N=32", "N=64"), start=1):
        timings += [Timing(layer, "forward", "block", 4.0 * n, 400.0 * n),
                    Timing(layer, "forward", "gather", 6.0 * n, 300.0 * n, is_chosen=True)]
    assert find_regrets(timings) == [("N=32 forward", 1.5), ("N=64 forward", 1.5)]
    factors = fit_factors(timings)
    assert factors["forward", "gather"] / factors["forward", "block"] == pytest.approx(2)
    assert find_regrets(timings, factors) == [("N=32 forward", 1), ("N=64 forward", 1)]
    rows = [tuple(row) for row in rows_of(timings)]
    assert ("route", "N=32 forward gather (chosen)", 6.0, "ms") in rows
    means = {kind: value for kind, text, value, _ in rows if text == "geometric mean"}
    assert means["regret"] == pytest.approx(1.5)
    assert means["regret with the factors"] == pytest.approx(1)
