"""The compiler of generated neurons: one compilation for all, and a warning where it fails."""
import errno
import fcntl
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import compiling
from compiling import PACKAGE, Fake, load_answer, needs_compiler, shared, start, wait_until
from lsnn_ext.codegen import cache, compile

pytestmark = compiling.marks
folder, fake = compiling.folder, compiling.fake  # fixtures

# ------------------------------------------------------------------------------- the usual way
@needs_compiler
def test_source_is_compiled_once(folder: Path) -> None:
    path = shared(1)
    assert load_answer(path) == 129
    assert path is not None and path.parent == folder and path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {one.suffix for one in folder.iterdir()} == {".so", ".lock"}
    start = time.perf_counter()
    assert shared(1) == path
    assert time.perf_counter() - start < 0.05
    assert load_answer(shared(2)) == 130


@needs_compiler
def test_another_process_finds_it(folder: Path) -> None:
    path = shared()
    process = start("start = time.process_time()\n"
                     "print(compile.shared_object(SOURCE % 1, (), 128))\n"
                     "print(time.process_time() - start)")
    found, seconds = process.communicate(timeout=60)[0].split("\n")[:2]
    assert found == str(path) and float(seconds) < 0.05


@needs_compiler
def test_flags_reach_the_compiler() -> None:
    assert load_answer(shared(3, "-DLSNN_VECTOR_BITS=0", bits=0)) == 3
    assert compile.shared_object('#include "neuron.h"\n#ifndef EXTRA\n#error\n#endif', ["-DEXTRA"],
                                 256)


@needs_compiler
def test_key_depends_on_all_that_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         fake: Fake) -> None:
    headers = tmp_path / "headers"
    headers.mkdir()
    shutil.copy(PACKAGE / "codegen" / "neuron.h", headers)
    monkeypatch.setattr(compile, "HEADERS", headers)
    paths = [shared(1), shared(2), shared(1, "-DA=1"), shared(1, bits=256)]
    text = (headers / "neuron.h").read_text()
    (headers / "neuron.h").write_text(text.replace("abi_version = 2", "abi_version = 3"))
    paths.append(shared(1))
    for version in ("12.1", "12.2"):
        fake('exec "$real" "$@"', f"g++ (Fake) {version}")
        paths.append(shared(1))
    assert len({path.name.split("-")[0] for path in paths if path}) == len(paths) == 7


# ------------------------------------------------------------------------ several at the same time
@needs_compiler
def test_two_processes_compile_once(fake: Fake) -> None:
    count = fake('sleep 0.3; exec "$real" "$@"')
    both = [start("print(compile.shared_object(SOURCE % 1, (), 128))") for _ in range(2)]
    printed = [process.communicate(timeout=60) for process in both]
    assert printed[0] == printed[1] and printed[0][0].endswith(".so\n") and count() == 1


@needs_compiler
@pytest.mark.parametrize("has_locks", [True, False])
def test_threads_compile_once(fake: Fake, monkeypatch: pytest.MonkeyPatch, has_locks: bool) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if not has_locks:  # as on some network file systems
        monkeypatch.setattr(fcntl, "flock", fail)
    count = fake('sleep 0.2; exec "$real" "$@"')
    with ThreadPoolExecutor(4) as pool:
        paths = [made.result() for made in [pool.submit(shared) for _ in range(4)]]
    assert len(set(paths)) == 1 and None not in paths and count() == 1


@needs_compiler
def test_waiting_for_another_process_ends(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.1)
    count = fake('[ "$SLOW" ] && sleep 30; exec "$real" "$@"')
    monkeypatch.setenv("SLOW", "1")
    process = start("compile.shared_object(SOURCE % 1, (), 128)")
    wait_until(count)
    monkeypatch.delenv("SLOW")
    assert load_answer(shared()) == 129 and count() == 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)


