"""Calls of all that the library shows, in order and out of order: each is refused in words or has a defined result.

    python python_tests/fuzz.py --cases 10000            # all kinds of calls
    python python_tests/fuzz.py --seed 3 --only 41       # one case again, with what it is called with
    python python_tests/fuzz.py --calls alif_backward    # calls of one kind

A case is run twice, and fresh memory is filled with other bytes each time: results that differ hold memory that nobody
wrote. The cases run in a process of their own, whose end, by a signal or for want of a sign of life, is a fault too.
"""

import argparse
import ctypes
import faulthandler
import hashlib
import json
import os
import resource
import selectors
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fuzz_calls
import fuzz_modules
from fuzz_calls import Call, Draw
from fuzz_mutations import leaves, mapped, mutate
from lsnn_ext import _library

KINDS: dict[str, Callable[[Draw], Call]] = {
    maker.__name__: maker for maker in (
        fuzz_calls.alif_forward, fuzz_calls.alif_backward, fuzz_calls.linear_events, fuzz_calls.linear_events_backward,
        fuzz_calls.buffer, fuzz_calls.alif, fuzz_calls.layer, fuzz_calls.linear, fuzz_calls.leaky_readout,
        fuzz_calls.pack_spikes, fuzz_calls.packed_numbers, fuzz_modules.module, fuzz_modules.plan, fuzz_modules.ready)
}  # fmt: skip
SHARES = {"alif_forward": 6, "alif_backward": 7, "alif": 5, "layer": 6, "module": 6, "linear_events": 2, "linear_events_backward": 2,
          "linear": 2, "leaky_readout": 2}  # fmt: skip
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, MemoryError, OverflowError)
MEMORY = 1 << 30  # what a case may ask for beyond what the process holds before it
SILENCE = 600.0  # seconds without a sign of life, after which a case counts as hanging
PATTERNS = ((0xA5, 1e30), (0x01, float("nan")))  # of malloc, whose fresh bytes are the complement; of large blocks
TUNABLES = "glibc.malloc.tcache_count=0"  # so that every freed block goes where malloc fills it


class NotMade(Exception):
    """Sizes that no tensor can have."""


class Fault(NamedTuple):
    """What a case showed that it must not."""

    case: int
    what: str
    call: str

    def __str__(self) -> str:
        return f"case {self.case}: {self.what}\n    {self.call}"


# ------------------------------------------------------------------------------------------------------------ one case
def draw(seed: int, case: int, kinds: list[str]) -> tuple[Call, bool, bool]:
    """The call, whether it is in order as it is, and whether it differs from one in order by layouts alone."""
    d = Draw(seed, case)
    kind = d.random.choices(kinds, [SHARES.get(kind, 1) for kind in kinds])[0]
    torch.set_num_threads(d.one_of(1, 1, 2, 3))
    try:
        call = KINDS[kind](d)
        in_order = not d.odd
        d.odd = True
        same = mutate(d, call)
    except Exception as error:
        raise (NotMade if d.odd else type(error))(f"{kind}: {type(error).__name__}: {error}") from error
    return call, in_order and not call.changes, same and in_order and bool(call.changes)


