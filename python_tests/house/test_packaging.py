"""What is packed, and how an installation fails without the compiled part."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from bench.gpu.card import find_tool

ROOT = Path(__file__).resolve().parents[2]
NEEDED = "setuptools", "pybind11"
pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(),
                       reason="these tests stand apart from the sources"),
    pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDED))
                       or not all(map(shutil.which, ("cmake", "ninja"))),
                       reason="what the build needs is not installed: setuptools, pybind11, cmake "
                              "and ninja")]
# In place of cmake: it configures as ever, and of a build it tries only whether everything is there
# to start from.
TRIAL = """#!{python}
import subprocess, sys
more = ["--", "-n"] if "--build" in sys.argv else []
sys.exit(subprocess.run(["{cmake}", *sys.argv[1:], *more]).returncode)
"""
MODULE = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
NO_CUDA = "-DLSNN_BUILD_CUDA=OFF"


def _tracked() -> list[str]:
    """The files of the project: what git tracks, and what is new and not ignored."""
    ran = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT,
                         capture_output=True, text=True)
    if ran.returncode != 0:
        pytest.skip("the sources are not under git")
    return [name for name in ran.stdout.splitlines() if (ROOT / name).is_file()]


def _copied(folder: Path) -> Path:
    for name in _tracked():
        if not name.startswith(("bench/", "docs/", "python_tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, in which a build leaves what it leaves."""
    return _copied(tmp_path / "tree")


def _python(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Outside of this session's packages, so that only the tree is used."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LSNN_")}
    return subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True,
                          timeout=600, env={**clean, "LSNN_CMAKE_ARGS": NO_CUDA, **environment})


def _build(tree: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return _python(tree, "setup.py", "-q", "build_ext", *more, **environment)


def _trial_cmake(folder: Path) -> str:
    """A search path where cmake compiles nothing."""
    folder.mkdir()
    (folder / "cmake").write_text(TRIAL.format(python=sys.executable, cmake=shutil.which("cmake")))
    (folder / "cmake").chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


# ------------------------------------------------------------------------------- a failure is heard
def _asks_for_auto(text: str) -> bool:
    return re.search(r"error: lsnn_ext: the compiled part could not be built \(cmake ended with "
                     r"status 1\).*"
                     r"LSNN_BUILD=auto installs without it", text) is not None


@pytest.mark.parametrize("environment", [
    {"CXX": "/bin/false"}, {"CXX": "/bin/false", "LSNN_BUILD": ""},
    {"LSNN_CMAKE_ARGS": f"{NO_CUDA} -DCMAKE_CXX_FLAGS=-fno-such-flag"}], ids=str)
def test_a_failure_fails(environment: dict[str, str], tree: Path) -> None:
    ran = _build(tree, "--inplace", **environment)
    assert ran.returncode != 0 and _asks_for_auto(ran.stderr), ran.stderr


def test_no_compiler_is_said(tree: Path, tmp_path: Path) -> None:
    """In words of ours, before CMake has its own."""
    (tmp_path / "bin").mkdir()
    for name in "cmake", "ninja":
        found = shutil.which(name)
        assert found
        (tmp_path / "bin" / name).symlink_to(found)
    ran = _build(tree, PATH=str(tmp_path / "bin"), CXX="")
    assert ran.returncode != 0
    assert "(no C++ compiler: expected c++, g++ or clang++ in PATH, or the name of" in ran.stderr
    assert "LSNN_BUILD=auto installs without it" in ran.stderr
    auto = _build(tree, PATH=str(tmp_path / "bin"), CXX="", LSNN_BUILD="auto")
    assert auto.returncode == 0 and "NO COMPILED PART (no C++ compiler" in auto.stderr
    named = _build(tree, PATH=str(tmp_path / "bin"), CXX="/bin/false")
    assert named.returncode != 0 and "no C++ compiler" not in named.stderr


def test_pip_says_it_when_quiet(tree: Path) -> None:
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
           "--target", "site", "."]
    if _python(tree, "-m", "pip", "--version").returncode != 0:
        pytest.skip("pip is not installed")
    ran = _python(tree, *pip, CXX="/bin/false")
    assert ran.returncode != 0 and _asks_for_auto(ran.stdout + ran.stderr), ran.stderr
    assert not (tree / "site" / "lsnn_ext").exists()
    # What pip keeps to itself when all went well is said on the terminal.
    terminal = f"import pty, sys; sys.exit(pty.spawn([sys.executable, *{pip!r}]) >> 8)"
    ran = _python(tree, "-c", terminal, CXX="/bin/false", LSNN_BUILD="auto")
    assert (ran.returncode == 0
            and "lsnn_ext: NO COMPILED PART (cmake ended with status 1)" in ran.stdout), ran.stdout
    assert (tree / "site" / "lsnn_ext" / "functional.py").is_file()
    assert not list((tree / "site" / "lsnn_ext").glob("_C*"))


