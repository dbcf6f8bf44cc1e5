"""The public checkpoints of three papers, run through lsnn_ext.convert.

A network is a loop over time in plain PyTorch (networks.py). The program converts it, classifies
the test examples, and compares spikes and times with the loop's on the first batch. The files are
in the authors' repositories:

    git clone --depth 1 https://github.com/AdaptiveAILab/brf-neurons
    git clone --depth 1 https://github.com/eva1801/DH-SNN
    git clone --depth 1 https://github.com/byin-cwi/Efficient-spiking-networks
    python examples/published/run.py

No code of these repositories runs, and no code of the files.
"""
import argparse
import copy
import datetime
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
import lsnn_ext
from common.training import count
from ecg import train as ecg
from lsnn_ext.tools.info import find_processor
from lsnn_ext.zoo import alif_at_once, brf, rf
from published import pickled
from published.networks import (
    YIN_ECG,
    YIN_MNIST,
    Layer,
    Network,
    States,
    Tensors,
    build_higuchi,
    build_yin,
    build_zheng,
    draw_shared,
    draw_states,
    make_zeros,
)
from smnist.data import PIXELS, load, windows

ROUNDS = 5
REPOSITORIES = ("AdaptiveAILab/brf-neurons", "eva1801/DH-SNN",
                "byin-cwi/Efficient-spiking-networks")


# ------------------------------------------------------------------------------------------ files
def read_state_dict(path: Path) -> Tensors:
    """Returns the tensors of a file that torch.load reads with weights_only."""
    held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    found: Tensors = held.get("model_state_dict", held)
    return found


def read_module(path: Path) -> Tensors:
    """Returns the tensors of a pickled module."""
    return pickled.read_tensors(path.read_bytes())


def find(folder: Path, pattern: str) -> Path:
    """Returns the file that a pattern names, such as "brf-neurons/experiments/*/a.pt"."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        repository = next(name for name in REPOSITORIES
                          if name.endswith("/" + pattern.partition("/")[0]))
        raise SystemExit(f"--folder: expected one file {pattern} in {folder}, got {len(found)}; "
                         f"git clone --depth 1 https://github.com/{repository}")
    return found[0]


# ------------------------------------------------------------------------------------------- data
class Examples(NamedTuple):
    """Pixels (n, 784) as bytes or recordings (n, T, I), and the classes (n,) or (n, T)."""

    shown: Tensor
    classes: Tensor


def read_digits(options: argparse.Namespace) -> Examples:
    """Returns MNIST's test digits."""
    _, test = load(options.data)
    return Examples(test.pixels, test.labels)


def read_recordings(options: argparse.Namespace) -> Examples:
    """Returns the test's electrocardiograms."""
    test = ecg.read(find(options.folder, "Efficient-spiking-networks/data/QTDB_test.mat"))
    return Examples(test.x.transpose(0, 1), test.phase.t())


Order = Callable[[Path], Tensor]


def draw_order(folder: Path) -> Tensor:
    """Returns the order of pixels that the program of DH-SNN draws."""
    return torch.randperm(PIXELS, generator=torch.Generator().manual_seed(0))


def read_order(folder: Path, pattern: str) -> Tensor:
    """Returns the order of pixels in a file."""
    order: Tensor = torch.load(find(folder, pattern), weights_only=True)
    return order


