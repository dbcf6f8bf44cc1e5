"""The stages of a run on a card: build, tests, timings, sanitizers."""
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.gpu.card import Card, find_tool
from bench.gpu.steps import Step, last_line

ROOT = Path(__file__).resolve().parents[2]
WORK = "build-gpu"  # everything that is made on the way, from the root
TESTS = "test_kernels_cuda"  # the target of the C++ tests, which no build makes unless it is named
RAN = r"test_kernels: [1-9]\d* runs"  # what they say when they have run
NO_GPU = 2, r"test_kernels: no GPU, so nothing was run"  # and where there is none
STAND_IN = Card("no card, a dry run", (9, 0), 132, "", "", "")
# with clock stamps at once
QUICK = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DCMAKE_CUDA_FLAGS_DEBUG=-O0",
         "-DCMAKE_CUDA_FLAGS=-Xptxas=-O0", "-DLSNN_ONLY_PORTABLE=ON", "-DLSNN_STAMPS=ON")
DRY_LIMIT = 3600.0  # seconds of a step of a dry run, whose builds may have one processor
ROWS, PRIMITIVES = f"{WORK}/rows.jsonl", f"{WORK}/primitives.csv"
KERNELS, STAMPS, CHOICES = (f"{WORK}/{name}.csv" for name in ("kernels", "stamps", "choices"))
TABLES = PRIMITIVES, KERNELS, STAMPS, CHOICES  # of primitive, parameter, value and unit
DESIGNS = ("block", "gather", "step", "cluster")
PRECISIONS = ("highest", "high", "medium")  # of torch's products in float32, the default first
# the kernels of the paper's network in the C++ tests: in one block, by rows in shared or in global
# memory, or by matrices; in a cluster, by matrices; high and so on are torch's precisions
LSNN = ("lsnn", "lsnn_gather", "lsnn_block_high", "lsnn_block_medium")
IN_CLUSTER = ("lsnn_highest", "lsnn_high", "lsnn_medium")
ROUTES = (*DESIGNS, *LSNN, *IN_CLUSTER)
# racecheck is the last and is only noted: it may take a reader that waits for stores from other
# blocks for a race.
SANITIZERS = ("memcheck", "synccheck", "racecheck")
STAGES = ("build", "routes", "primitives", "python", "kernels", "timings", "phases", "choices",
          *SANITIZERS)
LONG = "phases", "choices"  # only where they are named
# The three experiments of a first run on a new card, as names for --only: whether the kernels are
# right, what each costs, whether the plan selects the fastest.
EXPERIMENTS = {"correctness": ("build", "routes", "python"),
               "costs": ("primitives", "kernels", "phases"), "plan": ("choices",)}
STAMPED = "build with clock stamps"
# Under a sanitizer a kernel runs some 10 to 100 times slower: 17 steps reach into a second chunk,
# and that is enough.
SMALL = "T=17 "

# An argument is the folder of a compiled part that replaces the installed one.
_HAS_CUDA = """
import sys
from pathlib import Path
from bench.gpu.kernels import load_extension
for folder in sys.argv[1:]:
    load_extension(Path(folder))
from lsnn_ext import _ops
cuda = getattr(_ops._C, "cuda", None)
if cuda is None:
    sys.exit("the compiled part has no CUDA kernels: " + str(_ops.load_error or "was nvcc found?"))
print("CUDA kernels:", cuda)
"""


def designs(capability: tuple[int, int]) -> list[str]:
    """Those that a card can run: blocks form clusters from compute capability 9.0 on."""
    return [name for name in DESIGNS if name != "cluster" or capability >= (9, 0)]


def routes(card: Card) -> list[str]:
    """The designs of a card and the kernels of the paper's network, as the C++ tests name them."""
    of_lsnn = LSNN if card.capability >= (8, 0) else ()
    in_cluster = IN_CLUSTER if card.capability >= (9, 0) else ()
    return [*designs(card.capability), *of_lsnn, *in_cluster]


