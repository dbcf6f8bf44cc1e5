"""Steps with a time limit each, in stages within one budget; a failure does not stop the others."""
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from bench.machine import without_paths

GRACE = 15  # seconds that a step which minds the time itself is given before it is stopped


def last_line(output: str) -> str:
    """The last line that a program prints, without the folders of this machine."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return without_paths(lines[-1].strip("= "))[:200] if lines else ""


@dataclass(frozen=True)
class Step:
    """Commands that run one after the other until one fails."""

    name: str
    commands: Sequence[Sequence[str]]  # "{seconds}" stands for the seconds that the step may take
    limit: float  # seconds after which it is stopped
    least: float  # seconds without which it is not worth starting
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # steps that must have passed
    required: bool = True  # whether the whole has failed when there was no time for it
    noted: bool = False  # what it finds is noted, and the whole has not failed by it
    skip: str = ""  # why it cannot run on this machine
    status: int = 0  # of a pass
    proof: str = ""  # a pattern in what it prints, without which this exit status is no pass
    read: Callable[[str], str] = last_line  # the note, from what it printed
    # Exit status and a pattern in what it prints where it finds no device; None: it needs none.
    without_device: tuple[int, str] | None = None
    dry: Sequence[Sequence[str]] = ()  # what a dry run starts; none: the commands themselves

    def in_dry_run(self, limit: float) -> "Step":
        """The same where it finds no device, and passes by saying so; limit: seconds."""
        status, proof = self.without_device or (self.status, self.proof)
        hidden = {"CUDA_VISIBLE_DEVICES": ""}  # also on a machine that has one
        return replace(self, commands=self.dry or self.commands, limit=limit, status=status,
                       proof=proof, environment=self.environment | hidden)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: passed, failed, late, skipped, dropped or not run."""

    step: Step
    state: str
    note: str
    seconds: float = 0.0
    output: str = ""

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def bad(self) -> bool:
        """Whether the whole has failed by this: whatever was found wrong, and what had to be seen
        but was not."""
        return not self.step.noted and (
            self.state == "failed" or (self.step.required and self.state != "passed"))


# A step and its seconds -> exit status, None when it was stopped at its limit, and what it printed.
Runner = Callable[[Step, float], tuple[int | None, str]]


def run_stages(stages: Sequence[Sequence[Step]], runner: Runner, budget: float, *, workers: int = 1,
               clock: Callable[[], float] = time.monotonic, say: Callable[[str], None] = print,
               after: Callable[[list[Outcome]], None] = lambda outcomes: None) -> list[Outcome]:
    """All outcomes in the order of the steps. The steps of a stage run side by side, as many as
    there are workers.

    A stage leaves the required ones after it the least that they need, if it has its own least
    itself.
    """
    end = clock() + budget
    outcomes: list[Outcome] = []
    for k, stage in enumerate(stages):
        least, *later = (max([step.least for step in one if step.required and not step.skip],
                             default=0.0) for one in stages[k:])
        stage_end = clock() + max(end - clock() - sum(later), min(least, end - clock()))
        passed = {outcome.name for outcome in outcomes if outcome.state == "passed"}

        def one(step: Step, stage_end: float = stage_end, passed: set[str] = passed) -> Outcome:
            outcome = _run_one(step, stage_end, passed, runner, clock, say)
            after_seconds = f" after {outcome.seconds:.0f} s" if outcome.seconds else ""
            say(f"--- {step.name}: {outcome.state}{after_seconds}: {outcome.note}")
            return outcome

        with ThreadPoolExecutor(max(1, min(workers, len(stage)))) as pool:
            outcomes += pool.map(one, stage)
        after(outcomes)
    return outcomes


def _run_one(step: Step, end: float, passed: set[str], runner: Runner, clock: Callable[[], float],
             say: Callable[[str], None]) -> Outcome:
    missing = [name for name in step.needs if name not in passed]
    begun = clock()
    allowed = min(step.limit, end - begun)
    if step.skip:
        return Outcome(step, "skipped", step.skip)
    if missing:
        return Outcome(step, "not run", f"needs {', '.join(missing)}")
    if allowed < step.least:
        return Outcome(step, "dropped",
                       f"no time: {max(allowed, 0):.0f} s are left, it needs {step.least:.0f}")
    say(f"=== {step.name} (at most {allowed:.0f} s)")
    try:
        status, output = runner(step, allowed)
    except OSError as error:  # a program that is not there fails its own step only
        program = os.path.basename(str(error.filename or "a program"))
        return Outcome(step, "failed", f"{program} could not be started: {error.strerror}",
                       clock() - begun)
    seconds = clock() - begun
    if status is None:
        return Outcome(step, "late", f"stopped at its limit; last line: {step.read(output)}",
                       seconds, output)
    # one that skips all it has to do also ends with status 0
    proved = re.search(step.proof, output) is not None
    return Outcome(step, "passed" if status == step.status and proved else "failed",
                   step.read(output), seconds, output)


class Processes:
    """Runs each command in a process group of its own, which is killed at the limit."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root, self.logs = root, logs
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        logs.mkdir(parents=True, exist_ok=True)

    def __call__(self, step: Step, seconds: float) -> tuple[int | None, str]:
        """Runs the commands; what they print goes to a log file and comes back as text."""
        path, end = self.logs / f"{step.name.replace(' ', '-')}.log", time.monotonic() + seconds
        environment = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONUNBUFFERED": "1",
                       **step.environment}
        status: int | None = 0
        with path.open("wb") as log:
            for command in step.commands:
                left = end - time.monotonic()
                words = [word.replace("{seconds}",
                                      f"{max(left - GRACE, 1):.0f}") for word in command]
                status = self._wait(words, environment, log, left)
                if status != 0:
                    break
        return status, path.read_text(errors="replace")

    def _wait(self, words: list[str], environment: dict[str, str], log: BinaryIO,
              seconds: float) -> int | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(words, cwd=self.root, env=environment, stdout=log,
                                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                       start_new_session=True)
            self._running.add(process)
        try:
            return process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            _kill(process)
            return None
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """Kills the running processes; later ones are not started."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started; waits ten seconds, since a process whose card does
    not answer may stay."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