@needs_compiler
def test_fork_while_a_thread_compiles(fake: Fake) -> None:
    count = fake('[ "$(wc -l < "${0%/*}/log")" = 1 ] && sleep 0.5; exec "$real" "$@"')
    thread = threading.Thread(target=shared)
    thread.start()
    wait_until(count)
    with warnings.catch_warnings(action="ignore"):  # of Python 3.12 about threads
        child = os.fork()
    if child == 0:
        os._exit(0 if shared() and shared(2) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    assert count() == 2


# --------------------------------------------------------------------------------- killed processes
@needs_compiler
def test_killed_compilation_is_repeated(folder: Path, fake: Fake) -> None:
    count = fake('echo half > "$out"; [ "$(wc -l < "${0%/*}/log")" = 1 ] && sleep 30; '
                 'exec "$real" "$@"')
    process = start("compile.shared_object(SOURCE % 1, (), 128)")
    wait_until(lambda: [*folder.glob("work-*/neuron.so")])
    process.kill()
    process.communicate(timeout=20)
    assert not [*folder.glob("*.so")]
    assert load_answer(shared()) == 129 and count() == 2
    (work,) = folder.glob("work-*")  # may still be in use, as far as others can know
    os.utime(work, (0, 0))
    shared(2)
    assert not work.exists()


@pytest.fixture
def children(tmp_path: Path, fake: Fake) -> Iterator[Callable[[], bytes | None]]:
    """A compiler that hangs, with a child that does. Returns a function that reads what they write:
    None as long as they live and write nothing, b"" without living ones."""
    os.mkfifo(tmp_path / "fifo")
    descriptor = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    fake(f"exec 9> {tmp_path}/fifo; echo began >&9; sleep 30 & wait")

    def read() -> bytes | None:
        try:
            return os.read(descriptor, 100)
        except BlockingIOError:
            return None

    yield read
    os.close(descriptor)


def test_interrupt_stops_the_compiler(folder: Path, children: Callable[[], bytes | None]) -> None:
    process = start("compile.shared_object(SOURCE % 1, (), 128)")
    wait_until(children)
    assert children() is None
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    wait_until(lambda: children() == b"")
    assert not [*folder.glob("work-*")]


def test_hanging_compiler_is_stopped(children: Callable[[], bytes | None],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile, "COMPILE_SECONDS", 0.3)
    with pytest.warns(RuntimeWarning, match=r"g\+\+ was stopped after 0.3 s"):
        assert shared() is None
    assert children() == b"began\n"
    wait_until(lambda: children() == b"")


# ---------------------------------------------------------------------------------------- compilers
def test_failing_compiler_warns(fake: Fake) -> None:
    count = fake("echo 'In file included from x' >&2; echo \"neuron.cpp:1:2: error: it's bad\" >&2;"
                 "exit 1")
    with pytest.warns(RuntimeWarning, match="interpreter.*fake g.. fails: neuron.cpp:1:2: error: "
                                            "it's bad$") as found:
        assert shared() is None
    assert found[0].filename == compiling.__file__  # which calls the package
    assert shared() is None and count() == 1  # neither another warning nor another attempt


@needs_compiler
def test_error_of_a_real_compiler() -> None:
    with pytest.warns(RuntimeWarning, match="error: .*missing.h.*No such file"):
        assert compile.shared_object('#include "missing.h"', (), 128) is None


@pytest.mark.parametrize(("lines", "message"), [
    ("exit 3", "it ended with status 3"), ('echo > "$out"; exit 4', "it ended with status 4"),
    ("kill -9 $$", "it ended with status -9"),
    ("exit 0", "it ended with status 0"), ('touch "$out"', "it ended with status 0")])
def test_compiler_that_says_nothing(fake: Fake, lines: str, message: str) -> None:
    fake(lines)
    with pytest.warns(RuntimeWarning, match=message):
        assert shared() is None


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="interpreter runs the step, slower .*: no C.. compiler "
                                            r"is found. Install g\+\+ >= 11 or clang\+\+ >= 14"):
        assert shared() is None
    assert shared() is None  # without another warning


def test_front_end_may_warn() -> None:
    with pytest.warns(RuntimeWarning, match="an interpreter runs the step") as found:
        compile.warn_of_interpreter()
        compile.warn_of_interpreter()
    assert len(found) == 1 and found[0].filename == __file__