def stages(card: Card, tool: Callable[[str], str | None] = find_tool,
           dry: bool = False) -> list[list[Step]]:
    """The steps of each of STAGES; those of one stage may run side by side, so timings stand alone.
    dry: in folders of their own, and nothing is optimized, as no kernel runs."""
    work = f"{WORK}/dry" if dry else WORK
    stamped = f"{work}/lib" if dry else f"{work}/stamps/lib"
    program = f"{work}/tests/{TESTS}"
    folder = os.path.dirname(tool("nvcc") or "")
    environment = {"PATH": os.pathsep.join(filter(None, (folder, os.environ.get("PATH", ""))))}
    no_pytest = importlib.util.find_spec("pytest") is None
    sanitizer = tool("compute-sanitizer")
    kernels = sys.executable, "-m", "bench.gpu.kernels"
    no_card = 2, "bench.gpu.kernels: .* sees no CUDA device"

    def pytest(name: str, design: str, *selection: str) -> Step:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   "python_tests/cuda/test_cuda.py"]
        return Step(name, [[*command, *selection]], 150, 30, {"LSNN_DESIGN": design},
                    needs=("build",), read=_pytest_line, skip="pytest is not installed" if no_pytest
                    else "", proof=r"[1-9]\d* passed",
                    without_device=(0, r"(?m)^(?!.*(?:failed|passed|error)).*\b[1-9]\d* skipped"))

    def sanitized(check: str) -> list[Step]:
        started = [sanitizer or "", "--tool", check, "--error-exitcode", "9", program, SMALL]
        return [Step(f"{check} {design}", [started], 90, 10, {"LSNN_DESIGN": design},
                     needs=("build of the C++ tests",), required=False, noted=check == "racecheck",
                     read=_sanitizer_line, proof=RAN, without_device=NO_GPU,
                     dry=([sanitizer or "", "--version"], [program, SMALL]),
                     skip="" if sanitizer else "compute-sanitizer is not installed")
                for design in routes(card)]

    return [
        _builds(card, environment, folder, work, QUICK if dry else ()),
        [Step(f"C++ tests {design}", [[program]], 90, 15, {"LSNN_DESIGN": design},
              needs=("build of the C++ tests",), proof=RAN, without_device=NO_GPU)
         for design in routes(card)],
        [Step("primitives", [[f"{work}/primitives", PRIMITIVES]], 30, 5,
              needs=("build of the primitives",), required=False,
              without_device=(2, "primitives: no CUDA device"))],
        [pytest("Python tests", "", "python_tests/cuda/test_cuda_torch.py",
                "python_tests/cuda/test_cuda_bits.py"),
         *(pytest(f"Python tests {design}", design) for design in designs(card.capability))],
        [Step("kernels", [[*kernels, "--csv", KERNELS]], 60, 20, needs=("build",), required=False,
              without_device=no_card)],
        [Step("timings", [[sys.executable, "-m", "bench.gpu.layers", "--seconds", "{seconds}",
                           "--rows", ROWS]], 170, 50, needs=("build",),
              without_device=(2, "bench.gpu.layers: .* sees no CUDA device"))],
        [Step("phases", [[*kernels, "--csv", STAMPS, "--extension", stamped]], 60, 20,
              needs=(STAMPED,), required=False, without_device=no_card)],
        [Step("choices", [[sys.executable, "-m", "bench.gpu.choices", "--seconds", "{seconds}",
                           "--csv", CHOICES]], 1500, 60, needs=("build",), required=False,
              without_device=(2, "bench.gpu.choices: .* sees no CUDA device"))],
        *map(sanitized, SANITIZERS),
    ]


def dry_stages() -> list[list[Step]]:
    """The same for a card that is not there: every build, and every program and stage started, each
    of which must say that it finds no device."""
    return [[step.in_dry_run(DRY_LIMIT) for step in stage]
            for stage in stages(STAND_IN, dry=True)]


