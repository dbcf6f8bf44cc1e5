"""Builds the compiled part through CMake. Without a compiler the package installs as plain Python and says so."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One extension, one CMake call; LSNN_BUILD=off skips it, LSNN_BUILD=require makes its failure an error."""

    def build_extension(self, ext: Extension) -> None:
        wanted = os.environ.get("LSNN_BUILD", "auto")
        if wanted == "off":
            print("lsnn_ext: LSNN_BUILD=off, no compiled part")
            return
        try:
            self.build_with_cmake(ext)
        except (OSError, subprocess.CalledProcessError, ImportError) as error:
            if wanted == "require":
                raise
            message = f"lsnn_ext: NO COMPILED PART ({error}); the package falls back to the slow reference"
            print(message, file=sys.stderr)

    def build_with_cmake(self, ext: Extension) -> None:
        import pybind11
        import torch

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DLSNN_TORCH={Path(torch.__file__).parent}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
                *os.environ.get("LSNN_CMAKE_ARGS", "").split(),
            ],
            check=True,
        )  # fmt: skip
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build), "-j", jobs], check=True)
        made = target.parent / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not made.exists():
            raise OSError(f"CMake did not make {made.name}")


# optional: an editable installation without a compiled part has nothing to copy, and goes on.
setup(ext_modules=[Extension("lsnn_ext._C", sources=[], optional=True)], cmdclass={"build_ext": CMakeBuild})
