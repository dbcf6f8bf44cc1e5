"""A comparison like for like on a page and in print."""
import inspect
from collections.abc import Sequence

from bench import like_for_like
from bench.like_for_like import WAY, Alike
from bench.limits import Skip
from bench.measure import PASSES
from bench.pairs import PAIRS
from bench.peers import INDEXED
from bench.tables import left_out, markdown, number, summarize


def section(lines: Sequence[Alike], skipped: Sequence[Skip]) -> str:
    """Of the page: a table for each yardstick, and what each pair is."""
    parts = ["## Like for like: the same equations on both sides",
             inspect.cleandoc(like_for_like.__doc__ or ""), """\
Times are medians in ms, in brackets minima; float32. "Times faster" is theirs by ours, of the
medians. "Differ" counts the spikes that are not the same.""",
             "Ours is the model of the package after lsnn_ext.convert."]
    parts.append(overview(lines))
    for name in dict.fromkeys(line.yardstick for line in lines):
        here = [line for line in lines if line.yardstick == name]
        first = here[0]
        rows = []
        for pair in dict.fromkeys(line.pair for line in here):
            found = {line.timed: line for line in here if line.pair == pair}
            cells = [pair]
            for timed in PASSES:
                one = found[timed]
                cells += [f"{number(one.theirs_median_ms)} ({number(one.theirs_min_ms)})",
                          f"{number(one.median_ms)} ({number(one.min_ms)})",
                          f"**{number(one.times_faster)}**"]
            last = found[PASSES[1]]
            rows.append([*cells, f"{last.rate_measured:.1f}",
                         f"{last.differing:,} of {last.entries:,}",
                         f"{last.gradient_difference:.0e}", str(last.repeats)])
        head = ["", *(text for timed in ("forward", "step")
                      for text in (f"{timed}: theirs", WAY, "times faster")),
                "spikes %", "differ", "gradients differ", "rounds"]
        parts += [f"### {name}: {first.shape.describe()}; {first.input_rate:g} % of the inputs are "
                  "spikes", markdown(head, rows), *left_out(skipped, name)]
    who = [f"* {name}: {_about(name)}" for name in dict.fromkeys(line.pair for line in lines)
           if name in PAIRS]
    parts.append("Who they are, and what their neurons learn beside all weights:\n\n"
                 + "\n".join(who))
    return "\n\n".join(parts)


def _about(name: str) -> str:
    return summarize(PAIRS[name]).rstrip(".") + (f"; {INDEXED}" if PAIRS[name].indexed else "")


def _ratios(lines: Sequence[Alike]) -> tuple[list[str], dict[str, list[str]]]:
    """Yardsticks; by pair, how many times faster a step of training is on each."""
    steps = {(line.pair, line.yardstick): line for line in lines if line.timed == PASSES[1]}
    shapes = list(dict.fromkeys(line.yardstick for line in lines))
    return shapes, {pair: [f"{steps[pair, shape].times_faster:.1f}" if (pair, shape) in steps
                           else "-" for shape in shapes]
                    for pair in dict.fromkeys(line.pair for line in lines)}


def overview(lines: Sequence[Alike]) -> str:
    """A table of how many times faster a step of training is, by pair and yardstick."""
    shapes, found = _ratios(lines)
    rows = [[pair, *(f"**{cell}**" for cell in cells)] for pair, cells in found.items()]
    return markdown(["times faster, forward + backward", *shapes], rows)


def summary(lines: Sequence[Alike]) -> str:
    """A line for each pair: how many times faster a step is with the same equations."""
    shapes, found = _ratios(lines)
    text = ["times faster with the same equations, forward + backward: " + ", ".join(shapes)]
    text += [f"  {pair:32}" + "".join(f"{cell:>8}" for cell in cells)
             for pair, cells in found.items()]
    return "\n".join(text)
