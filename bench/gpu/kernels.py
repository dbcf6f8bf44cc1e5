"""The time of each kernel of a training step of the paper's network, P.

    python -m bench.gpu.kernels --csv kernels.csv
    python -m bench.gpu.kernels --csv stamps.csv --extension build-gpu/stamps/lib

The first command profiles the kernels. The second one needs a compiled part that was built with
-DLSNN_STAMPS, in the named folder, and writes the cycles of each phase of a step.
"""
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.arguments import make_parser
from bench.tables import MEASUREMENTS, write_table

CALLS = 5  # that are profiled, after as many that are not
BATCHES = 248, 256  # 31 and 32 clusters of eight items


def load_extension(folder: Path) -> None:
    """Makes `import lsnn_ext` use the compiled part in this folder."""
    found = next(folder.glob("lsnn_ext/_C.*"), None)
    if found is None:
        raise SystemExit(f"--extension: expected a folder with lsnn_ext/_C.*, got {folder}")
    import torch  # noqa: F401  # loads the libraries that the compiled part is linked with

    spec = importlib.util.spec_from_file_location("lsnn_ext._C", found)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def short_name(kernel: str) -> str:
    """A demangled kernel without its return type, namespaces and parameters."""
    end = kernel.rfind("(") if kernel.endswith(")") else len(kernel)
    return re.sub(r"\b(?:\w+::)+", "", kernel[:end].removeprefix("void "))[:120]


def kernel_times(events: Iterable[Any], calls: int) -> list[tuple[str, float]]:
    """Microseconds of a call in each kernel, the longest first, of a profile's events on a GPU."""
    times: dict[str, float] = defaultdict(float)
    for event in events:
        if event.device_type.name == "CUDA":
            times[short_name(event.name)] += event.time_range.elapsed_us() / calls
    return sorted(times.items(), key=lambda item: -item[1])


def phase_cycles(stamps: dict[str, list[int]]) -> list[tuple[str, float]]:
    """Cycles of a step in each phase, of _C.take_stamps(): steps, then cycles of the phases."""
    return [(f"{kernel}, phase {k}", cycles / steps)
            for kernel, (steps, *phases) in stamps.items() if steps
            for k, cycles in enumerate(phases) if cycles]


def main(arguments: list[str] | None = None) -> int:
    """Writes the CSV; 2 without a device."""
    parser = make_parser("bench.gpu.kernels", __doc__)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--extension", type=Path, help="folder of a build with -DLSNN_STAMPS")
    given = parser.parse_args(arguments)
    if given.extension:
        load_extension(given.extension)
    import torch

    if not torch.cuda.is_available():
        print(f"bench.gpu.kernels: torch {torch.__version__} sees no CUDA device")
        return 2
    from bench.contestants import OURS
    from bench.gpu.contestants import make
    from bench.gpu.suite import PRECISIONS
    from bench.problem import Problem, Shape
    from lsnn_ext import _ops

    rows = []
    for B in BATCHES:
        problem = Problem.of(Shape(784, B, 80, 220), torch.device("cuda", 0))
        for precision in PRECISIONS:
            torch.set_float32_matmul_precision(precision)
            ours = make(OURS, "float32", problem)
            for _ in range(CALLS):
                ours.forward_backward()
            torch.cuda.synchronize()
            if given.extension:
                _ops._C.take_stamps()
                ours.forward_backward()
                found = phase_cycles(_ops._C.take_stamps())
                kind, unit = "phase of a step", "cycles"
            else:
                with torch.profiler.profile(
                        activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    for _ in range(CALLS):
                        ours.forward_backward()
                    torch.cuda.synchronize()
                found, kind, unit = kernel_times(profile.events(), CALLS), "kernel of P", "us"
            rows += [(kind, f"B={B} {precision} {name}", value, unit) for name, value in found]
            write_table(given.csv, MEASUREMENTS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
