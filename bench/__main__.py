"""Times recurrent layers and their peers, forward and backward, and writes a page of the results.

    python -m bench --peers                 everything: whole models like for like, then ours (the
                                            paper's network) and every peer that is installed on all
                                            yardsticks, memory, the machine's limits, all sweeps
    python -m bench                         the same without peers; only loops like for like
    python -m bench --like-for-like         models of every peer that is installed against the same
                                            model with ours, and nothing else
    python -m bench --any-neuron            steps written in PyTorch against loops, torch.compile,
                                            jax and the models of the package, and nothing else
    python -m bench P M --peers             some yardsticks; no sweeps
    python -m bench --shape 500,16,40,128   any other shape T,B,I,N
    python -m bench --sweep N,threads       only sweeps
"""
import argparse
import os
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from bench import any_neuron, like_for_like, machine, measure, page, roofline, sweep
from bench.arguments import at_least_one, make_parser, names_among, positive
from bench.limits import GB, SPARE_BYTES, Limits
from bench.page_alike import summary
from bench.page_any_neuron import run as run_any_neuron
from bench.problem import YARDSTICKS, Shape, Yardstick, custom
from lsnn_ext.tools.memory import available_bytes


def shape_of(text: str) -> Shape:
    """The four sizes of a yardstick in words, as an argument of argparse."""
    try:
        shape = Shape(*(int(number) for number in text.split(",")))
    except (TypeError, ValueError):
        shape = Shape(0, 0, 0, 0)
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected four whole numbers T,B,I,N >= 1, got {text!r}")
    return shape


def _rates(text: str) -> list[float]:
    rates = [positive(number) for number in text.split(",")]
    if max(rates) >= 50:
        raise argparse.ArgumentTypeError(f"expected percentages below 50, got {text!r}")
    return rates


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("bench", __doc__)
    parser.add_argument("yardsticks", nargs="*", type=names_among(YARDSTICKS),
                        metavar="|".join(YARDSTICKS),
                        help="shapes to run (default: all, or just --shape or --sweep)")
    parser.add_argument("--yardsticks", type=names_among(YARDSTICKS), default=[],
                        dest="named", metavar="|".join(YARDSTICKS), help="the same, with commas")
    parser.add_argument("--like-for-like", action="store_true",
                        help="compare whole models with the same equations, and nothing else")
    parser.add_argument("--any-neuron", action="store_true",
                        help="compare neurons whose step is written in PyTorch, and nothing else")
    parser.add_argument("--neurons", type=names_among(any_neuron.KINDS), metavar="NAMES",
                        help=f"of --any-neuron: some of {','.join(any_neuron.KINDS)}")
    parser.add_argument("--shape", type=shape_of, action="append", default=[], metavar="T,B,I,N")
    parser.add_argument("--rates", type=_rates, default=[0.5, 1, 2, 5, 10, 20],
                        help="firing rates of ours in %%")
    parser.add_argument("--peers", action="store_true",
                        help="also time every peer that is installed")
    parser.add_argument("--sweep", type=names_among(("all", "none", *sweep.KINDS)),
                        metavar=",".join(sweep.KINDS),
                        help="what is varied, or all or none "
                        "(default: all with all yardsticks, else none)")
    parser.add_argument("--sweep-shape", type=shape_of, default=sweep.BASE, metavar="T,B,I,N",
                        help="what sweeps start from")
    parser.add_argument("--threads", type=at_least_one, help="cores to use (default: all)")
    parser.add_argument("--repeats", type=at_least_one, default=15, help="rounds")
    parser.add_argument("--seconds", type=positive, default=40.0,
                        help="what the forward+backward passes of one "
                        "contestant on one yardstick may take: it takes part in fewer rounds to "
                        "stay below, and in one at least (default: %(default)g)")
    parser.add_argument("--memory-limit", type=positive, metavar="GB",
                        help="a peer that would need more is left out "
                        "(default: what is free, less 2)")
    parser.add_argument("--no-memory", action="store_true",
                        help="leave out saved bytes and peak memory")
    parser.add_argument("--out", type=Path,
                        help="folder for page, CSVs and plots (default: "
                        "bench/results/layer/MACHINE, like_for_like/ or any_neuron/MACHINE)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, write the CSVs, the plots and the page."""
    given = _parser().parse_args(arguments)
    named = list(dict.fromkeys(chain(*given.yardsticks, given.named)))
    swept = [name for name in sweep.KINDS if {name, "all"} & set(given.sweep or ())]
    everything = not (named or given.shape or swept)
    yardsticks = [YARDSTICKS[name] for name in (YARDSTICKS if everything else named)]
    yardsticks += [custom(shape) for shape in given.shape]
    sweeps = list(sweep.KINDS) if everything and given.sweep is None else swept
    if given.like_for_like:
        sweeps = []
    if sweeps:  # layers of many sizes alternate, and each should find its memory again
        os.environ.setdefault("LSNN_CACHE_MB", "8192")
    # named before cores are taken away
    out = given.out or machine.results("any_neuron" if given.any_neuron else "like_for_like"
                                       if given.like_for_like else "layer")
    if given.threads is not None:
        limit_cores(given.threads)

    say = partial(print, flush=True)
    command = machine.command("bench", arguments)
    if given.any_neuron:
        run_any_neuron(out, [] if everything else yardsticks, command,
                       given.neurons or list(any_neuron.KINDS), repeats=given.repeats,
                       seconds=given.seconds, say=say)
        return

    free = available_bytes(torch.device("cpu")) - SPARE_BYTES
    limits = Limits(given.seconds,
                    free if given.memory_limit is None else given.memory_limit * GB)
    say(f"limits: {limits.seconds:g} s per contestant and yardstick, "
        f"{limits.bytes / GB:.1f} GB of memory")
    run = page.Run(rates=[] if given.like_for_like else roofline.rates())
    for rate in run.rates:
        say(f"  {rate.what}: {rate.value:.1f} {rate.unit}, {rate.how}")
    pairs = like_for_like.names_of(given.peers or given.like_for_like)
    try:
        for yardstick in yardsticks:
            if not yardstick.like_for_like and not (given.like_for_like and named):
                continue
            say(f"like for like, {_described(yardstick)}")
            for name in pairs:
                lines, left = like_for_like.measure(yardstick, [name], repeats=given.repeats,
                                                    limits=limits, say=say)
                run.alike += lines
                run.alike_skipped += left
        for yardstick in [] if given.like_for_like else yardsticks:
            say(_described(yardstick))
            more, left_out = measure.measure(yardstick, given.rates, peers=given.peers,
                                             repeats=given.repeats, memory=not given.no_memory,
                                             limits=limits, say=say)
            say(page.times(more))
            run.results += more
            run.skipped += left_out
        for name in sweeps:
            line = sweep.sweep(name, given.sweep_shape, repeats=given.repeats, limits=limits,
                               say=say)
            run.points += line
            for timed in measure.PASSES:
                medians = ", ".join(f"{p.x:g}: {p.median_ms:.2f} ms" for p in line
                                    if p.timed == timed)
                say(f"  {timed}: {medians}: {sweep.slope_text(line, timed)}")
    finally:  # what was measured before something stopped the run is kept
        if run.alike:
            say(summary(run.alike))
        if run.results or run.points or run.alike:
            for path in page.write(out, machine.facts(command), run):
                say(f"wrote {path}")


def _described(yardstick: Yardstick) -> str:
    return f"{yardstick.name}: {yardstick.shape}, {100 * yardstick.input_rate:g} % input spikes"


def limit_cores(threads: int) -> None:
    """Limits this process and the pools that it starts later to this number of cores; jax has no
    other switch."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