def test_unknown_wishes_are_refused(tree: Path) -> None:
    ran = _build(tree, LSNN_BUILD="Off", CXX="/bin/false")
    assert (ran.returncode != 0
            and ran.stderr == "LSNN_BUILD: expected require, auto or off, got 'Off'\n")


def test_an_older_setuptools_is_refused(tree: Path) -> None:
    """Before it fails on what it does not know, with all that the build needs."""
    old = ("import runpy, setuptools, sys; setuptools.__version__ = '65.5.0'; "
           "sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py')")
    ran = _python(tree, "-c", old)
    needed = tomllib.loads((tree / "pyproject.toml").read_text())["build-system"]["requires"]
    listed = " ".join(f'"{one}"' for one in needed)
    assert ran.returncode != 0 and ran.stderr == (
        "setuptools: expected >= 77, got 65.5.0; without build isolation install first: "
        f"pip install {listed}\n")


@pytest.mark.parametrize(("wanted", "passes", "stays"),
                         [("require", False, True), ("auto", True, False), ("off", True, True)])
def test_editable_without_the_compiled_part(wanted: str, passes: bool, stays: bool,
                                            tree: Path) -> None:
    """Also with `off`: what is compiled there already stays."""
    compiled = tree / "lsnn_ext" / MODULE
    compiled.write_text("of an earlier build")
    ran = _python(tree, "-c",
                  "from setuptools import build_meta; build_meta.build_editable('dist')",
                  CXX="/bin/false", LSNN_BUILD=wanted)
    assert (ran.returncode == 0) == passes, ran.stderr
    assert ("NO COMPILED PART" in ran.stderr) == (wanted == "auto")
    assert compiled.exists() == stays


@pytest.mark.parametrize("wanted", ["auto", "off"])
def test_no_wheel_takes_an_earlier_build(wanted: str, tree: Path) -> None:
    left = tree / "lib" / "lsnn_ext" / MODULE
    left.parent.mkdir(parents=True)
    left.write_text("of an earlier build")
    ran = _python(tree, "setup.py", "-q", "build", "--build-lib", "lib", "bdist_wheel",
                  CXX="/bin/false", LSNN_BUILD=wanted)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = (tree / "dist").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "lsnn_ext/functional.py" in names and f"lsnn_ext/{MODULE}" not in names


