"""Time one recurrent layer, forward and backward, beside its peers.

    python -m bench                         ours on P, M and L at several firing rates
    python -m bench --peers                 and beside every peer that is installed
    python -m bench --shape 500,16,40,128   any other shape T,B,I,N
"""
import argparse
import os
from pathlib import Path

from bench.contestants import Shape

YARDSTICKS = {"P": Shape(784, 64, 80, 220), "M": Shape(1000, 32, 100, 512), "L": Shape(250, 32, 700, 1024)}


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


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the CSV and the plots."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("yardsticks", nargs="*", metavar="P|M|L", help="shapes to run (default: all, or just --shape)")
    parser.add_argument("--shape", type=_shape, action="append", default=[], metavar="T,B,I,N")
    parser.add_argument("--rates", type=_rates, default=[0.5, 1, 2, 5, 10, 20], help="firing rates of ours in %%")
    parser.add_argument("--peers", action="store_true", help="also time every peer that is installed")
    parser.add_argument("--threads", type=_at_least_one, help="cores to use (default: all)")
    parser.add_argument("--repeats", type=_at_least_one, default=15, help="rounds")
    parser.add_argument("--no-memory", action="store_true", help="leave out saved bytes and peak memory")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder for the CSV and the plots")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.yardsticks if name not in YARDSTICKS]
    if unknown:
        parser.error(f"yardsticks: expected some of {', '.join(YARDSTICKS)}, got {unknown[0]!r}")
    names = given.yardsticks or ([] if given.shape else list(YARDSTICKS))
    shapes = {name: YARDSTICKS[name] for name in names}
    shapes |= {",".join(map(str, shape)): shape for shape in given.shape}

    if given.threads is not None:
        limit_cores(given.threads)
    from bench import measure, report

    results: list[measure.Result] = []
    for name, shape in shapes.items():
        print(f"{name}: T={shape.T} B={shape.B} I={shape.I} N={shape.N}", flush=True)
        results += measure.measure(name, shape, given.rates, peers=given.peers, repeats=given.repeats,
                                   memory=not given.no_memory, say=lambda text: print(text, flush=True))
    print()
    print(report.table(results))
    for path in report.write(results, given.out):
        print(f"wrote {path}")


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
