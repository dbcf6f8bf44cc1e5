"""The same training before and after lsnn_ext.convert: models written with Norse, snnTorch, sinabs
and SpikingJelly learn spoken digits, one of Norse's electrocardiograms too.

Each model is trained as its package has it; then a second one of the same seed is converted and
trained on the same batches. The losses of all iterations are set beside each other, and the
processor time of both. In float32 sums in another order turn round a spike sooner or later, and
from there on the two are different runs of one training; --double computes in float64, where that
comes later.

    pip install ".[examples,peers]"
    python examples/converted/train.py --speech RECORDINGS --ecg FOLDER

RECORDINGS and FOLDER are those of examples/speech and examples/ecg. Prints a table, and writes the
losses to --out.
"""
import argparse
import csv
import importlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/
import lsnn_ext
from common.training import count, number
from ecg import train as ecg
from speech import data as speech_data

DT = 10.0  # ms, from one spectrum to the next
SMOOTH = 20  # steps of the electrocardiograms that the readout averages
SAME = 1e-4  # losses this near to each other, relatively, count as the same


# --------------------------------------------------------------------------------------------- data
class Samples(NamedTuple):
    """x (T, B, I); target (B,), or (T, B) where each step has one."""

    x: Tensor
    target: Tensor

    def take(self, items: Tensor) -> "Samples":
        """Those of these numbers."""
        return Samples(self.x[:, items], self.target[..., items])

    def __len__(self) -> int:
        return self.x.shape[1]


class Task(NamedTuple):
    """What a model is trained on and tested with."""

    train: Samples
    test: Samples
    classes: int


def speech(path: Path, steps: int) -> Task:
    """Spoken digits of so many steps: cut off, or zeros behind."""
    data = speech_data.load(path, DT)

    def even(recordings: speech_data.Recordings) -> Samples:
        x = torch.zeros(steps, len(recordings), speech_data.CHANNELS)
        for item, word in enumerate(recordings.x):
            x[:len(word), item] = word[:steps]
        return Samples(x, recordings.digit)

    return Task(even(data.train), even(data.test), speech_data.DIGITS)


def beats(path: Path, steps: int) -> Task:
    """Electrocardiograms, their first so many steps."""
    data = ecg.load(path)
    train, test = (Samples(part.x[:steps], part.phase[:steps]) for part in (data.train, data.test))
    return Task(train, test, ecg.PHASES)


# ------------------------------------------------------------------------------------------- models
# As users of the packages write them; called with (T, B, I), logits come back.
class Norse(nn.Module):
    """Norse: a layer with adaptation and one without."""

    def __init__(self, inputs: int, N: int, classes: int) -> None:
        super().__init__()
        nt = importlib.import_module("norse.torch")
        self.project = nn.Linear(inputs, N)
        self.first = nt.LSNNRecurrent(N, N, p=nt.LSNNParameters(
            tau_adapt_inv=torch.tensor(5.0), v_th=torch.tensor(0.5)))
        self.second = nt.LIFRecurrent(N, N, p=nt.LIFParameters(v_th=torch.tensor(0.3)))
        self.readout = nn.Linear(N, classes)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.first(self.project(x))
        spikes, _ = self.second(spikes)
        return self.readout(spikes.mean(0))


class NorseSteps(Norse):
    """The same, with an answer at each step, of an average of the last spikes; its inputs are few
    events."""

    def __init__(self, inputs: int, N: int, classes: int) -> None:
        super().__init__(inputs, N, classes)
        with torch.no_grad():
            self.project.weight.mul_(8)
            self.second.input_weights.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.first(self.project(x))
        spikes, _ = self.second(spikes)
        past = nn.functional.pad(spikes.permute(1, 2, 0), (SMOOTH - 1, 0))
        return self.readout(nn.functional.avg_pool1d(past, SMOOTH, 1).permute(2, 0, 1))


