"""The run of `python -m bench --any-neuron`, its CSVs and its page."""
import inspect
from collections.abc import Sequence
from pathlib import Path

from bench import any_neuron, machine
from bench.any_neuron import KINDS, OURS, Line
from bench.limits import Skip
from bench.measure import Say
from bench.page import machine_table
from bench.problem import Yardstick
from bench.tables import left_out, markdown, number, summarize, write_csv

LINES, SKIPPED = "any_neuron.csv", "skipped.csv"


def run(out: Path, yardsticks: Sequence[Yardstick], command: str, names: Sequence[str], *,
        repeats: int, seconds: float, say: Say = print) -> None:
    """Measure these neurons, on their own yardsticks where none are given, and write the results;
    what was measured before something stopped the run is kept."""
    lines: list[Line] = []
    skipped: list[Skip] = []
    try:
        for name in names:
            for yardstick in yardsticks or any_neuron.yardsticks_of(KINDS[name]):
                say(f"  {name} on {yardstick.name}")
                more, left = any_neuron.measure(name, yardstick, repeats=repeats, seconds=seconds,
                                                say=say)
                lines += more
                skipped += left
    finally:
        if lines:
            for path in write(out, machine.facts(command), lines, skipped):
                say(f"wrote {path}")


def write(out: Path, facts: dict[str, str], lines: Sequence[Line],
          skipped: Sequence[Skip]) -> list[Path]:
    """Both CSVs and the page; the files that were written."""
    out.mkdir(parents=True, exist_ok=True)
    page = out / "README.md"
    page.write_text(text(facts, lines, skipped) + "\n")
    return [write_csv(out / LINES, facts, Line, lines),
            write_csv(out / SKIPPED, facts, Skip, skipped), page]


def text(facts: dict[str, str], lines: Sequence[Line], skipped: Sequence[Skip]) -> str:
    parts = [f"# Neurons written as a step on {facts['processor']}, {facts['cores']} cores",
             machine_table(facts), inspect.cleandoc(any_neuron.__doc__ or "").split("\n\n", 2)[2],
             f"Times are medians of forward and backward in ms, in brackets minima. \"By ours\" is "
             f"the time by that of {OURS}, in brackets its quartiles."]
    for name in dict.fromkeys(line.yardstick for line in lines):
        here = [line for line in lines if line.yardstick == name]
        head = ["neuron", "by", "ms", "by ours", "spikes %", "differ", "gradients differ", "rounds"]
        parts += [f"## {name}: {here[0].shape.describe()}", markdown(head, map(_cells, here)),
                  *left_out(skipped, name)]
    parts.append("The neurons:\n\n" + "\n".join(
        f"* {name}: {summarize(KINDS[name].neuron.step)}"
        for name in dict.fromkeys(line.neuron for line in lines)))
    return "\n\n".join(parts)


def _cells(line: Line) -> list[str]:
    return [f"`{line.neuron}`", line.contestant,
            f"{number(line.median_ms)} ({number(line.min_ms)})",
            f"**{number(line.ratio)}** ({number(line.ratio_q1)} to {number(line.ratio_q3)})",
            f"{line.rate_measured:.1f}", f"{line.differing:,} of {line.entries:,}",
            f"{line.gradient_difference:.0e}", str(line.rounds)]
