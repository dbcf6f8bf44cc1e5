"""Public programs with spiking loops, unchanged, before and after lsnn_ext.convert.

    python -m bench.programs FOLDER                     all programs of the manifest
    python -m bench.programs FOLDER --only SHD,norse    those whose name contains one of these
    python -m bench.programs FOLDER --record-only       what the recorder and the search for loops
                                                        see; nothing is converted
    python -m bench.programs FOLDER --list              the programs, their repositories and commits

FOLDER/OWNER/NAME holds a copy of each repository at the commit of bench/programs/manifest.toml.
Nothing is downloaded; a program whose copy or package is missing is a line with that reason.

Each program runs on random inputs of its own shapes. Results and gradients before and after are
compared in float32 and float64; a training step, forward and backward, is timed in turns: on one
thread the time of the processor, on two threads the time that elapses.
"""
import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from bench.arguments import at_least_one, make_parser, positive
from bench.programs.load import Program, folder_of, programs
from bench.programs.measure import Line, look, measure
from bench.tables import markdown, number, write_csv


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("bench.programs", __doc__)
    parser.add_argument("folder", type=Path, help="with the copies of the repositories")
    parser.add_argument("--only", default="", help="parts of names, with commas")
    parser.add_argument("--record-only", action="store_true", help="convert nothing")
    parser.add_argument("--list", action="store_true", help="list the programs")
    parser.add_argument("--repeats", type=at_least_one, default=7, help="rounds of timing")
    parser.add_argument("--seconds", type=positive, default=20.0,
                        help="of timing for each side (default: %(default)g)")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=2,
                        help="time on one thread only, or on one and on two (default)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--out", type=Path, help="a CSV file for the results")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each program, then the table."""
    given = _parser().parse_args(arguments)
    parts = given.only.split(",")
    chosen = [one for one in programs() if any(part in one.name for part in parts)]
    if given.list:
        print("\n".join(f"{one.name}: {one.repository or 'written here'} {one.commit} {one.path}"
                        for one in chosen))
        return
    lines: list[Line] = []
    try:
        for program in chosen:
            print(program.name, flush=True)
            missing = _missing(program, given.folder)
            if given.record_only:
                told = [missing] if missing else look(program, given.folder)
                print("\n".join(f"    {text}" for text in told), flush=True)
                continue
            line = Line(program.name, reason=missing) if missing else measure(
                program, given.folder, repeats=given.repeats, seconds=given.seconds,
                threads=given.threads, memory=not given.no_memory)
            print(f"    {_told(line)}", flush=True)
            lines.append(line)
    finally:  # what was measured before something stopped the run is kept
        if lines:
            print(table(lines))
            if given.out:
                facts = machine.facts(machine.command("bench.programs", arguments))
                print(f"wrote {write_csv(given.out, facts, Line, lines)}")


def _missing(program: Program, folder: Path) -> str:
    path = folder_of(program, folder) / program.path
    return "" if path.is_file() else f"no copy: expected {program.repository}/{program.path}"


def _told(line: Line) -> str:
    if not line.converted:
        return f"not converted: {line.reason}"
    return (f"{number(line.ratio)} times faster ({number(line.ratio_2)} on two threads), "
            f"{number(line.original_ms)} to {number(line.converted_ms)} ms; {line.fused} fused, "
            f"{line.batched} at once, {line.left} left; results differ by {line.difference:.0e}, "
            f"{line.differing:,} of {line.entries:,}, gradients by "
            f"{line.gradient_difference:.0e}; float64 {line.difference_64:.0e}, "
            f"{line.gradient_difference_64:.0e}; {number(line.original_mib)} to "
            f"{number(line.converted_mib)} MiB; converted in {number(line.seconds)} s")


def table(lines: Sequence[Line]) -> str:
    """The lines as Markdown, and their median."""
    head = ["program", "loops", "fused", "at once", "left", "ratio", "two threads", "step ms",
            "results differ", "gradients differ", "in float64", "MiB"]
    rows = [[line.program, line.iterations, str(line.fused), str(line.batched), str(line.left),
             number(line.ratio), number(line.ratio_2),
             f"{number(line.original_ms)} to {number(line.converted_ms)}",
             f"{line.difference:.0e}", f"{line.gradient_difference:.0e}",
             f"{line.difference_64:.0e}, {line.gradient_difference_64:.0e}",
             f"{number(line.original_mib)} to {number(line.converted_mib)}"]
            for line in lines if line.converted]
    found = [markdown(head, rows)] if rows else []
    ratios = [line.ratio for line in lines if line.converted]
    if ratios:
        found.append(f"{len(ratios)} of {len(lines)} converted, median ratio "
                     f"{number(statistics.median(ratios))}, lowest {number(min(ratios))}.")
    found.append("\n".join(f"* {line.program}: {line.reason or line.note}" for line in lines
                           if line.reason or line.note))
    return "\n\n".join(found)


if __name__ == "__main__":
    main()
