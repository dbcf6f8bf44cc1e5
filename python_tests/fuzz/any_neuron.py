"""Random steps of neurons in random calls of functional.recurrent, against a plain loop.

    cd python_tests/fuzz
    LSNN_COMPILE=0 python any_neuron.py --first 0 --cases 2900   # by the interpreter
    python any_neuron.py --first 5000 --cases 100                # compiled
    python any_neuron.py --first 41 --cases 1 --verbose          # one case again, with its step

A step of operators that round once has the bits of the loop: numbers are drawn such that sums over
synapses are exact. Of any other step the spikes are equal, other numbers within 1e-12 and gradients
within 1e-9 of the largest. A case whose own loop changes by more when the values and gradients
within its step change in the last place is drawn again.
"""
import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from any_neuron_steps import Step, draw_step
from fuzz_calls import Draw, gradients_of
from lsnn_ext import Neuron, use_reference
from lsnn_ext.codegen.trace import StepError
from lsnn_ext.functional import NeuronState, pack_spikes, recurrent

STATES, GRADIENTS = 1e-12, 1e-9  # of the largest
SINGLE = 2e-4  # gradients in float32
# Functions whose results differ in the last place.
INEXACT = {"exp", "tanh", "sigmoid", "sin", "cos", "atan", "erf", "log", "pow", "__pow__", "sqrt",
           "rsqrt", "silu", "layer_norm"}


class Case(NamedTuple):
    """A call. The tensors of leaves have a gradient where they require one."""

    step: Step
    function: Callable[..., Any]
    leaves: dict[str, Tensor]  # x, w_rec, w_in, bias, states s0 ..., z, coefficients
    numbers: dict[str, float]  # coefficients that are no tensors
    keywords: dict[str, Any]  # delay, lengths, checkpoint_every, ...
    shown: tuple[bool, ...]  # of spikes, z, states and traces: whether the loss reads them
    is_dense: bool  # gradients of results that are not one expanded number
    is_packed: bool  # x is given as bits
    T: int
    B: int
    N: int

    def __str__(self) -> str:
        shapes = {name: (*x.shape, str(x.dtype)[6:], "gradient" if x.requires_grad else "")
                  for name, x in self.leaves.items()}
        keywords = {name: f"tensor {tuple(x.shape)}" if isinstance(x, Tensor) else x
                    for name, x in self.keywords.items()}
        return f"T, B, N {(self.T, self.B, self.N)} {shapes} {self.numbers} {keywords} {self.shown}"


class Noise(TorchFunctionMode):
    """Changes results of inexact functions, sums over synapses where spikes are numbers, and all
    gradients in the last place."""

    def __init__(self, step: Step, seed: int) -> None:
        super().__init__()
        self.names = INEXACT if step.scale else INEXACT | {"einsum"}
        self.generator = torch.Generator().manual_seed(seed)

    def shake(self, a: Tensor | None) -> Tensor | None:
        if a is None:
            return None
        with torch._C.DisableTorchFunction():
            r = torch.rand(a.shape, generator=self.generator, dtype=a.dtype)
            return a * (1 + 4 * torch.finfo(a.dtype).eps * (r - 0.5))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() < 2:
            return out
        if name in self.names:
            out.data.copy_(self.shake(out.detach()))  # what autograd has saved is the same memory
        if out.requires_grad and not name.endswith("_") and not out.is_leaf:
            out.register_hook(self.shake)
        return out


class Outputs(NamedTuple):
    """Spikes, the state after the last step, and traces; gradients of leaves by name."""

    values: list[Tensor]  # spikes, z, states, traces
    gradients: dict[str, Tensor | None]


# ----------------------------------------------------------------------------------------- drawing
def _fixed_point(d: Draw, low: float, high: float, *shape: int, dtype: torch.dtype) -> Tensor:
    """Multiples of 1 / 64, whose sums and products with spikes are exact."""
    return (d.real(low, high, *shape, dtype=torch.float64) * 64).round().div(64).to(dtype)


def function_of(source: str, name: str) -> Callable[..., Any]:
    space: dict[str, Any] = {"__name__": "drawn"}
    exec(compile(source, f"<step of {name}>", "exec"), space)
    return space["step"]  # type: ignore[no-any-return]


