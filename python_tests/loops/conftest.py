"""Small programs are converted here, although it makes few of them faster."""
import pytest


@pytest.fixture(autouse=True)
def _convert_what_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsnn_ext.loops.plan.LEAST_GAIN", 0.0)
