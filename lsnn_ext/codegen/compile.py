"""Compiles the C++ source of a neuron to a shared object, once per machine: see shared_object."""
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import NamedTuple

from . import cache

HEADERS = Path(__file__).absolute().parent
FLAGS = (
    "-O3", "-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-shared",
    "-fPIC")
OLDEST = {"g++": 11, "clang++": 14}  # that have C++20
COMPILE_SECONDS = 120.0
VERSION_SECONDS = 30.0
HINT = ("Install g++ >= 11 or clang++ >= 14 (Debian: apt-get install g++; conda: conda install -c "
        "conda-forge cxx-compiler), or set CXX to a C++ compiler")

_failed: set[str] = set()  # keys of sources that the compiler has refused in this process

# A child that another thread forks while a process starts would keep its pipes open, and this
# process would wait for the end of that child.
_starting = threading.RLock()
os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release,
                    after_in_child=_starting.release)


class CompileError(Exception):
    """Why there is no shared object."""


class Compiler(NamedTuple):
    """A compiler that has C++20."""

    words: tuple[str, ...]  # of its command, the first one an absolute path; or a library
    version: str  # all that --version prints


def shared_object(source: str, flags: Sequence[str] | None = None,
                  bits: int | None = None) -> Path | None:
    """Returns the path of a shared object that is compiled from a source, or None: an interpreter
    has to run the step, which is slower. Raises ValueError for an invalid LSNN_COMPILE.

    The compiler is CXX (with arguments, if any), else the first of g++, c++ and clang++ in PATH
    that has C++20. It runs once for each source, compiler, instruction set and version of the
    headers; later calls, also of other processes, find the file in the folder of cache.get. Without
    a compiler, or if it fails, a warning says so once; with LSNN_COMPILE=0 there is none.

    Args:
        source: C++ that includes headers of this folder.
        flags: compiler flags of the instruction set. Default: those of the kernels in use.
        bits: of a vector. Default: those of the kernels in use.
    """
    if not is_enabled():
        return None
    if flags is None or bits is None:
        flags, bits = instruction_set()
    key = ""
    try:
        compiler = find_compiler()
        arguments = (*FLAGS, f"-DLSNN_VECTOR_BITS={bits}", *flags)
        key = make_key(source, compiler, arguments)
        if key in _failed:
            return None
        command = *compiler.words, *arguments
        return cache.get(key, lambda work: compile_with(source, command, work))
    except (CompileError, OSError) as error:
        if key:
            _failed.add(key)
        where = "no folder for a shared object: " if isinstance(error, OSError) else ""
        warn_of_interpreter(f"{where}{error}")
        return None


def is_enabled() -> bool:
    """Returns whether LSNN_COMPILE allows to compile: 1, the default. Raises ValueError."""
    value = os.environ.get("LSNN_COMPILE") or "1"
    if value not in ("0", "1"):
        raise ValueError(f"LSNN_COMPILE: expected 0 or 1, got {value!r}")
    return value == "1"


def instruction_set() -> tuple[list[str], int]:
    """Returns the compiler flags and the bits of a vector of the kernels in use."""
    from .._ops import _C

    _, bits, flags = _C.instruction_set_flags()
    return flags.split(), bits


def find_compiler() -> Compiler:
    """Returns the compiler. Raises CompileError where there is none, or only older ones."""
    named = os.environ.get("CXX", "").strip()
    usual = [name for name in ("g++", "c++", "clang++") if shutil.which(name)]
    reasons = []
    for command in [named] if named else usual:
        try:
            return check_compiler(_split_command(command))
        except CompileError as error:
            reasons.append(str(error))
    raise CompileError(f"{reasons[0] if reasons else 'no C++ compiler is found'}. {HINT}")


def warn_of_interpreter(reason: str = "the step is not compiled") -> None:
    """Warns, once per reason and process, that an interpreter runs a step."""
    cache.warn_once(reason, "lsnn_ext: an interpreter runs the step, slower than compiled code: "
                            + reason)