def poison(number: int) -> None:
    """Fills what the next allocations get."""
    byte, value = PATTERNS[number]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-6, byte)  # M_PERTURB
    like = torch.zeros(1)
    blocks = [torch.ops.lsnn.buffer(like, mb, 1 << 18) for mb in (2, 2, 2, 2, 4, 4, 6, 8, 12)]
    for block in blocks:
        block.fill_(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (found for part in value.values() for found in _tensors(part))
    elif isinstance(value, tuple | list):
        yield from (found for part in value for found in _tensors(part))


def _digest(value: Any, contents: bool = True) -> list[str]:
    """A line for each tensor, the same where all bits are; a NaN is a NaN."""
    lines = []
    for t in _tensors(value):
        t = t.detach()
        line = f"{t.device} {t.dtype} {tuple(t.shape)}"
        if t.device.type == "cpu" and t.layout == torch.strided and contents and t.numel():
            if any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True)):
                t = t[tuple(slice(1) if stride == 0 else slice(None) for stride in t.stride())]
            t = t.resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
            if t.is_floating_point():
                t = torch.where(t.isnan(), torch.full((), float("nan"), dtype=t.dtype), t)
            line += " " + hashlib.sha1(t.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        lines.append(line)
    return lines


def _gradients(call: Call, out: Any) -> list[Tensor | None]:
    """Of all that is differentiable, for all that wants one, by a sum with weights of several layouts."""
    wanted = [leaf for leaf in _tensors([value for _, value in leaves(call.args)]) if leaf.requires_grad]
    wanted += [t for t in (out[1].values() if call.name.endswith((".forward", ".step")) else ()) if t.requires_grad]
    ends = [t for t in _tensors(out) if t.requires_grad and t.is_floating_point() and not t.is_leaf]
    if not ends or not wanted:
        return []
    weights = []
    for k, t in enumerate(ends):
        ones = torch.ones((), dtype=t.dtype, device=t.device).expand(t.shape)
        weights.append([ones, ones.clone(memory_format=torch.contiguous_format), ones.mT.contiguous().mT if t.dim() > 1 else ones][k % 3])
    return list(torch.autograd.grad(ends, wanted, weights, allow_unused=True))


class Outcome(NamedTuple):
    lines: list[str] | None  # of the results; None: refused
    text: str  # of the refusal
    fault: str  # or ""


def _run(call: Call, in_order: bool) -> Outcome:
    """Runs it once."""
    given = list(_tensors([value for _, value in leaves(call.args)]))
    some_meta, before = any(t.is_meta for t in given), _digest(given)
    try:
        out = call.function(**call.args)
        found = [out, _gradients(call, out) if call.gradients else []]
    except REFUSALS as error:
        text = f"{type(error).__name__}: {error}"
        wrong = "refused without a word" if not str(error).strip() else "refused, though in order" if in_order else ""
        wrong = "an assertion inside failed" if "INTERNAL ASSERT" in text else wrong
        return Outcome(None, text, f"{wrong}: {text}" if wrong else "")
    except Exception as error:  # a crash in Python, whose words are about something else
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        return Outcome(None, "", f"unclear {type(error).__name__} at {where}: {error}")
    lines = _digest(found, call.contents)
    if some_meta and any(not t.is_meta for t in _tensors(found[0] if not call.name.endswith((".forward", ".step")) else found[0][0])):
        return Outcome(lines, "", "a result in memory, though an argument has none (meta)")
    if _digest(given) != before:
        return Outcome(lines, "", "an argument was changed")
    return Outcome(lines, "", "")


def _dense(t: Tensor) -> Tensor:
    return t.detach().clone(memory_format=torch.contiguous_format).requires_grad_(t.requires_grad)


def judge(seed: int, case: int, kinds: list[str], say: Callable[[str], None]) -> Outcome:
    """Runs a case twice, with other bytes in fresh memory, and once more with dense tensors where only layouts differ."""
    outcomes, given = [], []
    in_order, same = False, False
    for number in range(len(PATTERNS)):
        poison(number)
        try:
            call, in_order, same = draw(seed, case, kinds)
        except Exception as error:  # sizes that no tensor can have, and the like
            text = f"{type(error).__name__}: {error}"
            odd = isinstance(error, NotMade)
            return Outcome(None, f"not made: {text}", "" if odd else f"not made: {text}")
        if not number:
            say(describe(call))
        given.append(_digest([value for _, value in leaves(call.args)]))
        outcomes.append(_run(call, in_order))
        if outcomes[-1].fault:
            return outcomes[-1]
    first, second = outcomes
    if given[0] != given[1]:
        return first._replace(fault=f"what was saved for it has memory that nobody wrote: {_difference(*given)}")
    if (first.lines is None) != (second.lines is None):
        return first._replace(fault=f"refused or not, by chance: {first.text or second.text}")
    if first.lines is not None and second.lines is not None and first.lines != second.lines:
        return first._replace(fault=f"a result has memory that nobody wrote: {_difference(first.lines, second.lines)}")
    if same and call.raw and first.lines is not None:
        call, _, _ = draw(seed, case, kinds)
        call.args = mapped(call.args, _dense)
        dense = _run(call, False)
        if dense.lines is None:
            return first._replace(fault=f"refused where dense, not otherwise: {dense.text}")
        if dense.lines != first.lines:
            return first._replace(fault=f"other results where dense: {_difference(first.lines, dense.lines)}")
    return first


def _difference(first: list[str], second: list[str]) -> str:
    pairs = list(zip(first, second, strict=False))
    return "; ".join(f"tensor {k} of {len(pairs)}: {a.rsplit(' ', 1)[0]}" for k, (a, b) in enumerate(pairs) if a != b)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    kind = str(value.dtype).removeprefix("torch.")
    layout = "" if value.layout != torch.strided or value.is_contiguous() else f" strides {value.stride()}"
    where = "" if value.device.type == "cpu" else f" {value.device}"
    return f"{kind}{tuple(value.shape)}{layout}{where}{' grad' if value.requires_grad else ''}"


def describe(call: Call) -> str:
    shown = ", ".join(f"{'.'.join(map(str, path))}={_described(value)}" for path, value in leaves(call.args))
    return f"{call.name}({shown}) changed: {call.changes or 'nothing'}"


# --------------------------------------------------------------------------------------------------------- all of them
def _limit_memory() -> None:
    """Makes allocations fail that would make the machine swap; threads and caches are there before."""
    torch.set_num_threads(3)
    for n in (3, 2, 1):
        torch.set_num_threads(n)
        torch.rand(1 << 20).sigmoid()
    with open("/proc/self/status") as status:
        held = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, resource.RLIM_INFINITY))


