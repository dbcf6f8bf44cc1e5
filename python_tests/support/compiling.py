"""What the tests of lsnn_ext.codegen.compile compile, in this process and in others."""
import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lsnn_ext.codegen import cache, compile

PACKAGE = Path(compile.__file__).parents[1]
Fake = Callable[[str], Callable[[], int]]  # of the fixture `fake`
SOURCE = """#include "neuron.h"
extern "C" __attribute__((visibility("default"))) int answer() { return LSNN_VECTOR_BITS + %d; }
"""
REAL = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
marks = [
    pytest.mark.skipif(os.name != "posix", reason="scripts stand in for compilers"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),  # only those that a test expects
    pytest.mark.usefixtures("folder")]
needs_compiler = pytest.mark.skipif(REAL is None, reason="no C++ compiler is installed")
# A process without torch, which would take seconds to import.
START = f"""
import signal, sys, time, types
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts us aside
for name, folder in ("lsnn_ext", ""), ("lsnn_ext.codegen", "/codegen"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(PACKAGE)!r} + folder]
from lsnn_ext.codegen import cache, compile
SOURCE = {SOURCE!r}
"""


def shared(number: int = 1, *flags: str, bits: int = 128) -> Path | None:
    return compile.shared_object(SOURCE % number, flags, bits)


def load_answer(path: Path | None) -> int:
    assert path is not None
    return ctypes.CDLL(str(path)).answer()


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", START + code], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_private(path: Path | None, folder: Path) -> bool:
    return path is not None and folder not in path.parents and "lsnn_ext-" in str(path)


# ------------------------------------------------------------------------------------- fixtures
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, which is not there yet; and a module that has not warned yet."""
    for name in ("CXX", "LSNN_COMPILE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LSNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(cache, "_private", {})
    monkeypatch.setattr(compile, "_failed", set())
    compile.query_compiler.cache_clear()
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
        compile.query_compiler.cache_clear()
        return lambda: len(log.read_text().split()) if log.exists() else 0
    return make