def show_pixels(shown: Tensor, folder: Path, order: Order | None = None, window: int = 1,
                mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Returns inputs (784, B, window)."""
    x = (shown.float() / 255 - mean) / deviation
    return windows(x if order is None else x[:, order(folder)], window)


def show_leads(shown: Tensor, folder: Path) -> Tensor:
    """Returns inputs (T, B, 4)."""
    return shown.transpose(0, 1).contiguous()


# ------------------------------------------------------------------------------------ the answers
def is_right_at_end(y: Tensor, start: Tensor, label: Tensor) -> Tensor:
    """Returns (B,): whether the last outputs (T, B, 10) are largest at the label."""
    return y[-1].argmax(-1) == label


def is_right_on_average(y: Tensor, start: Tensor, label: Tensor) -> Tensor:
    """Returns the same for the mean outputs."""
    return y.mean(0).argmax(-1) == label


def is_right_by_count(y: Tensor, start: Tensor, label: Tensor) -> Tensor:
    """Returns the same for the numbers of spikes."""
    return y.sum(0).argmax(-1) == label


def is_right_by_count_and_start(y: Tensor, start: Tensor, label: Tensor) -> Tensor:
    """Returns the same; the spikes before the first step count."""
    return (start + y.sum(0)).argmax(-1) == label


def is_right_at_steps(y: Tensor, start: Tensor, phase: Tensor, steps: slice) -> Tensor:
    """Returns (B, steps): whether the outputs (T, B, 6) are largest at the phase (B, T)."""
    return y[steps].argmax(-1).t() == phase[:, steps]


# ------------------------------------------------------------------------------------ the networks
class Row(NamedTuple):
    """A checkpoint, and how its authors test it."""

    network: str
    task: str
    published: float  # %
    file: str
    read: Callable[[Path], Tensors]
    build: Callable[[Tensors], Network]
    make_start: Callable[[Layer, int, torch.Generator], States]
    load: Callable[[argparse.Namespace], Examples]
    show: Callable[[Tensor, Path], Tensor]
    is_right: Callable[[Tensor, Tensor, Tensor], Tensor]


MNIST, ECG = (f"brf-neurons/experiments/{task}/models/" for task in ("smnist", "ecg"))
DH, YIN = "DH-SNN/s-mnist/", "Efficient-spiking-networks/NMI_vis/"
BRF, RF, ALIF = (partial(build_higuchi, neuron=neuron) for neuron in (brf, rf, alif_at_once))
NORMALIZED = partial(show_pixels, mean=0.1307, deviation=0.3081)

ROWS = (
    Row(network="BRF", task="S-MNIST", published=99.14, file=MNIST + "09-29_22-56-26_*.pt",
        read=read_state_dict, build=BRF, make_start=make_zeros, load=read_digits, show=show_pixels,
        is_right=is_right_at_end),
    Row(network="BRF", task="PS-MNIST", published=95.22, file=MNIST + "10-08_12-39-46_*.pt",
        read=read_state_dict, build=BRF, make_start=make_zeros, load=read_digits,
        show=partial(show_pixels,
                     order=partial(read_order, pattern=MNIST + "10-08_12-39-46A*_idx.pt")),
        is_right=is_right_on_average),
    Row(network="BRF", task="ECG", published=86.2, file=ECG + "09-25_23-50-01_*.pt",
        read=read_state_dict, build=BRF, make_start=make_zeros, load=read_recordings,
        show=show_leads, is_right=partial(is_right_at_steps, steps=slice(1300))),
    Row(network="RF", task="S-MNIST", published=98.14, file=MNIST + "12-15_00-43-36_*.pt",
        read=read_state_dict, build=RF, make_start=make_zeros, load=read_digits, show=show_pixels,
        is_right=is_right_at_end),
    Row(network="RF", task="ECG", published=85.1, file=ECG + "05-21_13-51-07_*.pt",
        read=read_state_dict, build=RF, make_start=make_zeros, load=read_recordings,
        show=show_leads, is_right=partial(is_right_at_steps, steps=slice(1300))),
    Row(network="ALIF", task="S-MNIST", published=92.44, file=MNIST + "10-10_18-33-56_*.pt",
        read=read_state_dict, build=ALIF, make_start=make_zeros, load=read_digits, show=show_pixels,
        is_right=is_right_at_end),
    Row(network="ALIF", task="PS-MNIST", published=83.8, file=MNIST + "10-09_13-58-21_*.pt",
        read=read_state_dict, build=ALIF, make_start=make_zeros, load=read_digits,
        show=partial(show_pixels,
                     order=partial(read_order, pattern=MNIST + "10-09_13-58-21A*_idx.pt")),
        is_right=is_right_on_average),
    Row(network="ALIF", task="ECG", published=70.75, file=ECG + "10-06_14-07-40_*.pt",
        read=read_state_dict, build=ALIF, make_start=make_zeros, load=read_recordings,
        show=show_leads, is_right=partial(is_right_at_steps, steps=slice(10, 1300))),
    Row(network="DH-SRNN", task="S-MNIST", published=98.87, file=DH + "*98.87-srnn-smnist.pth",
        read=read_module, build=build_zheng, make_start=draw_states, load=read_digits,
        show=NORMALIZED, is_right=is_right_by_count),
    Row(network="DH-SRNN", task="PS-MNIST", published=94.52, file=DH + "*94.52-srnn-psmnist.pth",
        read=read_module, build=build_zheng, make_start=draw_states, load=read_digits,
        show=partial(NORMALIZED, order=draw_order), is_right=is_right_by_count),
    Row(network="SRNN", task="S-MNIST", published=98.11, file=YIN + "smnist/model_98.21_*.pth",
        read=read_module, build=partial(build_yin, names=YIN_MNIST, theta=0.01),
        make_start=partial(draw_shared, theta=0.01, below=1.0), load=read_digits,
        show=partial(show_pixels, window=8), is_right=is_right_by_count_and_start),
    Row(network="SRNN", task="ECG", published=85.89, file=YIN + "ecg/model_0.8589*.pth",
        read=read_state_dict, build=partial(build_yin, names=YIN_ECG, theta=0.1, is_analog=True),
        make_start=partial(draw_shared, theta=0.1, below=0.1), load=read_recordings,
        show=show_leads, is_right=partial(is_right_at_steps, steps=slice(10, None))),
)


# ------------------------------------------------------------------------------------------- a run
class Found(NamedTuple):
    """What a row of the table holds."""

    right: int  # of the answers to all examples
    answers: int
    batch: int  # examples of the first batch
    converted: int  # right answers to these
    loop: int
    flips: int  # spikes of single steps
    differ: int  # spikes of the whole run
    spikes: int  # neuron-steps
    times: tuple[float, float]  # s, converted and loop


def build(row: Row, folder: Path) -> Network:
    """Returns the network of a checkpoint."""
    path = find(folder, row.file)
    try:
        return row.build(row.read(path)).eval()
    except Exception as error:  # whatever another file leads to
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise SystemExit(f"{path}: expected the published checkpoint, got a file that cannot be "
                         f"read as one ({type(error).__name__}: {reason})") from None


@torch.no_grad()
def measure(row: Row, options: argparse.Namespace) -> Found:
    """Runs a checkpoint."""
    net, data = build(row, options.folder), row.load(options)
    random = torch.Generator().manual_seed(0)
    size = options.batch if row.load is read_digits else len(data.shown)
    batches = [(shown, [row.make_start(layer, len(shown), random)  # type: ignore[arg-type]
                        for layer in net.layers], classes)
               for shown, classes in zip(*(part[:options.examples].split(size) for part in data),
                                         strict=True)]

    def is_right(y: list[Tensor], start: list[States], classes: Tensor) -> Tensor:
        return row.is_right(y[-1], start[-1][-1], classes)

    shown, start, classes = batches[0]
    x = row.show(shown, options.folder)
    fast, report = lsnn_ext.convert(copy.deepcopy(net), (x, start))
    if report.comparison is None:
        raise RuntimeError(f"{row.network}, {row.task}: {report}")
    ours, theirs = fast(x, start), net(x, start)
    spikes = list(zip(ours, theirs, strict=True))[:len(net.layers) - net.is_analog]
    times = [(measure_seconds(lambda: fast(x, start)), measure_seconds(lambda: net(x, start)))
             for _ in range(ROUNDS)]
    found = [is_right(ours, start, classes),
             *(is_right(fast(row.show(shown, options.folder), start), start, classes)
               for shown, start, classes in batches[1:])]
    return Found(
        sum(int(part.sum()) for part in found), sum(part.numel() for part in found), len(shown),
        int(found[0].sum()), int(is_right(theirs, start, classes).sum()), report.comparison.flips,
        sum(int((one != other).sum()) for one, other in spikes),
        sum(one.numel() for one, _ in spikes),
        (median(one for one, _ in times), median(other for _, other in times)))


def measure_seconds(run: Callable[[], object]) -> float:
    """Returns the processor time of a call on one thread."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


# ---------------------------------------------------------------------------------------- the page
HEAD = """\
| network | task | published | here | first batch: converted, loop | spikes that differ \
| flips in single steps | converted, ms | loop, ms | times faster |
|---|---|---|---|---|---|---|---|---|---|"""


def format_row(row: Row, found: Found) -> str:
    """Returns a row of the table."""
    of = found.batch if row.load is read_digits else found.answers
    fast, loop = found.times
    return (f"| {row.network} | {row.task} | {row.published} % "
            f"| {100 * found.right / found.answers:.2f} % of {found.answers:,} "
            f"| {found.converted:,}, {found.loop:,} of {of:,} "
            f"| {found.differ:,} of {found.spikes:,} | {found.flips} | {1e3 * fast:,.0f} "
            f"| {1e3 * loop:,.0f} | {loop / fast:.1f} |")


NOTES = """\
A network is a loop over time in plain PyTorch, from the equations of its paper
([networks.py](../examples/published/networks.py)). `convert` fuses it. *Here* is the test accuracy
of the converted loop. The other columns are of the first batch, {batch} digits or all recordings.
Times are processor time, medians of {rounds} forward passes, both in turns.

A product of past spikes sums in another order than torch's. So a spike may flip when a membrane is
within rounding of its threshold, and later spikes follow it. *Flips in single steps* start each
step from the states of the loop, so spikes that follow a flip do not count.

The files are in repositories with an MIT licence and are not part of this project. Tensors are
read from them; no code of the files runs.

* BRF, RF, ALIF: balanced and plain resonate-and-fire, and adaptive neurons. One recurrent layer
  with leaky outputs ([brf-neurons](https://github.com/AdaptiveAILab/brf-neurons); Higuchi et al.,
  ICML 2024). The published figure is in `*_model_stats.py`. The orders of PS-MNIST are files. ECG
  counts the first 1,300 of 1,301 steps, with ALIF from the eleventh on.
* DH-SRNN: two recurrent layers with two dendritic branches (S-MNIST) or one
  ([DH-SNN](https://github.com/eva1801/DH-SNN); Zheng et al., Nature Communications 2024). The
  published figure is in the name of the file. The order of PS-MNIST is `torch.randperm(784)` after
  `torch.manual_seed(0)`.
* SRNN: four (S-MNIST) or two layers of adaptive neurons
  ([Efficient-spiking-networks](https://github.com/byin-cwi/Efficient-spiking-networks); Yin et
  al., Nature Machine Intelligence 2021). The published figures are from the notebook and the name
  of the file. The ECG file has no threshold; 0.1 is assumed. ECG counts the steps from the
  eleventh on.
* DH-SRNN and SRNN start from random states, here with seed 0.

Not in the table: RF on PS-MNIST, whose file holds the first weights because training diverged, and
SRNN on PS-MNIST, whose order of pixels is not in a file that this program reads.
"""


def format_page(table: str, options: argparse.Namespace) -> str:
    """Returns docs/published.md."""
    clones = "\n".join(f"git clone --depth 1 https://github.com/{name}" for name in REPOSITORIES)
    today = datetime.datetime.now(datetime.UTC).date()
    notes = NOTES.format(batch=options.batch, rounds=ROUNDS)
    return (f"# Published networks\n\nThe public checkpoints of three papers, run through "
            f"`lsnn_ext.convert`.\n\n```sh\n{clones}\npython examples/published/run.py "
            f"--page docs/published.md\n```\n\n{table}\n\n{find_processor()}, one thread, torch "
            f"{torch.__version__}, {today}.\n\n{notes}")


def main(given: list[str] | None = None) -> None:
    """Runs the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(),
                        help="folder of the repositories")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST")
    parser.add_argument("--only", default="", metavar="TEXT",
                        help="rows that begin with this, such as BRF")
    parser.add_argument("--examples", type=count, default=10_000, help="of the test, at most")
    parser.add_argument("--batch", type=count, default=100, help="digits of a call")
    parser.add_argument("--page", type=Path, help="file that receives the table with its text")
    options = parser.parse_args(given)
    changed = [f"--{name} {getattr(options, name)}" for name in ("only", "examples", "batch")
               if getattr(options, name) != parser.get_default(name)]
    if options.page and changed:
        parser.error("--page: expected the defaults of --only, --examples and --batch, got "
                     f"{' '.join(changed)}; the page has all rows and examples")
    torch.set_num_threads(1)
    rows = [row for row in ROWS if f"{row.network} {row.task}".startswith(options.only)]
    if not rows:
        parser.error(f"--only: expected the start of a row, such as BRF, got {options.only}")
    lines = [HEAD]
    print(HEAD)
    for row in rows:
        lines.append(format_row(row, measure(row, options)))
        print(lines[-1], flush=True)
    if options.page:
        options.page.write_text(format_page("\n".join(lines), options))


if __name__ == "__main__":
    main()