def _work(seed: int, cases: range, kinds: list[str], out: int) -> None:
    """A process of its own: two lines of JSON for each case, one before it and one after it."""
    def say(**words: Any) -> None:
        os.write(out, (json.dumps(words) + "\n").encode())

    _limit_memory()
    for case in cases:
        say(case=case)
        outcome = judge(seed, case, kinds, lambda text, case=case: say(case=case, call=text))
        say(case=case, done="fault" if outcome.fault else "refused" if outcome.lines is None else "result",
            text=outcome.fault or outcome.text)


def hunt(seed: int, cases: range, kinds: list[str], show: Callable[[dict[str, Any]], None] = lambda _: None,
         silence: float = SILENCE) -> tuple[list[Fault], Counter[str]]:
    """All faults of these cases, and how many were refused and so on."""
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    while cases:
        with tempfile.TemporaryFile() as errors:
            source, out = os.pipe()
            sys.stdout.flush()
            child = os.fork()  # nothing has used a thread so far
            if not child:
                os.dup2(errors.fileno(), 2)
                faulthandler.enable()
                try:
                    _work(seed, cases, kinds, out)
                    os._exit(0)
                finally:
                    traceback.print_exc()
                    os._exit(1)
            os.close(out)
            at, call, done, hangs = cases.start, "", cases.start - 1, False
            for words in _lines(source, silence):
                if words is None:
                    hangs = True
                    os.kill(child, signal.SIGKILL)
                    break
                at, call = words["case"], words.get("call", call if words["case"] == at else "")
                if "done" in words:
                    done = at
                    counts[words["done"]] += 1
                    faults += [Fault(at, words["text"], call)] if words["done"] == "fault" else []
                    show({**words, "call": call})
            os.close(source)
            _, status = os.waitpid(child, 0)
            if status:
                errors.seek(0)
                by = f"ends by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "ends"
                text = f"{'hangs' if hangs else by}: {errors.read().decode(errors='replace')[-3000:].strip()}"
                faults.append(Fault(at, text, call))
                counts["fault"] += 1
                show({"case": at, "done": "fault", "text": text.partition(":")[0], "call": call})
            cases = range(max(done, at if status else done) + 1, cases.stop) if status else range(0)
    return faults, counts


def _lines(source: int, silence: float) -> Iterator[dict[str, Any] | None]:
    """What the process says until it ends; None where it says nothing for too long."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while selector.select(silence):
            got = os.read(source, 1 << 16)
            if not got:
                return
            *lines, rest = (rest + got).split(b"\n")
            yield from map(json.loads, lines)
    yield None


def main(argv: list[str]) -> int:
    """Prints the faults and returns 1 where there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--calls", nargs="*", choices=[*KINDS], default=[*KINDS], help="the kinds of calls; a case is another call then")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    given = parser.parse_args(argv)
    if not _library.available:
        print("there is nothing to call: the compiled part is missing")
        return 0
    if TUNABLES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), *argv])
    cases = range(given.first, given.first + given.cases) if given.only is None else range(given.only, given.only + 1)

    def show(words: dict[str, Any]) -> None:
        if given.verbose or given.only is not None or words["done"] == "fault":
            print(f"{words['case']} {words['done']} {words['text']}\n    {words['call']}", flush=True)

    faults, counts = hunt(given.seed, cases, given.calls, show)
    for fault in faults:
        print(fault)
    for fault in faults:
        kinds = "" if len(given.calls) == len(KINDS) else f" --calls {' '.join(given.calls)}"
        print(f"again: python python_tests/fuzz.py --seed {given.seed} --only {fault.case}{kinds}")
    print(f"seed {given.seed}, cases {cases.start} to {cases.stop - 1}: {dict(counts)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
