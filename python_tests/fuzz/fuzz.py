"""Calls of all that the library shows, in order and out of order: refused in words, or with a
defined result.

    cd python_tests/fuzz
    python fuzz.py --cases 10000            # all kinds of calls
    python fuzz.py --seed 3 --only 41       # one case again, with what it is called with
    python fuzz.py --calls alif_backward    # calls of one kind

A case is run twice, and fresh memory is filled with other bytes each time: results that differ hold
memory that nobody wrote. The cases run in a process of their own, whose end, by a signal or for
want of a sign of life, is a fault.
"""

import argparse
import faulthandler
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

from fuzz_judge import KINDS, judge
from lsnn_ext import _ops

MEMORY = 1 << 30  # what the cases may ask for beyond what the process holds before them
KEPT_MB = "256"  # of it for blocks that the library keeps
TOGETHER = 500  # cases of one process
SILENCE = 600.0  # seconds without a sign of life, after which a case counts as hanging
# Every freed block goes where malloc fills it, and threads do not spin while they wait.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "OMP_WAIT_POLICY": "passive"}

Words = dict[str, Any]


class Fault(NamedTuple):
    """What a case showed that it must not."""

    case: int
    what: str
    call: str

    def __str__(self) -> str:
        return f"case {self.case}: {self.what}\n    {self.call}"


def _limit_memory() -> None:
    """Makes allocations fail that would make the machine swap; threads are there before."""
    os.environ["LSNN_CACHE_MB"] = KEPT_MB
    for n in (3, 2, 1):
        torch.set_num_threads(n)
        torch.rand(1 << 20).sigmoid()
    with open("/proc/self/status") as status:
        held = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, resource.RLIM_INFINITY))


def _work(seed: int, cases: range, kinds: list[str], out: int) -> None:
    """A process of its own: lines of JSON, some before each case and one after it."""

    def say(**words: Any) -> None:
        os.write(out, (json.dumps(words) + "\n").encode())

    _limit_memory()
    for case in cases:
        say(case=case, call="")
        outcome = judge(seed, case, kinds, lambda call, case=case: say(case=case, call=call))  # type: ignore[misc]
        done = "fault" if outcome.fault else "refused" if outcome.lines is None else "result"
        say(case=case, done=done, text=outcome.fault or outcome.text)


def _started(seed: int, cases: range, kinds: list[str], errors: int) -> tuple[int, int]:
    """A process for these cases, and where to read what it says. No thread has run in this one, so
    that it may fork."""
    source, out = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(out)
        return child, source
    os.dup2(errors, 2)
    faulthandler.enable()
    try:
        _work(seed, cases, kinds, out)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def _lines(source: int, silence: float) -> Iterator[Words | None]:
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


def _batch(seed: int, cases: range, kinds: list[str], show: Callable[[Words], None],
           silence: float) -> Iterator[tuple[Words, Fault | None]]:
    """What each case says in the end, as far as one process gets."""
    with tempfile.TemporaryFile() as errors:
        child, source = _started(seed, cases, kinds, errors.fileno())
        at, call, hangs = cases.start, "", False
        for words in _lines(source, silence):
            if words is None:
                hangs = True
                os.kill(child, signal.SIGKILL)
                break
            at, call = words["case"], words.get("call", call)
            if "done" in words:
                yield words, Fault(at, words["text"], call) if words["done"] == "fault" else None
                show({**words, "call": call})
        os.close(source)
        _, status = os.waitpid(child, 0)
        if status:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            by = f" by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else ""
            # of a sanitizer
            short = [line for line in said.splitlines() if line.startswith("SUMMARY")]
            words = {"case": at, "done": "fault",
                     "text": " ".join(["hangs" if hangs else f"ends{by}", *short])}
            yield words, Fault(at, f"{words['text']}: {said[-4000:]}", call)
            show({**words, "call": call})


def hunt(seed: int, cases: range, kinds: list[str], show: Callable[[Words], None] = lambda _: None,
         silence: float = SILENCE) -> tuple[list[Fault], Counter[str]]:
    """All faults of these cases, and how many were refused, had a result or a fault."""
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    while cases:
        at = cases.start
        for words, fault in _batch(seed, cases[:TOGETHER], kinds, show, silence):
            at = words["case"] + 1
            counts[words["done"]] += 1
            faults += [] if fault is None else [fault]
        cases = range(at, cases.stop)
    return faults, counts


def main(argv: list[str]) -> int:
    """Prints the faults and returns 1 where there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--calls", nargs="*", choices=[*KINDS], default=[*KINDS], metavar="KIND",
                        help=f"kinds of calls, with which a case is another call: "
                             f"{', '.join(KINDS)}")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    given = parser.parse_args(argv)
    if not _ops.available:
        print("there is nothing to call: the compiled part is missing")
        return 0
    if not ENVIRONMENT.items() <= os.environ.items():
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, os.path.abspath(__file__), *argv])
    first, count = (given.first, given.cases) if given.only is None else (given.only, 1)
    cases = range(first, first + count)

    def show(words: Words) -> None:
        if given.verbose or given.only is not None or words["done"] == "fault":
            print(f"{words['case']} {words['done']} {words['text']}\n    {words['call']}",
                  flush=True)

    faults, counts = hunt(given.seed, cases, given.calls, show)
    for fault in faults:
        print(fault)
    kinds = "" if len(given.calls) == len(KINDS) else f" --calls {' '.join(given.calls)}"
    for fault in faults:
        print(f"again: python {sys.argv[0]} --seed {given.seed} --only {fault.case}{kinds}")
    module = os.path.relpath(_ops._C.__file__)
    print(f"{module}, seed {given.seed}, cases {cases.start} to {cases.stop - 1}: {dict(counts)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
