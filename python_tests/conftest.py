"""Which devices the tests run on, and a header that says what is tested."""
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
