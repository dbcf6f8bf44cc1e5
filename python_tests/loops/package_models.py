"""Small models of other packages' recurrent layers, which are called as their users call them, and
what a row of the tables of settings holds."""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from originals import B, I, N, T, uniform

DOUBLE, SINGLE = torch.float64, torch.float32
CLASSES = 3
Make = Callable[[], Any]  # of a layer; Any: it may have any attributes
Values = dict[str, Tensor]


class Small(nn.Module):
    """A layer and a readout of its spikes. The subclasses call the layer."""

    def __init__(self, layer: Any, batched: tuple[int, ...] = (B,)) -> None:
        super().__init__()
        self.layer, self.batched = layer, batched
        dtype = next(iter(layer.parameters())).dtype
        self.readout = nn.Linear(N, CLASSES, dtype=dtype)
        with torch.no_grad():
            self.readout.weight.copy_(uniform(-1, 1, CLASSES, N, seed=31))
            self.readout.bias.copy_(uniform(-1, 1, CLASSES, seed=32))

    def inputs(self, seed: int) -> Tensor:
        """Few bits, so that no sum of products rounds."""
        raise NotImplementedError

    def reset(self) -> None:
        """What users call between two sequences."""

    def states(self, x: Tensor) -> Values:
        """Spikes, and what else the layer returns or keeps."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Values:
        found = self.states(x)
        return found | {"classes": self.readout(found["spikes"])}


class Row(NamedTuple):
    """One setting.

    dtype: in which the package computes.
    stays: words of the report for a layer that is not fused, "" where it is.
    unlearned: parameters that do not learn, or whose gradient is a sum over all neurons that may
        nearly cancel.
    is_smooth: its spikes are not 0 and 1.
    """

    name: str
    model: Callable[[Any], Small]
    make: Make
    dtype: torch.dtype
    stays: str = ""
    unlearned: tuple[str, ...] = ()
    is_smooth: bool = False


# ------------------------------------------------------------------------------------------- norse
class Norse(Small):
    """The layer has the loop."""

    def inputs(self, seed: int) -> Tensor:
        return uniform(0, 1, T, *self.batched, I, dtype=self.layer.input_weights.dtype, seed=seed)

    def states(self, x: Tensor) -> Values:
        spikes, state = self.layer(x)
        return {"spikes": spikes, **state._asdict()}


class NorseCell(Norse):
    """A cell in a loop."""

    def states(self, x: Tensor) -> Values:
        state, spikes = None, []
        for x_t in x:
            z, state = self.layer(x_t, state)
            spikes.append(z)
        return {"spikes": torch.stack(spikes), **state._asdict()}  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------- snnTorch
class SnnTorch(Small):
    """The loop of its tutorials, from states of zeros."""

    def inputs(self, seed: int) -> Tensor:
        return uniform(-0.5, 0.9, T, *self.batched, N, dtype=SINGLE, seed=seed)

    def start(self, x: Tensor) -> list[Tensor]:
        return [torch.zeros_like(x[0])] * (3 if hasattr(self.layer, "alpha") else 2)

    def states(self, x: Tensor) -> Values:
        state = self.start(x)
        steps = []
        for current in x:
            state = list(self.layer(current, *state))
            steps.append(state)
        spikes, *others = (torch.stack(each) for each in zip(*steps, strict=True))
        return {"spikes": spikes, "membranes": others[-1], **(
            {"synapse": others[0][-1]} if len(others) > 1 else {})}


class SnnTorchReset(SnnTorch):
    """From the states that its reset returns."""

    def start(self, x: Tensor) -> list[Tensor]:
        return list(self.layer.reset_mem())


class SnnTorchHidden(SnnTorch):
    """States that stay in the layer."""

    def reset(self) -> None:
        self.layer.reset_mem()

    def states(self, x: Tensor) -> Values:
        return {"spikes": torch.stack([self.layer(current) for current in x]),
                "membrane": self.layer.mem}


class SnnTorchImages(SnnTorch):
    """Channels and pixels."""

    def inputs(self, seed: int) -> Tensor:
        return uniform(-0.5, 0.9, T, B, 2, 3, N, dtype=SINGLE, seed=seed)


# ------------------------------------------------------------------------------------------ sinabs
class Sinabs(Small):
    """Batch first; the states stay in the layer."""

    def inputs(self, seed: int) -> Tensor:
        synapse = getattr(self.layer, "alpha_syn" if self.layer.train_alphas else "tau_syn")
        gain = (6.0 if self.layer.norm_input else 1.0) * (1.0 if synapse is None else 1.5)
        return uniform(-0.4 * gain, 0.8 * gain, B, T, *self.batched[1:], N, dtype=SINGLE, seed=seed)

    def kept(self) -> Values:
        """What the layer keeps."""
        return {"rate": self.layer.firing_rate, **dict(self.layer.named_buffers())}

    def reset(self) -> None:
        self.layer.reset_states()

    def states(self, x: Tensor) -> Values:
        return {"spikes": self.layer(x), **self.kept()}


class SinabsResets(Sinabs):
    """Resets itself."""

    def states(self, x: Tensor) -> Values:
        self.reset()
        return super().states(x)


class SinabsGoesOn(Sinabs):
    """From the states of the call before, in parts of a sequence."""

    def states(self, x: Tensor) -> Values:
        spikes = [self.layer(part) for part in x.split((1, 9, T - 10), dim=1)]
        return {"spikes": torch.cat(spikes, dim=1), **self.kept()}


# ------------------------------------------------------------------------------------ SpikingJelly
class Jelly(Small):
    """A call has the whole sequence; the states stay in the layer."""

    def inputs(self, seed: int) -> Tensor:
        rc = self.layer.rc
        return uniform(-0.6, 1.0, T, *self.batched, rc.in_features - N, dtype=rc.weight.dtype,
                       seed=seed)

    def reset(self) -> None:
        from spikingjelly.activation_based import functional
        functional.reset_net(self.layer)

    def kept(self) -> Values:
        """What the layer keeps."""
        sub = self.layer.sub_module
        return {"y": self.layer.y, "v": (sub[1] if isinstance(sub, nn.Sequential) else sub).v}

    def states(self, x: Tensor) -> Values:
        return {"spikes": self.layer(x), **self.kept()}


class JellyResets(Jelly):
    """Resets itself."""

    def states(self, x: Tensor) -> Values:
        self.reset()
        return super().states(x)


class JellyByStep(Jelly):
    """A call has one step."""

    def states(self, x: Tensor) -> Values:
        return {"spikes": torch.stack([self.layer(x_t) for x_t in x]), **self.kept()}


class JellyElementWise(JellyByStep):
    """A container without a matrix."""

    def __init__(self, layer: Any) -> None:
        layer.register_parameter("none", nn.Parameter(torch.zeros(())))
        super().__init__(layer)

    def inputs(self, seed: int) -> Tensor:
        return uniform(-0.6, 2.0, T, B, N, dtype=SINGLE, seed=seed)


# ------------------------------------------------------------------------------------------ papers
class Yin(Small):
    """The loop of Yin et al."""

    def inputs(self, seed: int) -> Tensor:
        return uniform(-1, 2, T, B, I, dtype=self.readout.weight.dtype, seed=seed)

    def start(self, x: Tensor) -> None:
        self.layer.set_neuron_state(B)

    def states(self, x: Tensor) -> Values:
        self.start(x)
        found = [self.layer(x_t) for x_t in x]
        return {"spikes": torch.stack([spike for _, spike in found]),
                "membranes": torch.stack([mem for mem, _ in found]), "b": self.layer.b}


class YinFromInputs(Yin):
    """Some of their programs begin with numbers in place of spikes, and learn through them."""

    def start(self, x: Tensor) -> None:
        self.layer.set_neuron_state(B)
        first = x[0].mean(1, keepdim=True).expand(B, N)
        self.layer.mem, self.layer.spike = 0.5 * first, first


class Sparch(Small):
    """Batch first; the first states are drawn in each call."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        if layer.bidirectional:
            self.readout = nn.Linear(2 * N, CLASSES, dtype=self.readout.weight.dtype)
            with torch.no_grad():
                self.readout.weight.copy_(uniform(-1, 1, CLASSES, 2 * N, seed=31))
                self.readout.bias.copy_(uniform(-1, 1, CLASSES, seed=32))

    def inputs(self, seed: int) -> Tensor:
        return uniform(-1, 2, B, T, I, dtype=self.readout.weight.dtype, seed=seed)

    def states(self, x: Tensor) -> Values:
        return {"spikes": self.layer(x)}


class SEAdLIF(Sparch):
    """Batch first."""

    def __init__(self, layer: Any) -> None:
        Small.__init__(self, layer)

    def states(self, x: Tensor) -> Values:
        spikes, states = self.layer(x)
        return {"spikes": spikes, "states": states}