def _split_command(command: str) -> tuple[str, ...]:
    """Returns the words of CXX, the first one an absolute path."""
    try:
        words = [command] if shutil.which(command) else shlex.split(command)
    except ValueError as error:
        raise CompileError(f"CXX: expected a command, got {command!r} ({error})") from None
    path = shutil.which(words[0]) if words else None
    if path is None:
        raise CompileError(f"CXX: expected a C++ compiler, got {command!r}, which is not found")
    return (os.path.abspath(path), *words[1:])


def check_compiler(words: tuple[str, ...]) -> Compiler:
    """Returns the compiler of a command. Raises CompileError where it cannot be used."""
    answer = query_compiler(words)
    if isinstance(answer, str):
        raise CompileError(answer)
    return answer


@functools.lru_cache
def query_compiler(words: tuple[str, ...]) -> Compiler | str:
    """Returns the compiler, or why it cannot be used. Runs once per process, even if it hangs."""
    name = " ".join(words)
    try:
        status, text = _run((*words, "--version"), VERSION_SECONDS)
    except CompileError as error:
        return str(error)
    if status:
        return f"{name} --version fails: {_first_error(text, status)}"
    kind, version = _kind_and_version(text)
    if version is not None and version < OLDEST[kind]:
        wanted = " or ".join(f"{one} >= {oldest}" for one, oldest in OLDEST.items())
        return f"C++ compiler: expected {wanted}, got {kind} {version} ({name})"
    return Compiler(words, text)


def _kind_and_version(text: str) -> tuple[str, int | None]:
    """Parses the output of --version. Version None: unknown; compiling shows the abilities."""
    if found := re.search(r"clang version (\d+)", text):
        return "clang++", int(found[1])
    line = text.partition("\n")[0]
    while line != (shorter := re.sub(r"\([^()]*\)", "", line)):  # names of distributions
        line = shorter
    found = re.search(r"\s(\d+)\.\d+", line)
    return "g++", int(found[1]) if found else None


def make_key(source: str, compiler: Compiler, arguments: Sequence[str]) -> str:
    """Returns a hash of all that the shared object depends on."""
    headers, name = sorted(HEADERS.glob("*.h")), compiler.words[0]
    parts = [
        source, *(path.name for path in headers), *(path.read_text("utf-8") for path in headers),
        os.path.realpath(name) if os.path.isabs(name) else name,  # or one that the linker finds
        *compiler.words[1:], compiler.version, *arguments,
        sys.platform, platform.machine(), *platform.libc_ver(),
    ]
    text = "".join(f"{len(part)} {part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def compile_with(source: str, command: Sequence[str], work: Path) -> Path:
    """Compiles in an empty folder. Raises OSError where the folder fails, else CompileError."""
    made = work / "neuron.so"
    (work / "neuron.cpp").write_text(source, "utf-8")
    status, text = _run((*command, f"-I{HEADERS}", str(work / "neuron.cpp"), "-o", str(made)),
                        COMPILE_SECONDS, TMPDIR=str(work))
    # A linker that maps its output to memory gets a bus error from a full disk.
    if status and re.search(r"No space left|quota exceeded|Bus error", text, re.IGNORECASE):
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    if status or not made.is_file() or not made.stat().st_size:
        raise CompileError(f"{command[0]} fails: {_first_error(text, status)}")
    return made


def _run(command: Sequence[str], seconds: float, **environment: str) -> tuple[int, str]:
    """Returns the status of a command and what it prints. It and its children are killed after
    `seconds`, or when an exception such as KeyboardInterrupt arrives."""
    try:
        with _starting:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", process_group=0,
                env={**os.environ, "LANG": "C", "LC_ALL": "C", **environment})
    except OSError as error:
        raise CompileError(f"{command[0]} does not start: {error.strerror or error}") from None
    try:
        text, _ = process.communicate(timeout=seconds)
    except BaseException as error:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # of a child that has left the group
            process.communicate(timeout=5)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise CompileError(f"{command[0]} was stopped after {seconds:g} s") from None
    return process.returncode, text


def _first_error(text: str, status: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    return (*errors, *lines, f"it ended with status {status}")[0][:300]
