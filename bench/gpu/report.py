"""Files of a run on a card: CSVs, a summary in Markdown, the output of the steps, and plots."""
import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.contestants import OURS
from bench.gpu.card import Card
from bench.gpu.layers import Row
from bench.gpu.steps import Outcome
from bench.machine import without_paths
from bench.measure import PASSES
from bench.plots import plot_rates, plot_times, rated_yardsticks
from bench.tables import MEASUREMENTS, markdown, write_csv, write_table

# groups in the plot of times
BARS = ("layers", "loops", "compiled")


@dataclass
class Report:
    """The results so far."""

    card: Card
    command: str
    date: str
    stages: Sequence[str] = ()  # none: all of them
    outcomes: Sequence[Outcome] = ()
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # primitive, parameter, value, unit
    primitives: list[dict[str, str]] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The beginning of the names of its files, which differ between selections of stages."""
        return "-".join([self.card.slug, *self.stages])

    @property
    def log(self) -> str:
        """The file for the output of all steps."""
        return f"{self.stem}.log"

    def read(self, outcomes: Sequence[Outcome], rows: Path, tables: Sequence[Path]) -> "Report":
        """With what the steps have written so far; a file that is missing or was cut off gives what
        there is."""
        said: list[dict[str, Any]] = []
        for line in rows.read_text().splitlines() if rows.exists() else []:
            try:
                said.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a process that was stopped
                continue
        found = [csv.DictReader(table.read_text().splitlines())
                 for table in tables if table.exists()]
        return replace(self, outcomes=outcomes,
                       rows=[Row(**each) for each in said if "note" not in each],
                       notes=[each["note"] for each in said if "note" in each],
                       primitives=[each for lines in found for each in lines
                                   if all(each.values())])

    def write(self, out: Path) -> list[Path]:
        """Writes all but the plots. Returns the paths."""
        out.mkdir(parents=True, exist_ok=True)
        card, paths = self.card, []
        facts = {"card": card.name, "driver": card.driver, "torch": card.torch,
                 "cuda": card.cuda, "date": self.date, "command": self.command}
        if self.rows:
            paths.append(write_csv(out / f"{self.stem}.csv", facts, Row, self.rows))
        if self.primitives:
            paths.append(write_table(out / f"{self.stem}-primitives.csv", MEASUREMENTS,
                                     map(dict.values, self.primitives)))
        if said := [f"=== {outcome.name}: {outcome.state}\n{outcome.output}"
                    for outcome in self.outcomes if outcome.output]:
            paths.append(out / self.log)
            paths[-1].write_text(without_paths("\n".join(said)))
        paths.append(out / f"{self.stem}.md")
        paths[-1].write_text(self.markdown() + "\n")
        return paths

    def plots(self, out: Path) -> list[Path]:
        """Draws the plots of the CPU benchmark; prints a line if that fails. Returns the paths."""
        paths: list[Path] = []
        try:
            card = self.card
            caption = f"{card.name}, torch {card.torch}, driver {card.driver}, {self.date}"
            if bars := self._once(BARS):
                paths.append(plot_times(bars, caption, out / f"{self.stem}-times.png"))
            if rated_yardsticks(rates := self._once(("rates",))):
                paths.append(plot_rates(rates, caption, out / f"{self.stem}-rates.png"))
        except Exception as error:  # a picture is not worth the numbers
            print(f"no plots: {type(error).__name__}: {error}")
        return paths

    def _once(self, kinds: tuple[str, ...]) -> list[Row]:
        """The rows of these groups, one for each contestant; those that are not float32 have that
        in their name."""
        found: dict[tuple[Any, ...], Row] = {}
        for row in self.rows:
            bare = row.dtype == "float32" or (row.contestant == OURS and row.dtype != "float16")
            name = row.contestant if bare else f"{row.contestant} {row.dtype}"
            key = (row.yardstick, name, row.rate_asked if name == OURS else 0.0, row.timed)
            if row.group in kinds:
                found.setdefault(key, replace(row, contestant=name))
        return list(found.values())

    def markdown(self) -> str:
        """Steps, tables of the groups, measurements, and what is missing."""
        card = self.card
        parts = [f"# {card.name}", "Compute capability {}.{}, ".format(*card.capability)
                 + f"{card.multiprocessors} multiprocessors, driver {card.driver}, "
                 f"torch {card.torch}, CUDA {card.cuda}; `{self.command}`, {self.date}.",
                 "## Steps", markdown(["step", "result", "s", "note"],
                                      [[o.name, o.state, f"{o.seconds:.0f}",
                                        o.note.replace("|", "/")] for o in self.outcomes])]
        if self.rows:
            parts.append(
                "Medians in ms of a whole sequence, input projection included, through the public "
                "module with "
                "autograd. The contestants of one table alternate; ratios are to ours in its first "
                "line.")
        for group, name in dict.fromkeys((row.group, row.yardstick) for row in self.rows):
            parts += _table([row for row in self.rows if (row.group, row.yardstick) == (group,
                                                                                        name)])
        if self.primitives:
            parts += ["## Measurements", markdown(MEASUREMENTS, map(dict.values, self.primitives))]
        if self.notes:
            parts += ["## Left out", "\n".join(f"* {note}" for note in self.notes)]
        if not self.rows and not self.primitives:
            parts.append("Nothing was measured.")
        return "\n\n".join(parts)


def _table(rows: list[Row]) -> list[str]:
    # the passes follow each other, in the same order of contestants
    first, half = rows[0], len(rows) // len(PASSES)
    clock = "" if math.isnan(first.sm_mhz) else f", {first.sm_mhz:.0f} MHz"
    lines = [[row.contestant, row.dtype, _number(row.rate_measured, ".2f"), row.design or row.plan,
              f"{row.median_ms:.3g}", f"{row.ratio_to_ours:.2f}", f"{both.median_ms:.3g}",
              f"{both.ratio_to_ours:.2f}", _number(row.saved_bytes, ".2f"),
              _number(both.peak_mib, ".0f")] for row, both in zip(rows[:half], rows[half:],
                                                                  strict=True)]
    return [f"## {first.group}: {first.shape}{clock}",
            markdown(["", "dtype", "spikes %", "design", "forward", "ratio", "fwd+bwd", "ratio",
                      "saved B/neuron-step", "peak MiB"], lines)]


def _number(value: float, digits: str) -> str:
    return "" if math.isnan(value) else f"{value:{digits}}"
