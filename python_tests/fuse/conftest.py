"""A cache folder and a compiler that belong to one test."""
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from compiling import REAL, Fake
from lsnn_ext.fuse import cache, compile


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which is not there yet; and a module that has not warned yet."""
    for name in ("CXX", "LSNN_COMPILE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LSNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(cache, "_private", {})
    monkeypatch.setattr(compile, "_failed", set())
    compile._answer.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def fake(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Sets CXX to a script with these lines, where $out is its output and "$real" "$@" compiles;
    returns how often it has compiled."""
    def make(lines: str, version: str = "g++ (Fake 1.0 (x)) 12.1.0") -> Callable[[], int]:
        script, log = tmp_path / "fake g++", tmp_path / "log"
        script.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo '{version}'; exit; fi
echo run >> {shlex.quote(str(log))}
for out; do :; done
real={REAL}
{lines}
""")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        compile._answer.cache_clear()
        return lambda: len(log.read_text().split()) if log.exists() else 0
    return make
