"""Which devices the tests run on, and a header that says what is tested."""
import io
from contextlib import redirect_stdout

import pytest
import torch

import lsnn_ext

torch.set_num_threads(1)


def _config() -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        lsnn_ext.show_config()
    return text.getvalue()


def _devices() -> list[str]:
    """The CPU, and the GPU where the library has kernels for it and there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() and "cuda" in lsnn_ext.devices() else ["cpu"]


DEVICES = _devices()


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"torch {torch.__version__}, tested on {', '.join(DEVICES)}", *_config().splitlines()]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
