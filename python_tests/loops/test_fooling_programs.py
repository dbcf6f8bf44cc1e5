"""Small programs made to fool the recorder: each is equal after convert, or refused."""
import os

import pytest

from fooling.judge import judge
from fooling.table import PROGRAMS


@pytest.fixture(autouse=True)
def _by_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, unless LSNN_COMPILE asks for it."""
    monkeypatch.setenv("LSNN_COMPILE", os.environ.get("LSNN_COMPILE", "0"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_equal_or_refused(name: str) -> None:
    kind, wanted = PROGRAMS[name]
    assert "\n".join(judge(kind, wanted)) == ""
