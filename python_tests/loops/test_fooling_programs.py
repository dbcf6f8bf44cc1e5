"""Small programs made to fool the recorder: each is equal after convert, or refused."""
import os

import pytest

from fooling.judge import judge
from fooling.table import PROGRAMS
from lsnn_ext.loops.plan import Plan


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_is_equal_or_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, unless LSNN_COMPILE asks for it."""
    monkeypatch.setenv("LSNN_COMPILE", os.environ.get("LSNN_COMPILE", "0"))
    kind, wanted = PROGRAMS[name]
    if wanted.how == "loop":  # replayed also where no kernel makes it faster
        monkeypatch.setattr(Plan, "reason", property(lambda self: ""))
    assert "\n".join(judge(kind, wanted)) == ""
