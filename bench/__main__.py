"""Time one recurrent layer, forward and backward, beside its peers, and make a page of it.

    python -m bench --peers                 everything: ours and every peer that is installed on all yardsticks, memory,
                                            the limits of this machine, all sweeps
    python -m bench                         the same without peers
    python -m bench P M --peers             some yardsticks; no sweeps
    python -m bench --shape 500,16,40,128   any other shape T,B,I,N
    python -m bench --sweep N,threads       sweeps alone
"""
import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from bench.problem import YARDSTICKS, Shape, custom

SWEEPS = ("N", "B", "T", "rate", "active", "threads")


def _shape(text: str) -> Shape:
    try:
        shape = Shape(*(int(number) for number in text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected four whole numbers T,B,I,N, got {text!r}") from None
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers >= 1, got {text!r}")
    return shape


def _rates(text: str) -> list[float]:
    try:
        rates = [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected percentages with commas between them, got {text!r}") from None
    if not all(0 < rate < 50 for rate in rates):
        raise argparse.ArgumentTypeError(f"expected percentages between 0 and 50, got {text!r}")
    return rates


def _sweeps(text: str) -> list[str]:
    names = {"all": list(SWEEPS), "none": []}.get(text, text.split(","))
    unknown = [name for name in names if name not in SWEEPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected all, none or some of {','.join(SWEEPS)}, got {unknown[0]!r}")
    return names


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yardsticks", nargs="*", metavar="|".join(YARDSTICKS),
                        help="shapes to run (default: all, or just --shape or --sweep)")
    parser.add_argument("--shape", type=_shape, action="append", default=[], metavar="T,B,I,N")
    parser.add_argument("--rates", type=_rates, default=[0.5, 1, 2, 5, 10, 20], help="firing rates of ours in %%")
    parser.add_argument("--peers", action="store_true", help="also time every peer that is installed")
    parser.add_argument("--sweep", type=_sweeps, metavar=",".join(SWEEPS), help="what is varied, or all or none "
                        "(default: all with all yardsticks, else none)")
    parser.add_argument("--sweep-shape", type=_shape, default=None, metavar="T,B,I,N", help="what sweeps start from")
    parser.add_argument("--threads", type=_at_least_one, help="cores to use (default: all)")
    parser.add_argument("--repeats", type=_at_least_one, default=15, help="rounds")
    parser.add_argument("--seconds", type=_positive, default=40.0, help="what the forward+backward passes of one "
                        "contestant on one yardstick may take; it takes part in fewer rounds to stay below, and a peer "
                        "that needs more for a single one is left out (default: %(default)g)")
    parser.add_argument("--memory-limit", type=_positive, metavar="GB", help="a peer that would need more is left out "
                        "(default: what is free, less 2)")
    parser.add_argument("--no-memory", action="store_true", help="leave out saved bytes and peak memory")
    parser.add_argument("--out", type=Path, help="folder for page, CSVs and plots (default: bench/results/MACHINE)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the CSVs, the plots and the page."""
    parser = _parser()
    given = parser.parse_args(arguments)
    unknown = [name for name in given.yardsticks if name not in YARDSTICKS]
    if unknown:
        parser.error(f"yardsticks: expected some of {', '.join(YARDSTICKS)}, got {unknown[0]!r}")
    everything = not (given.yardsticks or given.shape or given.sweep)
    yardsticks = [YARDSTICKS[name] for name in (YARDSTICKS if everything else given.yardsticks)]
    yardsticks += [custom(shape) for shape in given.shape]
    sweeps = SWEEPS if everything and given.sweep is None else given.sweep or ()

    if sweeps:  # layers of many sizes alternate, and each should find its memory again, as it would alone
        os.environ.setdefault("LSNN_CACHE_MB", "8192")
    from bench import machine

    out = given.out or Path("bench/results") / machine.slug()  # named before cores are taken away
    if given.threads is not None:
        limit_cores(given.threads)
    from bench import measure, memory, page, report, roofline, sweep

    def say(text: str) -> None:
        print(text, flush=True)

    free = memory.free_bytes() - memory.SPARE_BYTES
    limits = measure.Limits(given.seconds, free if given.memory_limit is None else given.memory_limit * memory.GB)
    say(f"limits: {limits.seconds:g} s per contestant and yardstick, {limits.bytes / memory.GB:.1f} GB of memory")
    results: list[measure.Result] = []
    skipped: list[measure.Skip] = []
    points: list[sweep.Point] = []
    rates = roofline.rates()
    for rate in rates:
        say(f"  {rate.what}: {rate.value:.1f} {rate.unit}, {rate.how}")
    try:
        for yardstick in yardsticks:
            T, B, I, N = yardstick.shape  # noqa: E741
            say(f"{yardstick.name}: T={T} B={B} I={I} N={N}, {100 * yardstick.input_rate:g} % input spikes")
            more, left_out = measure.measure(yardstick, given.rates, peers=given.peers, repeats=given.repeats,
                                             memory=not given.no_memory, limits=limits, say=say)
            results += more
            skipped += left_out
        for name in sweeps:
            line = sweep.sweep(name, given.sweep_shape or sweep.BASE, repeats=given.repeats, limits=limits, say=say)
            points += line
            _say_slopes(line, say)
    finally:  # what was measured before something stopped the run is kept
        bounds = roofline.bounds(results, rates)
        if results:
            say("\n" + report.table(results))
        for bound in bounds:
            say(f"{bound.yardstick}: {measure.OURS} takes {bound.ours_by_dense:.2f} times the dense bound of this "
                f"machine, {bound.ours_by_active:.2f} times that of active rows")
        if results or points:
            facts = machine.facts(_command(sys.argv[1:] if arguments is None else arguments))
            for path in [*report.write(out, facts, results, skipped, rates, bounds, points), page.write_page(out)]:
                say(f"wrote {path}")


def _say_slopes(points: list, say: Callable[[str], None]) -> None:  # type: ignore[type-arg]  # of sweep.Point
    from bench import measure, sweep

    for timed in measure.PASSES:
        line = sorted((p for p in points if p.timed == timed), key=lambda p: p.x)
        say(f"  {timed}: {', '.join(f'{p.x:g}: {p.median_ms:.2f} ms' for p in line)}")
        say(f"  {timed}: {sweep.slope_text(points, timed)}")


def _command(arguments: list[str]) -> str:
    """What measures this again; where it was written is left out, since that is a path of this machine."""
    kept = list(arguments)
    while "--out" in kept:
        at = kept.index("--out")
        del kept[at:at + 2]
    return shlex.join(["python", "-m", "bench", *(text for text in kept if not text.startswith("--out="))])


def limit_cores(threads: int) -> None:
    """Keep this process and all pools that it starts later to so many cores: jax has no other switch."""
    import torch

    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
