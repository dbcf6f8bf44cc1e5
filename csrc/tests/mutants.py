"""Do the tests of the CUDA kernels find bugs?  Plants those of mutant_table.py one by one and demands that each is found.

The C++ test program runs a few cases under the emulator in three builds: alone, with AddressSanitizer and with
ThreadSanitizer.  First the kernels as they are must pass everywhere; then each bug must fail in the plain build or in
the one that the table names.  Works on copies in a temporary folder; needs g++ only.  Returns 1 when a bug is not found.
"""
import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutant_table import MUTANTS, PLAIN, Check, Mutant

CSRC = Path(__file__).resolve().parents[1]
LIMIT_S = 120  # of a run; a kernel that hangs is a bug that was found
# As the build has it, but compiled fast; the CPU path and the test itself are the same in all builds.
FLAGS = ["-std=gnu++20", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-w"]
SANITIZER: dict[Check, list[str]] = {"plain": [], "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
                                     "thread": ["-fsanitize=thread"]}
EMULATOR = {"plain": [], "address": ["-DEMULATOR_ASAN"], "thread": ["-DEMULATOR_TSAN"]}
ISAS = {"portable": ["-DLSNN_ISA=0"],
        "avx2": ["-DLSNN_ISA=256", "-mavx2", "-mfma", "-mbmi", "-mpopcnt"],
        "avx512": ["-DLSNN_ISA=512", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mbmi", "-mpopcnt"]}
# What must be compiled again when a file changes, where it is not the kernels of float alone.  Those of other types may
# stay as they are: functions that objects share are taken from the first one on the linker's line, which is the new one.
OBJECTS = {"plan.cpp": ["plan"], "shared.h": ["plan", "alif_f32", "alif_f32_bf16", "alif_f64"]}
KERNELS = {"plan": "plan.cpp", **{name: f"{name}.cu" for name in ("alif_f32", "alif_f32_bf16", "alif_f64")}}


def compiled(csrc: Path, source: str, to: Path, flags: Iterable[str]) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, *flags, "-x", "c++", "-c", str(csrc / source), "-o", str(to)], check=True)
    return to


class Base:
    """All objects of the three builds, of the kernels as they are."""
    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        isas = ISAS if platform.machine() in ("x86_64", "AMD64") else {"portable": ISAS["portable"]}
        jobs = [(source, folder / f"{Path(source).stem}.o", ["-O2"])
                for source in ("tests/test_kernels.cpp", "cpu/run.cpp", "cpu/block_cache.cpp", "cuda/run.cu")]
        jobs[-1] = ("cuda/run.cu", folder / "run_cu.o", ["-O1"])
        jobs += [("cpu/kernels.cpp", folder / f"{name}.o", ["-O2", f"-DLSNN_ISA_NAME={name}", *flags]) for name, flags in isas.items()]
        self.common = [to for _, to, _ in jobs]
        self.emulator, self.kernels = {}, {}
        for check in SANITIZER:
            emulator = [(f"emulator/{path.name}", folder / check / f"{path.stem}.o", ["-O2", *EMULATOR[check]])
                        for path in sorted((CSRC / "emulator").glob("*.cpp"))]
            # Sanitizers look at the kernels of float only: they are what changes.
            kernels = {name: folder / (check if name == "alif_f32" else PLAIN) / f"{name}.o" for name in KERNELS}
            jobs += emulator
            jobs += [(f"cuda/{KERNELS[name]}", to, ["-O1", *(SANITIZER[check] if name == "alif_f32" else [])])
                     for name, to in kernels.items() if name == "alif_f32" or check == PLAIN]
            self.emulator[check], self.kernels[check] = [to for _, to, _ in emulator], kernels
        list(pool.map(lambda job: compiled(CSRC, *job), jobs))
        self.programs = {check: self.program(check, folder / check / "test_kernels", {}) for check in SANITIZER}
        self.told: dict[tuple[Check, str], str] = {}

    def failure(self, check: Check, run: str) -> str:
        if (check, run) not in self.told:
            told = failure(self.programs[check], run)
            self.told[check, run] = told and f"the kernels as they are, {check}, {run}: {told}"
        return self.told[check, run]

    def program(self, check: Check, to: Path, changed: dict[str, Path]) -> Path:
        kernels = [*changed.values(), *(path for name, path in self.kernels[check].items() if name not in changed)]
        subprocess.run([os.environ.get("CXX", "g++"), *SANITIZER[check], *map(str, [*kernels, *self.common, *self.emulator[check]]),
                        "-o", str(to), "-pthread"], check=True)
        return to


def failure(program: Path, run: str) -> str:
    """What went wrong, in a line; nothing where all is well."""
    design, word = run.split(" ", 1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LSNN_")}
    environment |= {"LSNN_CUDA": "" if design == "any" else design, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    try:
        done = subprocess.run([str(program), word], env=environment, capture_output=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    told = [line.strip() for line in lines if line.startswith("FAILED") or "Sanitizer:" in line or "runtime error:" in line]
    return told[0] if told else f"ended with {done.returncode}"


class Result(NamedTuple):
    mutant: Mutant
    check: str  # that found it, or nothing
    told: str
    seconds: float


def mutated(mutant: Mutant, text: str) -> str:
    if (times := text.count(mutant.old)) != mutant.times:
        raise SystemExit(f"{mutant.name}: expected {mutant.times} times in {mutant.file}, found {times}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def tried(mutant: Mutant, base: Base, folder: Path) -> Result:
    start = time.monotonic()
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    path = csrc / "cuda" / mutant.file
    path.write_text(mutated(mutant, path.read_text()))
    names = OBJECTS.get(mutant.file, [mutant.object])
    checks: list[Check] = list(dict.fromkeys([PLAIN, mutant.check, *SANITIZER]))
    for check in checks:
        changed = {name: compiled(csrc, f"cuda/{KERNELS[name]}", folder / check / f"{name}.o",
                                  ["-O1", *(SANITIZER[check] if name.startswith("alif") else [])]) for name in names}
        program = base.program(check, folder / check / "test_kernels", changed)
        for run in mutant.runs:
            if told := failure(program, run):
                if wrong := base.failure(check, run):
                    raise SystemExit(wrong)
                shutil.rmtree(folder)
                return Result(mutant, check, told, time.monotonic() - start)
    shutil.rmtree(folder)
    return Result(mutant, "", "", time.monotonic() - start)


def spread(mutants: list[Mutant], n: int) -> list[Mutant]:
    """n of them, evenly over the table."""
    return [mutants[i * len(mutants) // n] for i in range(n)] if 0 < n < len(mutants) else mutants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, metavar="K", help="only K bugs, spread over the table")
    parser.add_argument("--only", default="", metavar="NAME", help="only the bugs with this in their names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    arguments = parser.parse_args()
    for mutant in MUTANTS:  # all of them, so that the table keeps up with the sources
        mutated(mutant, (CSRC / "cuda" / mutant.file).read_text())
    chosen = spread([m for m in MUTANTS if arguments.only in m.name], arguments.sample)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        base = Base(folder / "base", pool)
        # Where a bug is to be found, and in the plain build everything.
        runs = list(dict.fromkeys((check, run) for m in chosen for run in m.runs for check in (PLAIN, m.check)))
        wrong = [told for told in pool.map(lambda run: base.failure(*run), runs) if told]
        if wrong:
            print(*wrong, sep="\n")
            return 1
        print(f"the kernels as they are pass {len(runs)} runs; {time.monotonic() - start:.0f} s", flush=True)
        results = []
        for result in pool.map(lambda m: tried(m, base, folder / str(MUTANTS.index(m))), chosen):
            results.append(result)
            found = result.check or "NOT FOUND"
            if result.check and result.check != result.mutant.check:
                found += f" (the table has: {result.mutant.check})"
            print(f"{result.mutant.name:<60} {found:<10} {result.seconds:5.1f} s  {result.told[:150]}", flush=True)
    missed = [result.mutant.name for result in results if not result.check]
    count = ", ".join(f"{check} {sum(r.check == check for r in results)}" for check in SANITIZER)
    print(f"{len(results)} planted bugs of {len(MUTANTS)}: {count}, not found {len(missed)}; {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