def draw_case(seed: int, attempt: int) -> Case:
    d = Draw(seed, attempt)
    is_single = d.chance(0.25)
    is_exact = is_single or d.chance(0.4)
    step = draw_step(f"{seed}/{attempt}", is_exact)
    dtype = torch.float32 if is_single else torch.float64
    K, S = step.currents, step.states
    T = d.one_of(1, 2, 5, 15, 16, 17, 20, 33, 48, 60)
    B = d.one_of(1, 2, 3, 5, 8, 17, 33)
    N = d.one_of(1, 2, 5, 7, 8, 15, 16, 17, 31, 32, 33, 64, 70)
    if d.chance(0.03):
        T, B = d.one_of((0, B), (T, 0))
    several = (K,) if K > 1 else ()
    gain = 1.5 / N**0.5
    keywords: dict[str, Any] = {"trace": d.chance(0.6)}
    leaves: dict[str, Tensor] = {}

    def real(low: float, high: float, *shape: int) -> Tensor:
        return _fixed_point(d, low, high, *shape, dtype=dtype)

    if d.chance(0.25):
        inputs = d.one_of(1, 4, 19)
        leaves["x"] = d.spikes(0.4, T, B, inputs, dtype=dtype)
        leaves["w_in"] = real(-1, 2, *several, N, inputs)
        if d.chance(0.5):
            leaves["bias"] = real(-0.2, 0.5, *several, N)
    elif d.chance(0.2):
        leaves["x"] = real(-1, 2, *reversed((T, B, *several, N))).permute(
            *reversed(range(3 + len(several))))
    elif d.chance(0.1):
        leaves["x"] = real(-1, 2, 2 * T, B, *several, N)[::2]
    else:
        leaves["x"] = real(-1, 2, T, B, *several, N)
    kind, D = d.one_of("none", "one", "one", "each", "each", "own"), 1
    if kind == "one":
        keywords["delay"] = d.one_of(0, 0, 1, 2, 4)
        D += keywords["delay"]
    elif kind == "each":
        keywords["delay"] = d.whole(5, *(several if d.chance(0.5) else ()), N, N)
        D += int(keywords["delay"].max())
    elif kind == "own":
        keywords["delay"] = sorted(d.random.sample(range(5), d.one_of(1, 2, 3)))
        D += keywords["delay"][-1]
    if kind != "none":
        front = (len(keywords["delay"]),) if kind == "own" else ()
        w = real(-gain, gain, *front, *several, N, N)
        if d.chance(0.3):
            w *= d.spikes(0.4, *w.shape, dtype=dtype)
        leaves["w_rec"] = w.mT.contiguous().mT if d.chance(0.2) else w
        keywords["autapses"] = not d.chance(0.2)
        keywords["sparse_grad"] = d.one_of("all", "all", "existing")
    if d.chance(0.4):
        for s in range(S):
            leaves[f"s{s}"] = real(-1, 1, N, B).mT if d.chance(0.2) else real(-1, 1, B, N)
        past = (D + d.one_of(0, 0, 2), B, N)
        leaves["z"] = d.spikes(0.4, *past, dtype=dtype) if d.chance(0.6) else real(-1, 1, *past)
    numbers: dict[str, float] = {}
    for one in step.coefficients:
        if one.kind == "number":
            numbers[one.name] = d.random.uniform(one.low, one.high)
        elif one.kind == "int":
            numbers[one.name] = d.random.randrange(2, 9)
        elif one.kind != "default":
            shape = {"()": (), "(1,)": (1,), "(N,)": (N,)}[one.kind]
            other = torch.float32 if d.chance(0.2) else dtype
            leaves[one.name] = d.real(one.low, one.high, *shape, dtype=other)
    if d.chance(0.3) and T:
        keywords["lengths"] = d.whole(T + 1, B) if d.chance(0.5) else d.whole(T + 1, B).tolist()
    keywords["checkpoint_every"] = d.one_of(None, None, None, 16, 32, 48, 3, "9 MB")
    learned = {c.name for c in step.coefficients if c.learned}
    for name, x in leaves.items():
        if name in learned or name[0] != "k" and d.chance(0.8):
            x.requires_grad_()
    shown = tuple(d.chance(0.7) for _ in range(2 + 2 * S))
    function = function_of(step.source, f"case {seed}, attempt {attempt}")
    is_packed = "w_in" in leaves and d.chance(0.5)
    return Case(step, function, leaves, numbers, keywords, shown, d.chance(0.7), is_packed, T, B, N)


# ----------------------------------------------------------------------------------- the plain loop
def _currents(case: Case) -> Tensor:
    """(T, B, K, N)"""
    x, N = case.leaves["x"], case.N
    if "w_in" in case.leaves:
        w = case.leaves["w_in"].reshape(-1, x.shape[-1])
        x = x @ w.T
        if "bias" in case.leaves:
            x = x + case.leaves["bias"].reshape(-1)
    return x.reshape(case.T, case.B, case.step.currents, N)


