"""Build, test and time lsnn_ext on this machine's CUDA card.

    python -m bench.gpu                     everything, within eight minutes
    python -m bench.gpu --minutes 20        with time for every point and every sanitizer

It uses the packages of this Python and neither pip nor a network. Steps that fail hide none of the others; the exit
status is 0 if nothing failed and all that had to run has run, 1 otherwise, and 2 without a card.
"""
import argparse
import os
import signal
import sys
import time
from pathlib import Path

from bench.gpu import card as cards
from bench.gpu import report, suite
from bench.gpu.steps import Outcome, Processes, Runner, run_stages

SPARE = 10  # seconds for asking the card, the report and the plots
TAIL = 40  # lines of the output of a failed step that are shown


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1
    if not 0 < minutes < 24 * 60:
        raise argparse.ArgumentTypeError(f"expected minutes > 0, got {text!r}")
    return minutes


def main(arguments: list[str] | None = None, runner: Runner | None = None, card: cards.Card | None = None) -> int:
    """The exit status.  A runner and a card can be given, so that all this can be tried without one."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="for everything (default: 8)")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder for CSV, plots and summary")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        card = card or cards.find()
    except cards.NoCard as reason:
        print(f"bench.gpu: no card, so nothing was run: {reason}")
        return 2
    command = f"python -m bench.gpu --minutes {given.minutes:g}"
    print(f"{card.name}, driver {card.driver or 'unknown'}, torch {card.torch} with CUDA {card.cuda}", flush=True)
    work = suite.ROOT / suite.WORK
    work.mkdir(exist_ok=True)
    for left_from_before in (suite.ROWS, suite.PRIMITIVES):
        (suite.ROOT / left_from_before).unlink(missing_ok=True)

    def write(outcomes: list[Outcome]) -> None:  # after every stage: what is known is kept if the rest is cut off
        report.write(report.Report.of(card, command, outcomes, suite.ROOT / suite.ROWS,
                                      suite.ROOT / suite.PRIMITIVES), given.out)

    processes = Processes(suite.ROOT, work / "logs")

    def interrupted(number: int, _: object) -> None:
        processes.stop()
        sys.exit(128 + number)

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        outcomes = run_stages(
            suite.stages(card), runner or processes, 60 * given.minutes - SPARE - (time.monotonic() - start),
            workers=max(1, (os.cpu_count() or 1) // 2), say=lambda text: print(text, flush=True), after=write)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    final = report.Report.of(card, command, outcomes, suite.ROOT / suite.ROWS, suite.ROOT / suite.PRIMITIVES)
    _show(final, outcomes)
    for path in [*report.write(final, given.out), *report.plots(final, given.out)]:
        print(f"wrote {path}")
    bad = [outcome.name for outcome in outcomes if outcome.bad]
    print(f"bench.gpu: {'FAILED: ' + ', '.join(bad) if bad else 'passed'}; {time.monotonic() - start:.0f} s in all")
    return 1 if bad else 0


def _show(final: report.Report, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.state in ("failed", "late") and outcome.output:
            print(f"\n{outcome.name}, the end of its output ({suite.WORK}/logs has all of it):")
            print("\n".join(outcome.output.splitlines()[-TAIL:]))
    print()
    print(report.markdown(final))


if __name__ == "__main__":
    sys.exit(main())
