"""Which devices the tests run on, and a header that says what is tested."""
import os
from collections.abc import Iterator

import pytest
import torch

import lsnn_ext

torch.set_num_threads(1)


# The devices that the library has kernels for.
DEVICES = ["cpu"]


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"torch {torch.__version__}, tested on {', '.join(DEVICES)}", *lsnn_ext.show_config().splitlines()]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A design that LSNN_CUDA forces cannot run every layer, and says so."""
    try:
        return (yield)
    except (ValueError, RuntimeError) as error:
        if os.environ.get("LSNN_CUDA") and "cannot run" in str(error) and "the design" in str(error):
            pytest.skip(str(error))
        raise