def _synapses(case: Case) -> list[Tensor]:
    """For each delay the weights (K, N, N), of which those of other delays are 0."""
    K, N, delay = case.step.currents, case.N, case.keywords.get("delay", 0)
    w = case.leaves["w_rec"]
    if case.keywords["sparse_grad"] == "existing":
        w = w.where(w != 0, 0.0)
    if not case.keywords["autapses"]:
        w = w * (1 - torch.eye(N, dtype=w.dtype))
    if isinstance(delay, list):
        each = dict(zip(delay, w.reshape(-1, K, N, N), strict=True))
        return [each.get(t, torch.zeros(K, N, N, dtype=w.dtype)) for t in range(5)]
    matrix = torch.as_tensor(delay)
    return [w.reshape(K, N, N) * (matrix == t).to(w.dtype) for t in range(5)]


def loop(case: Case) -> list[Tensor]:
    """What recurrent returns, one step after another."""
    T, B, N, step = case.T, case.B, case.N, case.step
    x, leaves, dtype = _currents(case), case.leaves, case.leaves["x"].dtype
    synapses = _synapses(case) if "w_rec" in leaves else []
    states = [leaves.get(f"s{s}", torch.zeros(B, N, dtype=dtype)) for s in range(step.states)]
    D = 1 + max((t for t, _ in enumerate(synapses) if _has_delay(case, t)), default=0)
    past = leaves.get("z", torch.zeros(D, B, N, dtype=dtype))[:D].unbind(0)
    coefficients = case.numbers | {
        c.name: leaves[c.name].to(dtype).reshape(() if c.kind != "(N,)" else (N,))
        for c in step.coefficients if c.kind[0] == "("}
    lengths = torch.as_tensor(case.keywords.get("lengths", [T] * B))[:, None]

    rows: list[list[Tensor]] = []
    for t in range(T):
        c = x[t].where((lengths > t)[:, None], 0.0)
        for before, w in zip(past, synapses, strict=False):
            c = c + torch.einsum("bj,kjn->bkn", before, w)
        given = [one.clone() for one in (*c.unbind(1), *states, past[0])]  # may be written to
        found = case.function(*given, **coefficients)
        found = [one.expand(B, N) for one in ([found] if isinstance(found, Tensor) else found)]
        runs = lengths > t
        rows.append([one.where(runs, 0.0) for one in found])
        states = [new.where(runs, old) for new, old in zip(found, states, strict=False)]
        past = [new.where(runs, old) for new, old in zip((found[-1], *past), past, strict=False)]
    every = [torch.stack([row[i] for row in rows]) if rows else x[:, :, 0]
             for i in range(step.states + 1)]
    traces = every[:-1] if case.keywords["trace"] else []
    return [every[-1], torch.stack(list(past)), *states, *traces]


def _has_delay(case: Case, t: int) -> bool:
    delay = case.keywords["delay"]
    return t in delay if isinstance(delay, list) else bool((torch.as_tensor(delay) == t).any())


# -------------------------------------------------------------------------------------- comparing
def _call(case: Case, neuron: Neuron) -> list[Tensor]:
    leaves = case.leaves
    state = NeuronState({f"s{s}": leaves[f"s{s}"] for s in range(case.step.states)},
                        leaves["z"]) if "z" in leaves else None
    names = "w_in", "bias", *(one.name for one in case.step.coefficients)
    given = {name: leaves[name] for name in names if name in leaves}
    x: Any = pack_spikes(leaves["x"]) if case.is_packed else leaves["x"]
    if "lengths" in case.keywords and "w_in" not in given:  # the rest is not read
        runs = torch.arange(case.T)[:, None] < torch.as_tensor(case.keywords["lengths"])
        x = x.where(runs.view(case.T, case.B, *[1] * (x.dim() - 2)), torch.nan)
    spikes, after, *traces = recurrent(x, leaves.get("w_rec"), neuron, state=state, **given,
                                       **case.numbers, **case.keywords)
    assert list(after.states) == [f"s{s}" for s in range(case.step.states)]
    return [spikes, after.z, *after.states.values(), *(traces[0].values() if traces else ())]


def fused(case: Case) -> list[Tensor]:
    neuron = Neuron(case.function)
    found = _call(case, neuron)
    (_, kernel), = neuron.kernels.values()  # not the loop
    assert kernel.is_compiled == (os.environ.get("LSNN_COMPILE") != "0")
    return found


def unfused(case: Case) -> list[Tensor]:
    """The loop of recurrent."""
    with use_reference():
        return _call(case, Neuron(case.function))


