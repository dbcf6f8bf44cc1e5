"""Do the tests of the CUDA kernels find bugs? Plants those of mutant_table.py one by one; each must
be found.

The C++ test program runs a few cases under the emulator in three builds: plain, with
AddressSanitizer and with ThreadSanitizer, each made when it is first needed. First the kernels as
they are must pass; then each bug must fail, in the plain build or in the one that the table names.
Works on copies in a temporary folder and needs g++ only. Returns 1 when a bug is not found.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutant import ADDRESS, PLAIN, THREAD, Check, Mutant
from mutant_table import MUTANTS

CSRC = Path(__file__).resolve().parents[2]
LIMIT_S = 120  # of a run; a kernel that hangs is a bug that was found
CHECKS: list[Check] = [PLAIN, ADDRESS, THREAD]  # from cheap to dear
CXX = os.environ.get("CXX", "g++")
# As the build has it, but compiled fast: the CPU path, which the kernels are compared with, gives
# the same bits with only the portable kernels, and without those that few models have.
FLAGS = ["-std=gnu++20", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-w",
         "-DLSNN_ONLY_PORTABLE", "-DLSNN_FEW_KERNELS", "-DLSNN_EMULATOR"]
SANITIZER = {PLAIN: [], ADDRESS: ["-fsanitize=address"], THREAD: ["-fsanitize=thread"]}
EMULATOR = {PLAIN: [], ADDRESS: ["-DEMULATOR_ASAN"], THREAD: ["-DEMULATOR_TSAN"]}
KERNELS = {
    "plan": "plan.cpp",
    "costs": "costs.cpp",
    **{name: f"{name}.cu" for name in ("alif_f32", "alif_f64", "lsnn", "spike_product", "linear",
                                       "readout")},
    "neuron": "neuron.cpp",
    "neuron_launch": "neuron_launch.cpp",
    "neurons": "../tests/cuda/neurons.cpp",  # with the kernels of generated neurons
}
LOOKED_AT = "alif_f32", "lsnn", "spike_product", "linear", "neurons"  # by sanitizers
# What is compiled again when a file changes, where it is not only the kernels of float. Those of
# other types may stay as they are: functions that objects share are taken from the first one on the
# linker's line, which is the new one.
OBJECTS = {"plan.cpp": ["plan"], "readout.cuh": ["readout"], "shared.h": list(KERNELS)}


class Job(NamedTuple):
    source: str
    to: Path
    flags: list[str]


def run_compiler(arguments: list[str], what: str) -> None:
    done = subprocess.run([CXX, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} does not compile:\n" + done.stderr[:3000])


def compiled(csrc: Path, job: Job, what: str) -> Path:
    job.to.parent.mkdir(parents=True, exist_ok=True)
    run_compiler([*FLAGS, *job.flags, f"-I{csrc}", "-x", "c++", "-c", str(csrc / job.source), "-o",
                  str(job.to)], what)
    return job.to


def kernel_flags(name: str, check: Check) -> list[str]:
    return ["-O1", *(SANITIZER[check] if name.startswith(("alif", *LOOKED_AT)) else [])]


class Base:
    """The builds of the kernels as they are, and all objects that others share with them."""
    def __init__(self, csrc: Path, folder: Path, jobs: int) -> None:
        self.csrc, self.folder, self.jobs = csrc, folder, jobs
        self.lock = threading.Lock()
        # The CPU path and the test itself are the same in all builds.
        self.common = [
            Job("tests/cuda/test_kernels.cpp", folder / "test.o", ["-O2"]),
            Job("cuda/run.cu", folder / "entry.o", ["-O1"]),
            *(Job(f"cpu/{name}.cpp", folder / f"{name}.o", ["-O2"])
              for name in ("run", "block_cache", "counters")),
            Job("cpu/kernels.cpp", folder / "portable.o",
                ["-O2", "-DLSNN_TARGET=LSNN_TARGET_PORTABLE", "-DLSNN_VECTOR_BITS=128",
                 "-DLSNN_TARGET_NAME=portable"])]
        self.made: set[Path] = set()
        self.programs: dict[Check, Path] = {}
        self.found: dict[tuple[Check, str], str] = {}

    def emulator(self, check: Check) -> list[Job]:
        return [Job(f"emulator/{path.name}", self.folder / check / f"{path.stem}.o",
                    ["-O2", *EMULATOR[check]])
                for path in sorted((self.csrc / "emulator").glob("*.cpp"))]

    def kernels(self, check: Check) -> dict[str, Job]:
        # Sanitizers look at the kernels of float only: those that change.
        looked_at = {name: check if name in LOOKED_AT else PLAIN for name in KERNELS}
        return {name: Job(f"cuda/{KERNELS[name]}", self.folder / build / f"{name}.o",
                          kernel_flags(name, build))
                for name, build in looked_at.items()}

    def make(self, check: Check) -> None:
        """This build, the first time that it is asked for."""
        with self.lock:
            if check in self.programs:
                return
            jobs = [*self.kernels(check).values(), *self.common, *self.emulator(check)]
            missing = [job for job in jobs if job.to not in self.made]
            with ThreadPoolExecutor(self.jobs) as pool:
                list(pool.map(lambda job: compiled(self.csrc, job, "what all have in common"),
                              missing))
            self.made |= {job.to for job in missing}
            self.programs[check] = self.linked(check, self.folder / check / "test_kernels", {})

    def program(self, check: Check, to: Path, changed: dict[str, Path]) -> Path:
        self.make(check)
        return self.linked(check, to, changed)

    def linked(self, check: Check, to: Path, changed: dict[str, Path]) -> Path:
        kernels = [*changed.values(), *(job.to for name, job in self.kernels(check).items()
                                        if name not in changed)]
        others = [job.to for job in (*self.common, *self.emulator(check))]
        objects = map(str, [*kernels, *others])
        run_compiler([*SANITIZER[check], *objects, "-o", str(to), "-pthread"], "the test program")
        return to

    def failure(self, check: Check, run: str) -> str:
        self.make(check)
        if (check, run) not in self.found:
            found = failure(self.programs[check], run)
            self.found[check, run] = found and f"the kernels as they are, {check}, {run}: {found}"
        return self.found[check, run]


def failure(program: Path, run: str) -> str:
    """What went wrong, in a line; nothing where all is well."""
    design, word = run.split(" ", 1)
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("LSNN_")}
    environment |= {"LSNN_DESIGN": "" if design == "any" else design,
                    "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    try:
        done = subprocess.run([str(program), word], env=environment, capture_output=True,
                              timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    if any(line.startswith("test_kernels: 0 runs") for line in lines):
        return "no such case, or it runs in no such design"
    found = [line.strip() for line in lines if line.startswith("FAILED") or "Sanitizer:" in line]
    return found[0] if found else f"ended with {done.returncode}"


def mutated(mutant: Mutant, text: str) -> str:
    if (times := text.count(mutant.old)) != mutant.times:
        raise SystemExit(f"{mutant.name}: expected {mutant.times} times, found {times}, in "
                         f"{mutant.file}: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


class Result(NamedTuple):
    mutant: Mutant
    check: Check | None  # that found it
    found: str
    seconds: float


def tried(mutant: Mutant, base: Base, folder: Path) -> Result:
    start = time.monotonic()
    csrc = folder / "csrc"
    for name in ("csrc", "lsnn_ext"):
        shutil.copytree(base.csrc.parent / name, folder / name)
    path = csrc / "cuda" / mutant.file
    path.write_text(mutated(mutant, path.read_text()))
    for check in dict.fromkeys([PLAIN, mutant.check, *CHECKS]):
        jobs = {name: Job(f"cuda/{KERNELS[name]}", folder / check / f"{name}.o",
                          kernel_flags(name, check))
                for name in OBJECTS.get(mutant.file, [mutant.object])}
        changed = {name: compiled(csrc, job, mutant.name) for name, job in jobs.items()}
        program = base.program(check, folder / check / "test_kernels", changed)
        for run in mutant.runs:
            if found := failure(program, run):
                if wrong := base.failure(check, run):
                    raise SystemExit(wrong)
                return Result(mutant, check, found, time.monotonic() - start)
    return Result(mutant, None, "", time.monotonic() - start)


def spread(mutants: list[Mutant], n: int) -> list[Mutant]:
    """n of them, evenly over the table and over what finds them."""
    ordered = sorted(mutants, key=lambda mutant: CHECKS.index(mutant.check))
    return [ordered[i * len(ordered) // n] for i in range(n)] if 0 < n < len(ordered) else mutants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, metavar="K",
                        help="only K bugs, spread over the table")
    parser.add_argument("--only", default=[""], nargs="+", metavar="NAME",
                        help="only the bugs with one of these in their names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    arguments = parser.parse_args()
    for name in arguments.only:
        if not any(name in mutant.name for mutant in MUTANTS):
            parser.error(f"--only: expected a part of a bug's name, got {name!r}")
    chosen = spread([mutant for mutant in MUTANTS
                     if any(name in mutant.name for name in arguments.only)],
                    arguments.sample)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        shutil.copytree(CSRC, folder / "csrc")  # so that it does not change meanwhile
        headers = CSRC.parent / "lsnn_ext" / "codegen"  # which the CPU kernels include
        shutil.copytree(headers, folder / "lsnn_ext" / "codegen",
                        ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        subprocess.run([sys.executable, "-B", str(CSRC / "model_table.py"), str(folder / "csrc")],
                       check=True)
        for mutant in MUTANTS:  # all of them, so that the table keeps up with the sources
            mutated(mutant, (folder / "csrc" / "cuda" / mutant.file).read_text())
        base = Base(folder / "csrc", folder / "base", arguments.jobs)
        for check in dict.fromkeys([PLAIN, *(mutant.check for mutant in chosen)]):
            base.make(check)
        # Where a bug is to be found, and in the plain build everything; others follow when a bug is
        # found there.
        runs = list(dict.fromkeys((check, run) for m in chosen for run in m.runs
                                  for check in (PLAIN, m.check)))
        wrong = [found for found in pool.map(lambda run: base.failure(*run), runs) if found]
        if wrong:
            print(*wrong, sep="\n")
            return 1
        print(f"the kernels as they are pass {len(runs)} runs; {time.monotonic() - start:.0f} s",
              flush=True)
        results = []
        for result in pool.map(
            lambda mutant: tried(mutant, base, folder / str(MUTANTS.index(mutant))), chosen
        ):
            results.append(result)
            found = str(result.check or "NOT FOUND")
            if result.check and CHECKS.index(result.check) > CHECKS.index(result.mutant.check):
                found += f", not {result.mutant.check} as in the table"
            print(f"{result.mutant.name:<60} {found:<9} {result.seconds:5.1f} s  "
                  f"{result.found[:150]}", flush=True)
            shutil.rmtree(folder / str(MUTANTS.index(result.mutant)))
    count = ", ".join(f"{check} {sum(result.check == check for result in results)}"
                      for check in CHECKS)
    missed = sum(result.check is None for result in results)
    print(f"{len(results)} planted bugs of {len(MUTANTS)}; found by: {count}; not found: {missed}; "
          f"{time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