def test_an_import_says_why_nothing_is_compiled(tree: Path, tmp_path: Path) -> None:
    """In the folder of the sources, with the package installed elsewhere or not; and where it was
    installed without."""
    def said(where: Path, *path: Path, lent: Path | None = None) -> str:
        """Of an import from there, with no other lsnn_ext in the search path than these; lent: the
        compiled part that an editable installation has."""
        code = f"""if True:
            import importlib.util, sys
            from pathlib import Path
            from types import SimpleNamespace

            def lend(name, path, target=None):
                if name == "lsnn_ext._C":
                    return importlib.util.spec_from_file_location(name, {str(lent)!r})

            rest = [one for one in sys.path if not (Path(one) / "lsnn_ext").is_dir()]
            sys.path = ["", *{[str(one) for one in path]!r}, *rest]
            sys.meta_path = [one for one in sys.meta_path
                             if not getattr(one, "__module__", "").startswith("__editable__")]
            sys.meta_path += [SimpleNamespace(find_spec=lend)] * {lent is not None}
            import lsnn_ext
            print(lsnn_ext.show_config())"""
        ran = _python(where, "-c", code)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    site = tmp_path / "site"
    shutil.copytree(tree / "lsnn_ext", site / "lsnn_ext")
    sources = f"the sources in {tree / 'lsnn_ext'}"
    assert f"({sources} are not built; run make build in {tree})" in said(tree, site)
    assert "(it was not built when the package was installed)" in said(site)
    (site / "lsnn_ext" / MODULE).touch()
    wanted = (f"(Python has imported {sources}, which are not built, instead of the installed "
              f"package in {site / 'lsnn_ext'}; start Python outside of {tree}, or run make build "
              f"there)")
    assert wanted in said(tree, site)
    assert wanted in said(tree, lent=site / "lsnn_ext" / MODULE)


# ------------------------------------------------------------------- the folder of an earlier build
def _cache(tree: Path) -> Path:
    (found,) = tree.glob("build/temp*/cmake/CMakeCache.txt")
    return found


def _made_anew(ran: subprocess.CompletedProcess[str]) -> str:
    """For what reason; '' where the folder was taken as it was."""
    assert "Linking CXX shared module" in ran.stdout, ran.stdout + ran.stderr
    return "".join(re.findall(r"was made for another (.*) and is made anew", ran.stdout))


def test_what_was_made_with_others_is_made_anew(tree: Path, tmp_path: Path) -> None:
    trial = _trial_cmake(tmp_path / "bin")
    assert _made_anew(_build(tree, PATH=trial)) == ""
    for name in "Python_EXECUTABLE", "LSNN_TORCH":
        text = _cache(tree).read_text()
        _cache(tree).write_text(re.sub(rf"^({name}:\w+)=.*$", r"\1=/elsewhere", text,
                                       flags=re.MULTILINE))
        assert _made_anew(_build(tree, PATH=trial)) == name
    # make ends its own options with a space.
    assert _made_anew(_build(tree, PATH=trial, LSNN_CMAKE_ARGS=f"{NO_CUDA} ")) == ""
    # A flag goes when it is no longer asked for.
    bad = _build(tree, LSNN_CMAKE_ARGS=f"{NO_CUDA} -DCMAKE_CXX_FLAGS=-fno-such-flag")
    assert bad.returncode != 0 and "-fno-such-flag" in _cache(tree).read_text()
    assert _made_anew(_build(tree, PATH=trial)) == "LSNN_ENVIRONMENT"
    assert "-fno-such-flag" not in _cache(tree).read_text()


def test_nvcc_is_looked_for_again(tree: Path) -> None:
    """It may have been installed since the first run in the folder."""
    if find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    configure = ["cmake", "-S", str(tree), "-B", str(tree / "build"), "-G", "Ninja",
                 "-DLSNN_TESTS=ON", "-DCMAKE_CUDA_COMPILER=NOTFOUND"]
    ran = subprocess.run(configure, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0 and "no CUDA kernels" not in ran.stdout, ran.stdout + ran.stderr


def test_make_refuses_an_environment_from_elsewhere(tree: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    (tree / ".venv").mkdir()
    for where, passes in (tree, True), (tree.parent / "other", False):
        (tree / ".venv" / "pyvenv.cfg").write_text(
            f"home = /usr\ncommand = python -m venv {where}/.venv\n")
        ran = subprocess.run(["make", "here"], cwd=tree, capture_output=True, text=True)
        assert (ran.returncode == 0) == passes
        assert ("VENV: expected an environment that was made at" in ran.stdout) != passes
    alone = ["make", "--no-print-directory", "-n", "test"]  # also where make runs these tests
    order = subprocess.run(alone, cwd=tree, capture_output=True, text=True).stdout
    assert order.startswith("test ! -e .venv/pyvenv.cfg")