def run(case: Case, function: Callable[[Case], list[Tensor]]) -> Outputs:
    values = function(case)
    shown = [one for one, is_shown in zip(values, case.shown, strict=False) if is_shown]
    return Outputs([one.detach() for one in values],
                   gradients_of(shown, case.leaves, case.is_dense))


def difference(case: Case, a: Outputs, b: Outputs, share: float = 1.0) -> str | None:
    """Words for what differs by more than this share of the tolerances."""
    S, step = case.step.states, case.step
    names = ["spikes", "z", *(f"state s{s}" for s in range(S)), *(f"trace s{s}" for s in range(S))]
    for i, (name, x, y) in enumerate(zip(names, a.values, b.values, strict=False)):
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{name}: {tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}"
        if step.is_exact or i < 2 and step.scale:
            if not torch.equal(x, y):
                return f"{name}: {int((x != y).sum())} of {x.numel()} differ"
        elif (apart := float((x - y).abs().max()) if x.numel() else 0.0) > share * STATES * 10 or (
                apart != apart):
            return f"{name}: {apart:.1e} apart"
    limit = share * (SINGLE if a.values[0].dtype == torch.float32 else GRADIENTS)
    for name in a.gradients.keys() | b.gradients.keys():
        x, y = a.gradients.get(name), b.gradients.get(name)
        if x is None and y is None:
            continue
        x, y = (torch.zeros_like(case.leaves[name]) if g is None else g for g in (x, y))
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"gradient of {name}: {tuple(x.shape)} {x.dtype}, {tuple(y.shape)} {y.dtype}"
        largest = float(y.abs().max()) if y.numel() else 0.0
        limit_here = max(limit, SINGLE / 100) if x.dtype == torch.float32 else limit
        apart = float((x.double() - y.double()).abs().max()) if x.numel() else 0.0
        if not apart <= limit_here * largest:
            return f"gradient of {name}: {apart:.1e} apart, of {largest:.1e}"
    return None


def is_stable(case: Case, wanted: Outputs) -> bool:
    """Whether rounding cannot change more than the tolerances allow."""
    for seed in range(10):
        with Noise(case.step, seed):
            if difference(case, run(case, loop), wanted, 0.3) is not None:
                return False
    return True


class Judged(NamedTuple):
    """fault: what is wrong, or None. outcome: "equal", "error" or "fault"."""

    outcome: str
    fault: str | None
    drawn: int  # cases drawn before one could be compared
    case: Case
    refused: list[str]  # of the cases before it


def judge(seed: int) -> Judged:
    """Draws until the loop is stable, and compares."""
    refused: list[str] = []
    for attempt in range(200):
        case = draw_case(seed, attempt)
        try:
            wanted = run(case, loop)
        except RuntimeError:  # of autograd: a value that it needs was changed in place
            continue
        values = [*wanted.values, *(g for g in wanted.gradients.values() if g is not None)]
        if not all(bool((one.abs() < 1e30).all()) for one in values):
            continue
        try:
            fault = (difference(case, run(case, fused), wanted)
                     or difference(case, run(case, unfused), wanted))
        except StepError as error:  # what no program can express
            refused.append(f"case {seed}, attempt {attempt}: {error}")
            continue
        except Exception as error:
            lines = traceback.format_exc().strip().splitlines()
            words = f"{type(error).__name__}: {error} ({lines[-3].strip()})"
            return Judged("error", words, attempt, case, refused)
        if fault is None or is_stable(case, wanted):
            return Judged("fault" if fault else "equal", fault, attempt, case, refused)
    raise AssertionError(f"case {seed}: no stable step in 200")


def main(argv: list[str]) -> int:
    """Prints the faults and returns 1 where there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--verbose", action="store_true", help="the step and call of each case")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    counts: Counter[str] = Counter()
    start = time.time()
    for seed in range(given.first, given.first + given.cases):
        done = judge(seed)
        counts[done.outcome] += 1
        counts["drawn"] += 1 + done.drawn
        counts["exact"] += done.case.step.is_exact
        counts["refused"] += len(done.refused)
        print("".join(f"refused: {text}\n" for text in done.refused), end="")
        if given.verbose or done.fault:
            print(f"case {seed}, attempt {done.drawn}: {done.outcome} {done.fault or ''}\n"
                  f"{done.case}\n{done.case.step.source if given.verbose else ''}", flush=True)
    print(f"cases {given.first} to {given.first + given.cases - 1}: {dict(counts)}, "
          f"{time.time() - start:.0f} s")
    return 1 if counts["fault"] or counts["error"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
