"""The sequential-MNIST network of Yin et al. and its published checkpoint.

Source: Yin, Corradi and Bohte, Nature Machine Intelligence 3, 905 (2021); NMI_vis/smnist of their
programs.
"""
from pathlib import Path

import torch
from torch import Tensor, nn

from lsnn_ext import ALIF
from lsnn_ext.functional import PackedSpikes, State
from smnist import pickled

THETA, BETA = 0.01, 1.8
WINDOW, PIXELS, CLASSES = 8, 784, 10
# The layers from the input on: our name and that of the time constants, the input and the
# recurrent Linear of the checkpoint.
LAYERS = {"r1": ("i2h", "h2h"), "r2": ("h2d", "d2d"), "d1": ("dense1", None), "o": ("d2o", None)}


class SequentialMNIST(nn.Module):
    """Four layers of model "srnn" that see a digit as a window of 8 pixels at each of 784 steps.

    Each layer reads the spikes of the layer before in the same step, and the class whose output
    neuron spikes most is the answer. Time constants, in steps, are Parameters as they are, one per
    neuron; a pass raises ValueError where one has left its range. Surrogates are those of "srnn",
    multi-Gaussian with gamma and lens 0.5.

    Args:
        sizes: neurons of the recurrent layers r1 and r2, and of d1, which has no recurrent weights.
        device: of the parameters.

    Modules: r1, r2, d1 and o, ALIF, whose bias is the sum of both biases that the program has.
    Their first weights are those of ALIF; load gives the published ones.
    """

    def __init__(self, sizes: tuple[int, int, int] = (64, 256, 256),
                 device: torch.device | str | None = None) -> None:
        super().__init__()
        before = WINDOW
        for (name, (_, recurrent)), N in zip(LAYERS.items(), (*sizes, CLASSES), strict=True):
            setattr(self, name, ALIF(
                before, N, dynamics="srnn", recurrent=recurrent is not None, threshold=THETA,
                beta=BETA, tau_mem=20.0, tau_adapt=200.0, per_neuron=True,
                learn={"tau_mem": "plain", "tau_adapt": "plain"}, device=device))
            before = N

    def layers(self) -> list[ALIF]:
        """r1, r2, d1 and o."""
        return [self.get_submodule(name) for name in LAYERS]  # type: ignore[misc]

    @staticmethod
    def windows(digits: Tensor) -> Tensor:
        """Digits (B, 784) or (B, 28, 28), bytes or float32 from 0 to 1, as inputs (784, B, 8): at
        step i the pixels from i on, and the last eight where there are no more.

        Raises:
            TypeError, ValueError: another dtype or shape.
        """
        if not isinstance(digits, Tensor) or digits.dtype not in (torch.uint8, torch.float32):
            given = getattr(digits, "dtype", type(digits).__name__)
            raise TypeError(f"digits: expected a tensor of uint8 from 0 to 255, or of float32 from "
                            f"0 to 1, got {given}")
        if tuple(digits.shape[1:]) not in ((PIXELS,), (28, 28)):
            raise ValueError(f"digits: expected shape (B, {PIXELS}) or (B, 28, 28), got "
                             f"{tuple(digits.shape)}")
        pixels = digits.flatten(1)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float() / 255
        first = torch.arange(PIXELS, device=pixels.device).clamp(max=PIXELS - WINDOW)
        at = first[:, None] + torch.arange(WINDOW, device=pixels.device)
        return pixels[:, at].transpose(0, 1).contiguous()

    def start(self, B: int, generator: torch.Generator | None = None) -> list[State]:
        """The states before the first step, as the program has them: random numbers in [0, 1),
        which are both membranes and spikes, and an adaptation of the threshold.

        Args:
            B: items of the batch.
            generator: of the random numbers, on the CPU; torch's own if left out.
        """
        found = []
        for layer in self.layers():
            like = layer.get_parameter("weight_ih_l0")
            first = torch.rand(1, B, layer.hidden_size, generator=generator).to(like)
            zero = torch.zeros_like(first)
            found.append(State(first, torch.full_like(first, THETA), zero, zero, first[None]))
        return found

    def spikes(self, x: Tensor, start: list[State]) -> list[Tensor]:
        """Spikes (T, B, N) of every layer, for inputs x (T, B, 8) from the states of start."""
        found = []
        for layer, state in zip(self.layers(), start, strict=True):
            x, _ = layer(x, state)
            found.append(x)
        return found

    def forward(self, digits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """How often each class spikes, (B, 10); the largest names the digit.

        The numbers before the first step count among the spikes, as the program counts them.

        Args:
            digits: (B, 784) or (B, 28, 28), bytes or float32 from 0 to 1.
            generator: of the first states, see start.

        Raises:
            TypeError, ValueError: digits of another dtype or shape.
        """
        return self.counts(self.windows(digits), self.start(len(digits), generator))

    def counts(self, x: Tensor, start: list[State]) -> Tensor:
        """forward of inputs x (T, B, 8) from the states of start. Spikes go from layer to layer as
        bits, and those of no other layer than the last are ever written as numbers."""
        *below, last = zip(self.layers(), start, strict=True)
        spikes: Tensor | PackedSpikes = x
        for layer, state in below:
            spikes, _ = layer(spikes, state, spikes="bits")
        layer, state = last
        counted, _ = layer(spikes, state)
        return state.z[0, 0] + counted.sum(0)


def _check(tensors: dict[str, Tensor]) -> None:
    before = WINDOW
    wanted: dict[str, tuple[int, ...]] = {}
    for name, (linear, recurrent) in LAYERS.items():
        N = CLASSES if name == "o" else len(tensors[f"tau_m_{name}"])
        wanted |= {f"tau_m_{name}": (N,), f"tau_adp_{name}": (N,), f"{linear}.weight": (N, before),
                   f"{linear}.bias": (N,)}
        if recurrent is not None:
            wanted |= {f"{recurrent}.weight": (N, N), f"{recurrent}.bias": (N,)}
        before = N
    for key, shape in wanted.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(f"{key} of shape {tuple(tensors[key].shape)} in place of {shape}")
        if not bool(tensors[key].isfinite().all()):
            raise ValueError(f"{key} with numbers that are not finite")
        if key.startswith("tau") and not bool((tensors[key] > 0).all()):
            raise ValueError(f"{key} with time constants that are not > 0")


def load(path: str | Path, device: torch.device | str | None = None) -> SequentialMNIST:
    """The network of a checkpoint of Yin et al.'s sequential-MNIST program, such as the published
    model_98.21_Task-smnist...pth.

    Such a file is a module that torch.save has pickled whole. Its tensors are read, and nothing
    that its pickle names is imported or run.

    Args:
        path: of the file.
        device: where the network shall lie. Default the CPU.

    Returns:
        The network, in training mode as any new module, to be called on digits.

    Raises:
        OSError: a file that cannot be read.
        ValueError: any other file than such a checkpoint.
    """
    data = Path(path).read_bytes()
    try:
        tensors = pickled.tensors(data)
        _check(tensors)
    except Exception as error:  # whatever a file that is something else leads to
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise ValueError(f"path: expected a checkpoint of Yin et al.'s sequential-MNIST network, "
                         f"got a file that cannot be read as one: {path} ({type(error).__name__}: "
                         f"{first})") from None
    sizes = tuple(len(tensors[f"tau_m_{name}"]) for name in LAYERS)
    net = SequentialMNIST(sizes[:3])  # type: ignore[arg-type]
    state: dict[str, Tensor] = {}
    for name, (linear, recurrent) in LAYERS.items():
        bias = tensors[f"{linear}.bias"]
        if recurrent is not None:
            state[f"{name}.weight_hh_l0"] = tensors[f"{recurrent}.weight"]
            bias = bias + tensors[f"{recurrent}.bias"]
        state |= {f"{name}.weight_ih_l0": tensors[f"{linear}.weight"], f"{name}.bias_ih_l0": bias,
                  f"{name}.tau_mem_l0": tensors[f"tau_m_{name}"],
                  f"{name}.tau_adapt_l0": tensors[f"tau_adp_{name}"]}
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            parameter.copy_(state.pop(key))
    assert not state
    return net if device is None else net.to(device)