class SnnTorch(nn.Module):
    """snnTorch: a loop over time, a step of the layer in each turn."""

    def __init__(self, inputs: int, N: int, classes: int) -> None:
        super().__init__()
        snn, surrogate = (importlib.import_module(name)
                          for name in ("snntorch", "snntorch.surrogate"))
        self.project = nn.Linear(inputs, N)
        self.lif = snn.RLeaky(beta=0.9, linear_features=N, learn_beta=True,
                              spike_grad=surrogate.fast_sigmoid(slope=25))
        self.readout = nn.Linear(N, classes)

    def forward(self, x: Tensor) -> Tensor:
        spk, mem = self.lif.init_rleaky()
        record = []
        for x_t in x:
            spk, mem = self.lif(self.project(x_t), spk, mem)
            record.append(spk)
        return self.readout(torch.stack(record).mean(0))


class Sinabs(nn.Module):
    """sinabs: adaptive neurons that learn their time constants; batch first."""

    def __init__(self, inputs: int, N: int, classes: int) -> None:
        super().__init__()
        layers = importlib.import_module("sinabs.layers")
        self.project = nn.Linear(inputs, N)
        self.alif = layers.ALIFRecurrent(tau_mem=torch.tensor(10.0), tau_adapt=torch.tensor(50.0),
                                         adapt_scale=1.0, rec_connect=nn.Linear(N, N))
        self.readout = nn.Linear(N, classes)
        with torch.no_grad():
            self.project.weight.mul_(4)

    def reset(self) -> None:
        self.alif.reset_states()  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.alif(self.project(x).transpose(0, 1))
        return self.readout(spikes.mean(1))


class SpikingJelly(nn.Module):
    """SpikingJelly: a container around a LIFNode."""

    def __init__(self, inputs: int, N: int, classes: int) -> None:
        super().__init__()
        layer, neuron = (importlib.import_module(f"spikingjelly.activation_based.{name}")
                         for name in ("layer", "neuron"))
        self.project = nn.Linear(inputs, N)
        self.recurrent = layer.LinearRecurrentContainer(
            neuron.LIFNode(tau=4.0, v_threshold=0.25, detach_reset=True), N, N, step_mode="m")
        self.readout = nn.Linear(N, classes)

    def reset(self) -> None:
        importlib.import_module("spikingjelly.activation_based.functional").reset_net(
            self.recurrent)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.recurrent(self.project(x)).mean(0))


class Script(NamedTuple):
    """A training script: its package, model and data."""

    package: str
    model: type[nn.Module]
    data: str


SCRIPTS = {
    "norse": Script("norse", Norse, "speech"), "snntorch": Script("snntorch", SnnTorch, "speech"),
    "sinabs": Script("sinabs", Sinabs, "speech"),
    "spikingjelly": Script("spikingjelly", SpikingJelly, "speech"),
    "norse-ecg": Script("norse", NorseSteps, "ecg"),
}


# ----------------------------------------------------------------------------------------- training
class Trained(NamedTuple):
    """Losses of all iterations, the test's share that was named after each epoch, seconds of the
    processor."""

    losses: list[float]
    accuracy: list[float]
    seconds: float


def reset(model: nn.Module) -> None:
    """Of the state that some packages keep from call to call."""
    if isinstance(model, Sinabs | SpikingJelly):
        model.reset()


