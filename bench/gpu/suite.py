"""What is asked of a card, in the order of its weight: build, tests, timings, sanitizers."""
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.gpu.card import Card, find_tool
from bench.gpu.steps import Step, last_line

ROOT = Path(__file__).resolve().parents[2]
WORK = "build-gpu"  # everything that is made on the way, from the root
TESTS = "test_kernels_cuda"  # the target of the C++ tests, which no build makes unless it is named
RAN = r"test_kernels: [1-9]\d* runs"  # what they say when they have run
ROWS, PRIMITIVES = f"{WORK}/rows.jsonl", f"{WORK}/primitives.csv"
DESIGNS = ("block", "gather", "step", "cluster")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
# Under a sanitizer a kernel runs some 10 to 100 times slower: 17 steps reach into a second chunk,
# and that is enough.
SMALL = "T=17 "

_HAS_CUDA = """
import sys
from lsnn_ext import _ops
cuda = getattr(_ops._C, "cuda", None)
if cuda is None:
    sys.exit("the compiled part has no CUDA kernels: " + str(_ops.load_error or "was nvcc found?"))
print("CUDA kernels:", cuda)
"""


def designs(card: Card) -> list[str]:
    """Those that this card can run: blocks form clusters from compute capability 9.0 on."""
    return [name for name in DESIGNS if name != "cluster" or card.capability >= (9, 0)]


def stages(card: Card, tool: Callable[[str], str | None] = find_tool) -> list[list[Step]]:
    """Stages of steps; those of one stage may run side by side, so timings stand alone."""
    program = f"{WORK}/tests/{TESTS}"
    folder = os.path.dirname(tool("nvcc") or "")
    environment = {"PATH": os.pathsep.join(filter(None, (folder, os.environ.get("PATH", ""))))}
    no_pytest = importlib.util.find_spec("pytest") is None
    sanitizer = tool("compute-sanitizer")

    def pytest(name: str, design: str, *selection: str) -> Step:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   "python_tests/test_cuda.py"]
        return Step(name, [[*command, *selection]], 150, 30, {"LSNN_DESIGN": design},
                    needs=("build",), read=_pytest_line, skip="pytest is not installed" if no_pytest
                    else "", proof=r"[1-9]\d* passed")

    return [
        _builds(card, environment, folder),
        [Step(f"C++ tests {design}", [[program]], 90, 15, {"LSNN_DESIGN": design},
              needs=("build of the C++ tests",), proof=RAN) for design in designs(card)],
        [Step("primitives", [[f"{WORK}/primitives", PRIMITIVES]], 30, 5,
              needs=("build of the primitives",), required=False)],
        [pytest("Python tests", "", "python_tests/test_cuda_torch.py"),
         *(pytest(f"Python tests {design}", design) for design in designs(card))],
        [Step("timings", [[sys.executable, "-m", "bench.gpu.layers", "--seconds", "{seconds}",
                           "--rows", ROWS]], 170, 50, needs=("build",))],
        [Step(f"{check} {design}", [[sanitizer or "", "--tool", check, "--error-exitcode", "9",
                                     program, SMALL]], 90, 10, {"LSNN_DESIGN": design},
              needs=("build of the C++ tests",), required=False, read=_sanitizer_line,
              skip="" if sanitizer else "compute-sanitizer is not installed",
              proof=RAN) for check in SANITIZERS for design in designs(card)],
    ]


def _builds(card: Card, environment: dict[str, str], folder: str) -> list[Step]:
    """For this card's architecture alone, which is quick; without pip and without a network."""
    python, half = sys.executable, str(max(1, (os.cpu_count() or 2) // 2))
    nvcc = f"{folder}/nvcc" if folder else "nvcc"
    architecture = f"-DCMAKE_CUDA_ARCHITECTURES={card.architecture}"
    compiler = [f"-DCMAKE_CUDA_COMPILER={nvcc}"] if folder else []
    extension = environment | {
        "LSNN_BUILD": "require", "MAX_JOBS": half,
        "LSNN_CMAKE_ARGS": " ".join([os.environ.get("LSNN_CMAKE_ARGS", ""), architecture,
                                     *compiler]).strip()}
    source = "bench/gpu/primitives.cu"
    return [
        # A build folder of its own: that of `make build` may belong to another torch, or to none
        # with CUDA.
        Step("build", [[python, "setup.py", "--quiet", "build_ext", "--inplace", "--build-temp",
                        f"{WORK}/python"],
                       [python, "-c", _HAS_CUDA]], 300, 60, extension),
        Step("build of the C++ tests",
             [["cmake", "-S", ".", "-B", f"{WORK}/tests", "-G", "Ninja", "-DLSNN_TESTS=ON",
               architecture, *compiler],
              ["cmake", "--build", f"{WORK}/tests", "--target", TESTS, "-j", half]],
             300, 60, environment),
        Step("build of the primitives",
             [[nvcc, "-std=c++20", "-O3", f"-arch=sm_{card.architecture}", "-o",
               f"{WORK}/primitives", source]],
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
