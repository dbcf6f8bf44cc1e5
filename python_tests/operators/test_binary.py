"""The compiled files: instruction sets share nothing, the module fits every machine."""
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from lsnn_ext import _ops

ROOT = Path(__file__).resolve().parents[2]
SETS = {"avx2": "mavx2", "avx512": "mavx512f"}  # and a flag that each of them is compiled with
# What the kernels may call: the C library. An inline function of a C++ header would be shared with
# the other objects.
C_LIBRARY = {"memcpy", "memset", "memmove", "memcmp", "exp", "expf", "erf", "erff", "atan", "atanf",
             # of steps that are interpreted
             "sin", "sinf", "cos", "cosf", "pow", "powf", "fmod", "fmodf",
             "_GLOBAL_OFFSET_TABLE_"}
NEEDED = re.compile(
    r"lib(torch_cpu|c10|stdc\+\+|m|gcc_s|c|pthread|dl|rt)\.so(\.\d+)?|ld-linux.*|linux-vdso.*")
# The entry of the module, and names of the linker.
EXPORTS = re.compile(r"PyInit__C|_init|_fini|_edata|_end|__bss_start")


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(name, type) as nm tells them."""
    lines = _run(_tool("nm"), "--format=posix", *options, path).splitlines()
    return [(name, kind)
            for name, kind, *_ in (line.split() for line in lines if len(line.split()) >= 2)]


def shared(symbols: Iterable[tuple[str, str]], defined: set[str]) -> list[str]:
    """What an object file shares with others beyond the given names and the C library."""
    bad = []
    for name, kind in symbols:
        if kind in "VvWwu":  # the linker keeps one of all the copies, for everybody
            bad.append(f"{name} is weak ({kind})")
        elif kind == "U" and name not in C_LIBRARY:
            bad.append(f"{name} is taken from elsewhere")
        elif kind.isupper() and kind != "U" and name not in defined:
            bad.append(f"{name} is visible ({kind})")
    return bad


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The object files of the kernels, built by the one definition of the build."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"no instruction sets to choose from on {platform.machine()}")
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("these tests stand apart from the sources")
    cmake = _tool("cmake")
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler is installed")
    # The folder that `make build` has left has them already, else they take a minute.
    build = next(ROOT.glob("build/temp*/cmake/build.ninja"), Path()).parent
    if build == Path():
        build = tmp_path_factory.mktemp("objects")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        _run(cmake, "-S", ROOT, "-B", build, *generator, "-DLSNN_TESTS=ON", "-DLSNN_BUILD_CUDA=OFF")
    _run(cmake, "--build", build, "--target", *(f"kernels_{name}" for name in SETS))
    commands = (build / "compile_commands.json").read_text()
    for name, flag in SETS.items():
        assert any(flag in line and f"kernels_{name}" in line
                   for line in commands.splitlines()), f"{name}: {commands}"
    return {name: next((build / "CMakeFiles" / f"kernels_{name}.dir").rglob("*.o*"))
            for name in SETS}


@pytest.mark.parametrize("name", SETS)
def test_kernels_share_nothing(name: str, objects: dict[str, Path]) -> None:
    tables = [symbol for symbol, kind in _symbols(objects[name]) if kind.isupper() and kind != "U"]
    assert len(tables) == 2 and all(
        re.fullmatch(rf".*kernels_f(32|64)_{name}\w*", symbol) for symbol in tables), tables
    assert shared(_symbols(objects[name]), set(tables)) == []


@pytest.mark.parametrize(("text", "wanted"), [
    ("inline __attribute__((noinline)) int f(int x) { return x; } int (*const volatile table)(int) "
     "= f;", "weak"),
    ("template <class T> __attribute__((noinline)) T f(T x) { return x; } int table(int x) { "
     "return f(x); }", "weak"),
    ("inline int shared_number = 1; int table() { return shared_number++; }", "weak"),
    ("int f() { return 1; } int table() { return 2; }", "visible"),
    ("int f(); int table() { return f(); }", "elsewhere"),
], ids=["inline", "template", "variable", "visible", "call"])
def test_shared_code_is_found(text: str, wanted: str, tmp_path: Path) -> None:
    source, made = tmp_path / "a.cpp", tmp_path / "a.o"
    source.write_text(text)
    _run(shutil.which("c++") or _tool("g++"), "-std=c++20", "-O2", "-fPIC", "-c", source, "-o",
         made)
    symbols = _symbols(made)
    found = shared(symbols, {symbol for symbol, _ in symbols if "table" in symbol})
    assert found and all(wanted in line for line in found), (found, symbols)


@pytest.mark.parametrize(("target", "bits", "accepted"), [
    ("LSNN_TARGET_PORTABLE", 128, True), ("LSNN_TARGET_NEON", 128, True),
    ("LSNN_TARGET_AVX2", 256, True), ("LSNN_TARGET_AVX512", 512, True),
    ("LSNN_TARGET_AVX512", 256, False), ("LSNN_TARGET_NEON", 256, False),
    ("LSNN_TARGET_PORTABLE", 0, False), ("5", 128, False)])
def test_unknown_vectors_do_not_compile(target: str, bits: int, accepted: bool) -> None:
    header = ROOT / "csrc" / "cpu" / "target.h"
    if not header.exists():
        pytest.skip("these tests stand apart from the sources")
    done = subprocess.run([shutil.which("c++") or _tool("g++"), "-std=c++20", "-fsyntax-only",
                           f"-DLSNN_TARGET={target}", f"-DLSNN_VECTOR_BITS={bits}", "-x", "c++",
                           str(header)], capture_output=True, text=True)
    assert (done.returncode == 0) == accepted, done.stderr
    assert accepted or "LSNN_TARGET, LSNN_VECTOR_BITS: expected a pair" in done.stderr


@pytest.fixture
def module() -> Path:
    if _ops._C is None:
        pytest.skip(f"the compiled part is missing ({_ops.load_error})")
    if platform.system() != "Linux":
        pytest.skip(f"nm and readelf look at Linux modules, not at those of {platform.system()}")
    return Path(_ops._C.__file__)


def test_module_exports_its_entry_only(module: Path) -> None:
    names = [name.split("@")[0] for name, _ in _symbols(module, "-D", "--defined-only")]
    assert "PyInit__C" in names
    assert [name for name in names if not EXPORTS.fullmatch(name)] == []


def test_module_calls_torch_by_its_stable_interface(module: Path) -> None:
    """Names of torch's C++ libraries change; those of its C interface do not."""
    names = [name for name, _ in _symbols(module, "-D", "--undefined-only")]
    assert [name for name in names if re.match(r"_Z\w*(2at|3c10|5torch)", name)] == []
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in names)


def test_module_needs_nothing_but_torch_and_the_system(module: Path) -> None:
    """No libraries of CUDA, and no path of the builder's machine."""
    text = _run(_tool("readelf"), "--dynamic", "--wide", module)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if not NEEDED.fullmatch(name)] == []
    assert "RPATH" not in text and "RUNPATH" not in text
