"""A header that says what is tested, and what a forced design may leave out."""
import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch

import lsnn_ext

torch.set_num_threads(1)
# Files that take long come first, so that processes which share out the files end together.
FIRST = {f"test_{name}" for name in ("tasks_distributed", "tasks", "table_of_models", "docs",
                                     "packaging", "operator", "export", "bench", "bench_gpu")}


def pytest_report_header(config: pytest.Config) -> list[str]:
    return lsnn_ext.show_config().splitlines()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of the files; within a file nothing changes."""
    items.sort(key=lambda item: item.path.stem not in FIRST)


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
        if os.environ.get("LSNN_DESIGN") and "cannot run" in str(error) and "the design" in str(
            error):
            pytest.skip(str(error))
        raise
