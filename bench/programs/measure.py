"""A program of the manifest before and after conversion: results, gradients, time and memory."""
import gc
import multiprocessing
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bench.limits import describe_error
from bench.measure import alternate, processor_ms
from bench.memory import peak_of
from bench.programs.load import Loaded, Program, load
from lsnn_ext import _ops, loops
from lsnn_ext.loops.ir import Call, Refused
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.record import record
from lsnn_ext.loops.reroll import find_loops
from lsnn_ext.loops.unread import Steps

LEAST = 1e-5
CALLS = 4
FUSED, LEFT = ("fused",), ("loop", "in order")  # kinds of stages


@dataclass
class Line:
    program: str
    converted: bool = False
    reason: str = ""
    calls: int = 0  # of torch, in a forward pass
    iterations: str = ""  # of each loop, by the calls of its body
    fused: int = 0  # components that run in the kernels
    batched: int = 0  # calls of a body that run for all iterations at once
    left: int = 0  # components that stay loops
    seconds: float = nan  # to convert, the runs of the original among them
    difference: float = nan  # of the results, by the largest of each, float32
    differing: int = 0  # entries of the results
    entries: int = 0
    gradient_difference: float = nan  # by the largest of each, float32
    difference_64: float = nan
    gradient_difference_64: float = nan
    original_ms: float = nan  # a training step on one thread, time of the processor
    converted_ms: float = nan
    ratio: float = nan
    ratio_2: float = nan  # on two threads, elapsed time
    original_mib: float = nan  # peak of a training step
    converted_mib: float = nan
    rounds: int = 0
    note: str = ""


class _Step:
    """Of one side, for bench.measure.alternate."""

    def __init__(self, program: Loaded) -> None:
        self.program = program
        self.forward = program.run
        self.forward_backward = program.step if program.gradients else program.run


def convert(program: Loaded) -> str:
    """Converts the model; why it stays as it is, or nothing."""
    program.before()
    torch.manual_seed(program.seed)
    with torch.set_grad_enabled(program.gradients):
        if isinstance(program.model, nn.Module):
            model, report = loops.convert(program.model, program.inputs)
            program.model = model
            return "" if report.converted else report.reason
        try:
            program.model = loops.fuse(program.model, program.inputs)
        except Refused as refused:
            return str(refused)
    return ""


def compare(one: Loaded, other: Loaded) -> dict[str, Any]:
    """The largest differences of results and gradients in several calls: a call that finds other
    attributes than the one before is recorded, and returns the original's own result."""
    want, wanted = one.step()
    found = [_compare(want, wanted, *other.step()) for _ in range(CALLS)]
    return {name: max(each[name] for each in found) for name in found[0]}


def _compare(want: Any, wanted: dict[str, Tensor | None], got: Any,
             gradients: dict[str, Tensor | None]) -> dict[str, Any]:
    pairs = [tuple(map(torch.as_tensor, pair)) if isinstance(pair[0], float | np.ndarray) else pair
             for pair in zip(tree_leaves(want), tree_leaves(got), strict=True)]
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor)]
    if any(a != b for a, b in pairs if not isinstance(a, Tensor)):
        raise AssertionError("expected equal results, got others that are no tensors")
    missing = [name for name, one in wanted.items() if (one is None) != (gradients[name] is None)]
    if missing:
        raise AssertionError(f"expected gradients of the same parameters, got {missing[0]} of one "
                             "side only")
    both = [(a, b) for name, a in wanted.items()
            if a is not None and (b := gradients[name]) is not None]
    return {"difference": _difference(tensors),
            "differing": sum(int((a != b).sum()) for a, b in tensors),
            "entries": sum(a.numel() for a, _ in tensors),
            "gradient_difference": _difference(both)}


