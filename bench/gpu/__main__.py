"""Build, test and time lsnn_ext on this machine's CUDA card.

    python -m bench.gpu                     everything, within eight minutes
    python -m bench.gpu --minutes 20        with time for every point and every sanitizer
    python -m bench.gpu --only routes       one stage, and the builds that it needs
    python -m bench.gpu --only correctness  the first of three experiments on a new card: are the
                                            kernels right?
    python -m bench.gpu --only costs        the second one: primitives, each kernel, and the phases
                                            of a step of the paper's network
    python -m bench.gpu --only plan --minutes 20    the third one: forced against chosen routes
    python -m bench.gpu --dry-run           all that needs no card, on a machine with nvcc

It uses the packages of this Python and neither pip nor a network. Steps that fail hide none of the
others; the exit status is 0 if nothing failed and all that had to run has run, 1 otherwise, and 2
without a card, or in a dry run without nvcc.

A dry run builds everything that a card would need, for one architecture, and starts every program
and every stage, each of which has to say that it finds no device. It fails where one is missing.
"""
import datetime
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from bench import machine
from bench.arguments import make_parser, positive
from bench.gpu import card as cards
from bench.gpu import suite
from bench.gpu.report import Report
from bench.gpu.steps import Outcome, Processes, Runner, run_stages

SPARE = 10  # seconds for asking the card, the report and the plots
WORKERS = 2  # steps at a time; more processes than that only take turns on the card
TAIL = 40  # lines of the output of a failed step that are shown


def main(arguments: list[str] | None = None, runner: Runner | None = None,
         card: cards.Card | None = None) -> int:
    """The exit status.

    A runner and a card can be given, so that all this can be tried without one.
    """
    parser = make_parser("bench.gpu", __doc__)
    parser.add_argument("--minutes", type=positive, default=8.0, help="for everything (default: 8)")
    parser.add_argument("--only", type=suite.named_stages, metavar="STAGE,...",
                        help=f"of {', '.join(suite.STAGES)}, or an experiment of "
                        f"{', '.join(suite.EXPERIMENTS)} (default: all but "
                        f"{', '.join(suite.LONG)}; in a dry run all)")
    parser.add_argument("--out", type=Path, help="folder for CSV, plots, summary and the output of "
                        f"all steps (default: {machine.results('gpu', 'CARD')}, in a dry run "
                        f"{suite.WORK}/dry)")
    parser.add_argument("--dry-run", action="store_true", help="all that needs no card")
    given = parser.parse_args(arguments)
    all_stages = [name for name in suite.STAGES if given.dry_run or name not in suite.LONG]
    given.only = given.only or all_stages
    try:
        suite.selected(suite.dry_stages(), given.only)
    except ValueError as error:
        parser.error(f"--only: {error}")
    start = time.monotonic()
    if given.dry_run and not cards.find_tool("nvcc"):
        print("bench.gpu: no nvcc, so nothing was built; put it on PATH or name it in CUDA_HOME")
        return 2
    try:
        card = suite.STAND_IN if given.dry_run else card or cards.find()
    except cards.NoCard as reason:
        print(f"bench.gpu: no card, so nothing was run: {reason}")
        return 2
    out: Path = given.out or (suite.ROOT / suite.WORK / "dry" if given.dry_run
                              else machine.results("gpu", card.slug))
    print(card.name if given.dry_run else f"{card.name}, driver {card.driver}, torch "
          f"{card.torch} with CUDA {card.cuda}", flush=True)
    rows, *tables = (suite.ROOT / name for name in (suite.ROWS, *suite.TABLES))
    for path in (rows, *tables):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
    minutes = suite.DRY_LIMIT / 60 if given.dry_run else given.minutes
    what = "--dry-run" if given.dry_run else f"--minutes {minutes:g}"
    stages = () if set(given.only) == set(all_stages) else given.only
    if stages:
        what += f" --only {','.join(stages)}"
    empty = Report(card, f"python -m bench.gpu {what}", datetime.date.today().isoformat(), stages)

    # after every stage: what is known is kept if the rest is cut off
    def write(outcomes: list[Outcome]) -> None:
        empty.read(outcomes, rows, tables).write(out)

    processes = Processes(suite.ROOT, rows.parent / "logs")

    def interrupted(number: int, _: object) -> None:
        processes.stop()
        sys.exit(128 + number)

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT,
                                                                        signal.SIGTERM)}
    try:
        outcomes = run_stages(
            suite.selected(suite.dry_stages() if given.dry_run else suite.stages(card),
                           given.only, strict=bool(stages) and not given.dry_run),
            runner or processes, 60 * minutes - SPARE - (time.monotonic() - start),
            workers=min(WORKERS, max(1, (os.cpu_count() or 1) // 2)),
            say=partial(print, flush=True), after=write)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for outcome in outcomes:
        if outcome.state in ("failed", "late") and outcome.output:
            print(f"\n{outcome.name}, the end of its output ({empty.log} has all of it):")
            print("\n".join(outcome.output.splitlines()[-TAIL:]))
    final = empty.read(outcomes, rows, tables)
    print(f"\n{final.markdown()}")
    for path in [*final.write(out), *final.plots(out)]:
        print(f"wrote {path}")
    bad = [outcome.name for outcome in outcomes if outcome.bad]
    print(f"bench.gpu: {'FAILED: ' + ', '.join(bad) if bad else 'passed'}; "
          f"{time.monotonic() - start:.0f} s in all")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
