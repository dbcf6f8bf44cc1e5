"""Builds the compiled part through CMake.  LSNN_BUILD says what is to be done where that fails."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
# require: a failure fails the installation; auto: it is said, and plain Python is installed; off:
# nothing is compiled.
REQUIRE, AUTO, OFF = "require", "auto", "off"
WANTED = os.environ.get("LSNN_BUILD") or REQUIRE
# What CMake takes from the environment once, at its first run in a folder, and then keeps.
CACHED = ("LSNN_CMAKE_ARGS", "CXX", "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAFLAGS")
if WANTED not in (REQUIRE, AUTO, OFF):
    raise SystemExit(f"LSNN_BUILD: expected {REQUIRE}, {AUTO} or {OFF}, got {WANTED!r}")


def check_setuptools() -> None:
    """Exits before an older setuptools fails on what it does not know in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'"[^"]+"', text.split("requires = [")[1].split("]")[0])
    least = next(re.findall(r"\d+", one)[0] for one in needed if one.startswith('"setuptools'))
    if int(setuptools.__version__.split(".")[0]) < int(least):
        raise SystemExit(f"setuptools: expected >= {least}, got {setuptools.__version__}; without "
                         f"build isolation install first: pip install {' '.join(needed)}")


check_setuptools()


def say(message: str) -> None:
    """To stderr, and to the terminal as well: pip keeps to itself what a build that succeeds has
    said."""
    print(message, file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        return
    try:
        with open("/dev/tty", "w") as terminal:
            print(message, file=terminal)
    except OSError:  # there is none
        pass


def cached(build: Path) -> dict[str, str]:
    """The entries of CMake's cache in a build folder; nothing where there is no cache."""
    path = build / "CMakeCache.txt"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    named = (
        line.partition("=") for line in lines if "=" in line and not line.startswith(("#", "//"))
    )
    return {name.partition(":")[0]: value for name, _, value in named}


def check_compiler() -> None:
    """Raises OSError where there is no C++ compiler, in words that CMake has not."""
    arguments = os.environ.get("LSNN_CMAKE_ARGS", "")
    named = any(word in arguments for word in ("CMAKE_CXX_COMPILER=", "CMAKE_TOOLCHAIN_FILE="))
    if not (named or os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        raise OSError("no C++ compiler: expected c++, g++ or clang++ in PATH, or the name of one "
                      "in CXX; on Debian: apt-get install g++")


def run(*command: str) -> None:
    """OSError where it fails."""
    status = subprocess.run(command).returncode
    if status:
        raise OSError(f"{command[0]} ended with status {status}")


class CMakeBuild(build_ext):
    """One extension, one CMake call."""

    failed = False

    def build_extension(self, ext: Extension) -> None:
        if WANTED == OFF:
            print("lsnn_ext: LSNN_BUILD=off, no compiled part")
            self.forget(ext)
            return
        try:
            self.build_with_cmake(ext)
        except (OSError, ImportError) as error:
            if WANTED == REQUIRE:
                raise CompileError(
                    f"lsnn_ext: the compiled part could not be built ({error}); more may be said "
                    f"above. "
                    "LSNN_BUILD=auto installs without it: the slow reference then computes "
                    "everything") from error
            self.failed = True
            self.forget(ext)
            say(f"\nlsnn_ext: NO COMPILED PART ({error}).\n"
                "lsnn_ext: LSNN_BUILD=auto, so it is installed without: the slow reference "
                "computes everything.\n")

    def forget(self, ext: Extension) -> None:
        """What an earlier build has left must not be installed as if it were of these sources."""
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        if self.failed:
            for ext in self.extensions:
                (ROOT / self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_with_cmake(self, ext: Extension) -> None:
        check_compiler()
        import pybind11
        import torch

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        made_for = {
            "CMAKE_HOME_DIRECTORY": str(ROOT),
            "Python_EXECUTABLE": sys.executable,
            "LSNN_TORCH": str(Path(torch.__file__).parent),
            # as CMake's cache has it, without white space at the end
            "LSNN_ENVIRONMENT": " ".join(f"{name}={' '.join(os.environ[name].split())}"
                                         for name in CACHED if os.environ.get(name)).rstrip(),
        }
        cache = cached(build)
        other = [name for name, value in made_for.items() if cache and cache.get(name, "") != value]
        # CMake refuses another source folder, and would go on with what it had found for the others
        if other:
            print(f"lsnn_ext: {build} was made for another {', '.join(other)} and is made anew",
                  flush=True)
            shutil.rmtree(build)
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        run("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            *(f"-D{name}:INTERNAL={value}" for name, value in made_for.items()
              if name.startswith("LSNN")),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *os.environ.get("LSNN_CMAKE_ARGS", "").split())
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        run("cmake", "--build", str(build), "-j", jobs)
        made = target.parent / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not made.exists():
            raise OSError(f"CMake did not make {made.name}")


# optional: an installation without a compiled part has nothing to copy, and goes on.
setup(ext_modules=[Extension("lsnn_ext._C", sources=[], optional=WANTED != REQUIRE)],
      cmdclass={"build_ext": CMakeBuild})
