"""Says whether wheels are fit to be given away: python .ci/check_wheel.py dist/*.whl.

Of each: what lies in it, its size, the oldest glibc and libstdc++ that it needs, the libraries that
it is linked with, the symbols that it exports, and that it names no folder of its builder. Needs
readelf and nothing that is not in Python. What is wrong ends it with status 1.
"""
import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# What a wheel may need: that of manylinux_2_28, torch's own, and the driver's nothing.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}
LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1",
             "libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2",
             "ld-linux-aarch64.so.1", "libcudart.so.12", "libcudart.so.13"}
EXPORTS = {"PyInit__C"}
MEGABYTES = 15  # without CUDA kernels
MEGABYTES_CUDA = 64  # with those of each GPU from Turing to Blackwell


def _readelf(option: str, module: Path) -> str:
    return subprocess.run(["readelf", "--wide", option, str(module)], capture_output=True,
                          text=True, check=True).stdout


def needed_versions(text: str) -> dict[str, tuple[int, ...]]:
    """The newest version of each family that `readelf --version-info` names."""
    found: dict[str, tuple[int, ...]] = {}
    for family, version in re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI)_([0-9.]+)", text):
        number = tuple(map(int, version.split(".")))
        found[family] = max(found.get(family, ()), number)
    return found


def wrong_of_module(module: Path) -> list[str]:
    """What is wrong with a compiled module."""
    bad = []
    for family, version in needed_versions(_readelf("--version-info", module)).items():
        print(f"  {family} {'.'.join(map(str, version))} or newer")
        if version > NEWEST[family]:
            bad.append(f"needs {family} {'.'.join(map(str, version))}, newer than "
                       f"{'.'.join(map(str, NEWEST[family]))} of manylinux_2_28")
    linked = re.findall(r"\(NEEDED\).*\[(.*)\]", _readelf("--dynamic", module))
    print(f"  linked with {', '.join(linked)}")
    bad += [f"linked with {name}" for name in linked if name not in LIBRARIES]
    paths = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", _readelf("--dynamic", module))
    bad += [f"looks for libraries in {path}" for path in paths if "$ORIGIN" not in path]
    symbols = re.findall(r"(?:GLOBAL|WEAK|UNIQUE)\s+DEFAULT\s+(?!UND)\S+\s+(\S+)",
                         _readelf("--dyn-syms", module))
    print(f"  exports {', '.join(sorted(symbols))}")
    bad += [f"exports {name}" for name in symbols if name.split("@")[0] not in EXPORTS]
    for folder in set(re.findall(rb"/(?:home|root|work|tmp|project)/[\w./-]+",
                                 module.read_bytes())):
        bad.append(f"names a folder of its builder: {folder.decode()}")
    return bad


def wrong_of_wheel(wheel: Path) -> list[str]:
    """What is wrong with a wheel."""
    size = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {size:.1f} MB")
    bad, limit = [], MEGABYTES
    with zipfile.ZipFile(wheel) as packed, tempfile.TemporaryDirectory() as folder:
        names = packed.namelist()
        modules = [name for name in names if re.fullmatch(r"lsnn_ext/_C\..*\.so", name)]
        if len(modules) != 1:
            bad.append(f"has {len(modules)} compiled modules, expected one")
        bad += [f"has no {name}" for name in ("lsnn_ext/__init__.py", "lsnn_ext/py.typed")
                if name not in names]
        bad += [f"has {name}" for name in names
                if not name.startswith("lsnn_ext/") and ".dist-info/" not in name]
        if not any(name.endswith("licenses/LICENSE") for name in names):
            bad.append("has no licence")
        for name in modules:
            bad += wrong_of_module(Path(packed.extract(name, folder)))
            limit = MEGABYTES_CUDA if b".nv_fatbin" in packed.read(name) else limit
    if size > limit:
        bad.append(f"has {size:.0f} MB, more than {limit}")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--any-glibc", action="store_true",
                        help="whatever glibc and libstdc++ this machine has will do")
    given = parser.parse_args()
    if given.any_glibc:
        NEWEST.update(dict.fromkeys(NEWEST, (99,)))
    found = [(wheel.name, wrong) for wheel in given.wheels
             for wrong in wrong_of_wheel(wheel)]
    for name, wrong in found:
        print(f"{name}: {wrong}", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