@pytest.mark.parametrize(("version", "is_new"), [
    ("g++ (Debian 12.4.0-5) 12.4.0", True), ("g++ (GCC) 11.2.0", True),
    ("g++ (GCC) 8.5.0 20210514 (Red Hat 8.5.0-4)", False),
    ("x86_64-conda-linux-gnu-g++ (conda-forge gcc (new 1.0) 10.4.0-5) 10.4.0", False),
    ("g++-13 (Homebrew GCC 13.2.0) 13.2.0", True), ("g++ (SUSE Linux) 7.5.0", False),
    ("Ubuntu clang version 14.0.0-1ubuntu1.1", True), ("clang version 13.0.1", False),
    ("Apple clang version 15.0.0 (clang-1500.3.9.4)", True), ("c++ of somebody", True)])
def test_versions(fake: Fake, version: str, is_new: bool) -> None:
    count = fake('echo > "$out"', version)
    if is_new:
        assert shared()
    else:
        with pytest.warns(RuntimeWarning, match=r"expected g\+\+ >= 11 or clang\+\+ >= 14, got"):
            assert shared() is None
    assert count() == is_new


def test_newer_compiler_in_the_path_is_taken(fake: Fake, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    fake("exit 1", "g++ (GCC) 9.4.0")
    (tmp_path / "fake g++").rename(tmp_path / "g++")
    fake('echo > "$out"', "clang version 16.0.1")
    (tmp_path / "fake g++").rename(tmp_path / "clang++")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compile.find_compiler().words == (str(tmp_path / "clang++"),)


@pytest.mark.parametrize("command", ["{}", "'{}'", "'{}' -DMORE -D'A B'", "/usr/bin/env '{}'"])
def test_command_in_cxx(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                        command: str) -> None:
    fake('for one; do echo "$one"; done > "$out"')
    path = str(tmp_path / "fake g++")
    if "-D" in command:  # --version comes after the arguments of CXX
        Path(path).write_text(Path(path).read_text().replace('if [ "$1" =', 'if [ "$3" ='))
    monkeypatch.setenv("CXX", command.format(path))
    given = shared().read_text().splitlines()
    assert ("-DMORE" in given and "-DA B" in given) == ("-D" in command)
    assert {"-O3", "-std=c++20", "-ffp-contract=off", "-DLSNN_VECTOR_BITS=128"} < {*given}


@pytest.mark.parametrize(("command", "message"), [
    ("no-such-compiler -x", "CXX: expected a C.. compiler, got 'no-such-compiler -x'"),
    ("'g++", "CXX: expected a command, got"), ("false", "false --version fails"),
    ("true; touch {}/shell", "CXX: expected a C.. compiler"),
    ("{}/script", "does not start: Exec format error")])
def test_bad_cxx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str,
                 message: str) -> None:
    (tmp_path / "script").write_text("no interpreter is named")
    (tmp_path / "script").chmod(0o755)
    monkeypatch.setenv("CXX", command.format(tmp_path))
    with pytest.warns(RuntimeWarning, match=message):
        assert shared() is None
    assert not (tmp_path / "shell").exists()


def test_hanging_version_is_asked_once(fake: Fake, monkeypatch: pytest.MonkeyPatch,
                                       tmp_path: Path) -> None:
    fake("")
    (tmp_path / "fake g++").write_text("#!/bin/sh\nsleep 30\n")
    monkeypatch.setattr(compile, "VERSION_SECONDS", 0.2)
    with pytest.warns(RuntimeWarning, match="was stopped after 0.2 s"):
        assert shared() is None
    monkeypatch.setattr(compile, "VERSION_SECONDS", 30)
    assert shared() is None


def test_compiling_is_turned_off(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    count = fake('echo > "$out"')
    monkeypatch.setenv("LSNN_COMPILE", "0")
    assert shared() is None and count() == 0
    monkeypatch.setenv("LSNN_COMPILE", "1")
    assert shared()
    monkeypatch.setenv("LSNN_COMPILE", "no")
    with pytest.raises(ValueError, match="LSNN_COMPILE: expected 0 or 1, got 'no'"):
        shared()