def train(model: nn.Module, task: Task, options: argparse.Namespace) -> Trained:
    """Adam on batches whose order is that of the seed; the test is not in the time."""
    random = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], options.lr)
    losses: list[float] = []
    shares: list[float] = []
    seconds = 0.0
    for _ in range(options.epochs):
        order = torch.randperm(len(task.train), generator=random)
        begin = time.process_time()
        for items in order[:options.words].split(options.batch):
            part = task.train.take(items)
            reset(model)
            logits = model(part.x).flatten(0, -2)
            loss = nn.functional.cross_entropy(logits, part.target.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            losses.append(loss.item())
        seconds += time.process_time() - begin
        shares.append(accuracy(model, task.test))
    return Trained(losses, shares, seconds)


def accuracy(model: nn.Module, samples: Samples, batch: int = 100) -> float:
    """The share that the model names."""
    right = []
    with torch.no_grad():
        for items in torch.arange(len(samples)).split(batch):
            part = samples.take(items)
            reset(model)
            right.append((model(part.x).argmax(-1) == part.target).flatten())
    return torch.cat(right).float().mean().item()


def converted(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with its recurrences in kernels, compared with the original on some inputs."""
    model, report = lsnn_ext.convert(model, x)
    print(report, flush=True)
    return model


def both(script: Script, task: Task, options: argparse.Namespace) -> tuple[Trained, Trained]:
    """The training before and after, from the same first weights."""
    if options.double:
        learned, tested = (Samples(part.x.double(), part.target)
                           for part in (task.train, task.test))
        task = Task(learned, tested, task.classes)

    def made() -> nn.Module:  # anew, as not every package's layers can be copied
        torch.manual_seed(options.seed)
        model = script.model(task.train.x.shape[-1], options.neurons, task.classes)
        return model.to(task.train.x.dtype)

    other = converted(made(), task.train.take(torch.arange(min(options.batch, len(task.train)))).x)
    return train(made(), task, options), train(other, task, options)


def apart(before: Trained, after: Trained) -> int:
    """How many iterations have the same loss, from the first on."""
    for index, (one, other) in enumerate(zip(before.losses, after.losses, strict=True)):
        if not abs(one - other) <= SAME * abs(one):
            return index
    return len(before.losses)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, help="folder or tar archive of spoken digits")
    parser.add_argument("--ecg", type=Path, help="folder of the electrocardiograms")
    parser.add_argument("--scripts", nargs="+", choices=tuple(SCRIPTS), default=tuple(SCRIPTS))
    parser.add_argument("--epochs", type=count, default=5)
    parser.add_argument("--words", type=count, help="samples of an epoch; all if left out")
    parser.add_argument("--steps", type=count, default=50, help="of a word")
    parser.add_argument("--ecg-steps", type=count, default=1301)
    parser.add_argument("--neurons", type=count, default=64)
    parser.add_argument("--batch", type=count, default=64)
    parser.add_argument("--lr", type=number, default=2e-3)
    parser.add_argument("--clip", type=number, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=count, default=1, help="of torch")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--out", type=Path, default=Path("converted_training.csv"))
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> dict[str, tuple[Trained, Trained]]:
    """Trains all, prints the table, writes the losses; both trainings of each script."""
    options = arguments(given)
    torch.set_num_threads(options.threads)
    wanted = {SCRIPTS[name].data for name in options.scripts}
    missing = [f"--{name}" for name in sorted(wanted) if getattr(options, name) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)}: expected where the recordings are, got none; "
                         f"--scripts leaves some out")
    tasks = {name: speech(options.speech, options.steps) if name == "speech"
             else beats(options.ecg, options.ecg_steps) for name in wanted}
    found: dict[str, tuple[Trained, Trained]] = {}
    for name in options.scripts:
        script = SCRIPTS[name]
        found[name] = both(script, tasks[script.data], options)
        say(name, *found[name])
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["script", "iteration", "before", "after"])
        for name, (before, after) in found.items():
            writer.writerows([name, index + 1, f"{one:.7g}", f"{other:.7g}"] for index, (one, other)
                             in enumerate(zip(before.losses, after.losses, strict=True)))
    print(options.out)
    return found


def say(name: str, before: Trained, after: Trained) -> None:
    """A line of the table, and the accuracy of each epoch."""
    shares = [", ".join(f"{100 * share:.1f}" for share in side.accuracy)
              for side in (before, after)]
    print(f"{name}: named {shares[0]} % before, {shares[1]} % after; losses the same in the first "
          f"{apart(before, after)} of {len(before.losses)} iterations; {before.seconds:.1f} s of "
          f"the processor before, {after.seconds:.1f} s after: "
          f"{before.seconds / after.seconds:.1f} times", flush=True)


if __name__ == "__main__":
    main()