def named_stages(text: str) -> list[str]:
    """Names of stages, and of experiments, as the stages."""
    return [stage for name in text.split(",") for stage in EXPERIMENTS.get(name, (name,))]


def selected(stages: list[list[Step]], names: Sequence[str],
             strict: bool = False) -> list[list[Step]]:
    """The stages of these names, and the builds that they need: a build that is up to date takes
    seconds, and nothing that is older than its sources is tested. strict: what is named has to
    run, also where it is optional among all."""
    if unknown := [name for name in names if name not in STAGES]:
        raise ValueError(f"expected stages of {', '.join(STAGES)}, got {', '.join(unknown)!r}")
    builds, *others = stages
    every = "build" in names
    chosen = [[replace(step, required=True) for step in stage] if strict else stage
              for name, stage in zip(STAGES[1:], others, strict=True) if name in names]
    needed = {need for stage in chosen for step in stage for need in step.needs}
    return [[step for step in builds if step.name in needed or (every and step.name != STAMPED)],
            *chosen]


def _builds(card: Card, environment: dict[str, str], folder: str, work: str,
            quick: tuple[str, ...]) -> list[Step]:
    """For this card's architecture alone, which is quick; without pip and without a network."""
    python, half = sys.executable, str(max(1, (os.cpu_count() or 2) // 2))
    nvcc = f"{folder}/nvcc" if folder else "nvcc"
    architecture = f"-DCMAKE_CUDA_ARCHITECTURES={card.architecture}"
    compiler = [f"-DCMAKE_CUDA_COMPILER={nvcc}"] if folder else []
    cmake = " ".join([os.environ.get("LSNN_CMAKE_ARGS", ""), architecture, *compiler, *quick])
    extension = environment | {"LSNN_BUILD": "require", "MAX_JOBS": half,
                               "LSNN_CMAKE_ARGS": cmake.strip()}
    source = "bench/gpu/primitives.cu"
    inplace = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    own, stamps = ["--build-temp", f"{work}/python"], f"{work}/stamps"
    has_cuda = [python, "-c", _HAS_CUDA]
    return [
        # A build folder of its own: that of `make build` may belong to another torch, or to none
        # with CUDA.
        # A dry run leaves the compiled part that is in use alone.
        Step("build", [[*inplace, *own], has_cuda], 300, 60, extension,
             dry=([*inplace[:-1], *own, "--build-lib", f"{work}/lib"],
                  [*has_cuda, f"{work}/lib"])),
        Step(STAMPED,
             [[*inplace[:-1], "--build-temp", stamps, "--build-lib", f"{stamps}/lib"],
              [*has_cuda, f"{stamps}/lib"]], 300, 60,
             extension | {"LSNN_CMAKE_ARGS": f"-DLSNN_STAMPS=ON {cmake.strip()}"}, required=False,
             dry=([*has_cuda, f"{work}/lib"],)),
        Step("build of the C++ tests",
             [["cmake", "-S", ".", "-B", f"{work}/tests", "-G", "Ninja", "-DLSNN_TESTS=ON",
               architecture, *compiler, *quick],
              ["cmake", "--build", f"{work}/tests", "--target", TESTS, "-j", half]],
             300, 60, environment),
        Step("build of the primitives",
             [[nvcc, "-std=c++20", "-O3", f"-arch=sm_{card.architecture}", "-o",
               f"{work}/primitives", source]],
             120, 10, environment, required=False),
    ]


def _pytest_line(output: str) -> str:
    """The counts of pytest; on a failure the names of the first tests that failed as well."""
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", output, re.MULTILINE)
    return last_line(output) + (f"; first: {', '.join(failed[:3])}" if failed else "")


def _sanitizer_line(output: str) -> str:
    """The summary of compute-sanitizer, which need not be the last line."""
    found = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY:.*)$", output, re.MULTILINE)
    return found[-1] if found else last_line(output)