def _difference(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The largest one of wanted and other tensors, by the largest number of each.

    A tensor whose numbers are all small counts with LEAST of the largest of all: the gradient of a
    bias before batch norm is rounding.
    """
    for want, got in pairs:
        if want.shape != got.shape or want.dtype != got.dtype:
            raise AssertionError(f"expected {tuple(want.shape)} {want.dtype}, got "
                                 f"{tuple(got.shape)} {got.dtype}")
    numbers = [(a.detach().double(), b.detach().double()) for a, b in pairs if a.numel()]
    largest = [float(a.abs().max()) for a, _ in numbers]
    least = LEAST * max(largest, default=0.0)
    found = [(float((a - b).abs().max()), max(size, least))
             for (a, b), size in zip(numbers, largest, strict=True)]
    return max((difference / size if size else inf for difference, size in found
                if difference != 0.0), default=0.0)


def recorded(program: Loaded) -> tuple[Line, list[str]]:
    """What the recorder and the search for loops see, and each stage in words."""
    program.before()
    torch.manual_seed(program.seed)
    origins = Origins(program.model, program.inputs, {})
    with torch.set_grad_enabled(program.gradients):
        _, recording = record(program.model, program.inputs, {}, origins, steps=Steps(True))
    line = Line("")
    if isinstance(recording, Refused):
        line.reason = str(recording)
        return line, [f"refused: {recording}"]
    found = [part for part in find_loops(recording) if not isinstance(part, Call)]
    line.calls = len(recording.calls)
    line.iterations = ", ".join(f"{loop.iterations} x {len(loop.body)}" for loop in found)
    stages = Plan(recording).stages
    kinds = Counter(stage.kind for stage in stages)
    line.fused, line.left = sum(kinds[k] for k in FUSED), sum(kinds[k] for k in LEFT)
    line.batched = sum(kinds.values()) - line.fused - line.left
    inside = sum(loop.iterations * len(loop.body) for loop in found)
    told = [f"{line.calls} calls, loops {line.iterations or 'none'}, "
            f"{100 * inside / max(line.calls, 1):.0f} % of the calls",
            "stages: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())]
    told += [f"{stage.kind}, {len(stage.positions)} calls: {stage.line}: {stage.reason}"
             for stage in stages if stage.reason]
    return line, told


def _measure(program: Program, folder: Path, repeats: int, seconds: float, threads: int) -> Line:
    torch.set_num_threads(1)
    one, other = load(program, folder), load(program, folder)
    line, _ = recorded(load(program, folder))
    line.program, line.note = program.name, program.note
    start = time.perf_counter()
    line.reason = convert(other)
    line.seconds = time.perf_counter() - start
    line.converted = not line.reason
    if not line.converted:
        return line
    vars(line).update(compare(one, other))
    sides: Any = [_Step(one), _Step(other)]
    times = alternate(sides, repeats, seconds, timer=processor_ms)
    line.rounds = len(times[0][1])
    line.original_ms, line.converted_ms = (statistics.median(each) for _, each in times)
    line.ratio = line.original_ms / line.converted_ms
    if threads > 1:
        torch.set_num_threads(2)
        original, converted = (statistics.median(each)
                               for _, each in alternate(sides, repeats, seconds))
        line.ratio_2 = original / converted
    return line


def _in_float64(program: Program, folder: Path) -> tuple[float, float]:
    """Differences of results and gradients."""
    torch.set_num_threads(1)
    one, other = (load(program, folder, torch.float64) for _ in range(2))
    try:
        one.step()
    except RuntimeError as error:
        raise RuntimeError(f"the program itself raises: {error}") from error
    if convert(other):
        return nan, nan
    found = compare(one, other)
    return found["difference"], found["gradient_difference"]


def _prepared(program: Program, folder: Path, is_converted: bool) -> Callable[[], object]:
    torch.set_num_threads(1)
    found = load(program, folder)
    if is_converted:
        convert(found)
    for _ in range(CALLS):  # some of them are recorded, see compare
        found.step()
    gc.collect()
    _ops._C.empty_cache()  # freed memory that is kept would hide what a step needs
    return found.step


def measure(program: Program, folder: Path, *, repeats: int, seconds: float, threads: int = 2,
            memory: bool = True) -> Line:
    """A line of the table. Each part runs in a process of its own, for at most `seconds` each of
    timing."""
    try:
        line: Line = in_process(_measure, program, folder, repeats, seconds, threads)
    except RuntimeError as error:
        return Line(program.name, reason=f"failed: {error}", note=program.note)
    if not line.converted:
        return line
    try:
        line.difference_64, line.gradient_difference_64 = in_process(_in_float64, program, folder)
    except RuntimeError as error:
        line.note = "; ".join(filter(None, [line.note, f"float64: {error}"]))
    if memory:
        line.original_mib, line.converted_mib = (
            peak_of(_prepared, program, folder, is_converted) for is_converted in (False, True))
    return line


def look(program: Program, folder: Path) -> list[str]:
    """What the recorder and the search for loops see, in a process of its own."""
    try:
        found: list[str] = in_process(_look, program, folder)
    except RuntimeError as error:
        return [f"failed: {error}"]
    return found


def _look(program: Program, folder: Path) -> list[str]:
    torch.set_num_threads(1)
    return recorded(load(program, folder))[1]


# ------------------------------------------------------------------------------------- processes
LONGEST = 600.0  # seconds of one process


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args) in a fresh process, since programs have modules of the same names.

    Raises:
        RuntimeError: the function raised, the process ended early or took too long.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, function, args))
    process.start()
    there.close()
    try:
        is_done, result = here.recv() if here.poll(LONGEST) else (False, "took too long")
    except EOFError:
        process.join()
        is_done, result = False, f"the process ended with {process.exitcode}"
    process.kill()
    process.join()
    if not is_done:
        raise RuntimeError(result)
    return result


def _run(there: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        found = True, function(*args)
    except Exception as error:  # noqa: BLE001
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        found = False, f"{describe_error(error)} ({where})"
    there.send(found)


