"""A header that says what is tested, the part of each table of cases, and what a forced design may
leave out."""
import gc
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch

import lsnn_ext

HERE = Path(__file__).resolve().parent
# Folders with code that tests of several folders import.
sys.path[:0] = [str(HERE / name) for name in ("support", "examples")]
from rounding import rounding_after_medium  # noqa: E402

torch.set_num_threads(1)
# Files that take long come first, so that processes which share out the files end together.
FIRST = {f"test_{name}" for name in ("tasks_distributed", "tasks", "table_of_models", "docs",
                                     "packaging", "operator", "export", "bench", "bench_gpu")}

# Folders and files whose tests are all marked slow, as are single tests by @pytest.mark.slow.
# `make test` leaves them out, `make test-all` runs all.
SLOW = {"bench", "examples", "fuzz", "house", *(f"test_{name}" for name in (
    "fooling_gradients", "fooling_judge", "fooling_programs", "fooling_recording",
    "interrupts", "package_models", "packages", "plan", "plan_memory", "scripted_surrogate",
    "six_loops", "generate", "operators", "random", "reroll"))}
# LSNN_CASES=k/n runs the k-th of n parts, k from 0, of every test with at least so many cases; of a
# slow one with fewer, but for those of the house, each of which sees another page or file.
LARGE_TABLE, LARGE_SLOW_TABLE = 30, 6


def _read_part() -> tuple[int, int]:
    """k and n of LSNN_CASES."""
    requested = os.environ.get("LSNN_CASES") or "0/1"
    found = re.fullmatch(r"(\d+)/(\d+)", requested)
    if found is None or int(found[1]) >= int(found[2]):
        raise pytest.UsageError(f"LSNN_CASES: expected k/n, 0 <= k < n, got {requested!r}")
    return int(found[1]), int(found[2])


def cases_left_out(names: list[str], k: int, n: int, slow: Collection[str] = ()) -> set[int]:
    """The places of the cases of large tables that are not in the k-th of n parts."""
    tables: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        tables.setdefault(name.partition("[")[0], []).append(i)
    return {i for table in tables.values()
            if len(table) >= (LARGE_SLOW_TABLE if names[table[0]] in slow else LARGE_TABLE)
            for place, i in enumerate(table) if place % n != k}


@pytest.fixture(autouse=True)
def _convert_what_is_small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small programs of these tests are converted, although it makes few of them faster."""
    if request.path.parent.name in ("loops", "fuzz"):
        monkeypatch.setattr("lsnn_ext.loops.plan.LEAST_GAIN", 0.0)


def pytest_report_header(config: pytest.Config) -> list[str]:
    k, n = _read_part()
    part = [] if n == 1 else [f"LSNN_CASES={k}/{n}: a part of each test with {LARGE_TABLE} cases "
                              f"and more, of slow ones with {LARGE_SLOW_TABLE}"]
    return [*lsnn_ext.show_config().splitlines(), *part]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The marks of slow files, the part of each large table, and the order of the files; within a
    file nothing changes."""
    for item in items:
        if not SLOW.isdisjoint((item.path.parent.name, item.path.stem)):
            item.add_marker(pytest.mark.slow)
    slow = {item.nodeid for item in items if item.get_closest_marker("slow")
            and item.path.parent.name != "house"}
    left_out = cases_left_out([item.nodeid for item in items], *_read_part(), slow)
    config.hook.pytest_deselected(items=[items[i] for i in sorted(left_out)])
    items[:] = sorted((item for i, item in enumerate(items) if i not in left_out),
                      key=lambda item: item.path.stem not in FIRST)


def pytest_collection_finish() -> None:
    """What was imported stays until the end: no collection of garbage need look at it again, of
    which the benchmarks make one before whatever they time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_graphs_of_others() -> None:
    """torch compiles a function a limited number of times, also if several tests do it in turn."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def _precision_of_products() -> Iterator[None]:
    """torch's products may round after "medium", here or elsewhere: no test expects otherwise. Its
    switch is put back."""
    with rounding_after_medium():
        yield


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of neurons are not compiled."""
    monkeypatch.setenv("LSNN_COMPILE", "0")


@pytest.fixture
def own_threads() -> Iterator[None]:
    """For tests of programs that set how many torch uses: afterwards it uses as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A design that LSNN_DESIGN forces cannot run every layer, and says so."""
    try:
        return (yield)
    except (ValueError, RuntimeError) as error:
        if os.environ.get("LSNN_DESIGN") and "design: expected one that can run" in str(error):
            pytest.skip(str(error))
        raise
