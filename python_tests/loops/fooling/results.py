"""Kinds of results and arguments, dtypes, errors, and threads."""
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fooling.base import N, Net, Spike, fused, loop, numbers


class Result(NamedTuple):
    """A result with names."""

    spikes: Tensor
    steps: int


@dataclass
class Record:
    """A result that is a dataclass."""

    spikes: Tensor
    name: str


@fused
class ATuple(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, x), None, 3, "text", [], ()


@fused
class ADictionary(Net):
    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        return OrderedDict(b=spikes, a={"sum": spikes.sum(), 3: [spikes[0]]})


@fused
class Named(Net):
    def forward(self, x: Tensor) -> Any:
        return Result(self.over(x, x), len(x))


@loop
class ADataclass(Net):
    def forward(self, x: Tensor) -> Any:
        return Record(self.over(x, x), "spikes")


@loop
class Nothing(Net):
    """Only an attribute has the result."""

    losses = ("spikes",)

    def forward(self, x: Tensor) -> Any:
        self.spikes = self.over(x, x)


@loop
class ItsInput(Net):
    """The input itself, a view of it, and a parameter."""

    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        return spikes, x, x[0], self.back.weight, self.back.weight.t()


@loop
class SameTwice(Net):
    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        return spikes, spikes, spikes[0], spikes.view(-1)


@loop
class OtherDtypes(Net):
    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        return spikes > 0, spikes.argmax(-1), spikes.to(torch.bfloat16), spikes.detach()


@loop
class LazyResult(Net):
    """A generator, whose loop runs after the call."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []

        def steps() -> Any:
            nonlocal v, z
            for x_t in x:
                v, z = self.step(x_t, v, z)
                yield z

        out = list(steps())
        return iter(out).__length_hint__(), out


@loop
class WritesToResult(Net):
    """The caller writes to the results of the last call before the next."""

    spoils = True


@fused
class SinglePrecision(Net):
    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.beta = 0.5


@fused
class OtherDtypeLater(Net):
    """The model and its input become float32."""

    replayed = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.beta = 0.5

    def change(self, call: int) -> None:
        if call == 2:
            self.float()

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one.float() if call > 1 else one for one in super().inputs(call))


@fused
class Transposed(Net):
    """The input is contiguous in some calls only."""

    replayed = (1,)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return (x.transpose(0, 1).contiguous().transpose(0, 1) if call % 2 else x,)


@loop
class Expanded(Net):
    """An input with strides of zero."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return (x[:1].expand_as(x),)


@fused
class InputLearns(Net):
    """The input has a gradient, in some calls."""

    replayed = (1, 4)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one.requires_grad_(call not in (2, 5)) for one in super().inputs(call))


@fused
class Integers(Net):
    """Indices into an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 5)

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(self.back.weight.new_zeros(*x.shape, 1))
        out = []
        for x_t in x:
            v, z = self.step(self.embedding(x_t), v, z)
            out.append(z)
        return torch.stack(out)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple((2 * one[..., 0]).long() for one in super().inputs(call))


@loop
class WithFlag(Net):
    """Arguments that are no tensors."""

    def forward(self, x: Tensor, gain: float = 1.0, backwards: bool = False) -> Any:
        x = x.flip(0) if backwards else x
        return self.over(x, gain * x)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return x, (1.0 if call < 2 else 2.0), call == 5


@loop
class OptionalState(Net):
    """None or a state, which the caller passes on."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        v, z = self.zeros(x) if state is None else state
        for x_t in x:
            v, z = self.step(x_t, v, z)
        return z, (v, z)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        state = (numbers(call + 20, x.shape[1], N), numbers(call + 30, x.shape[1], N).round())
        return x, (state if call in (1, 2, 4) else None)


@loop
class ListAsInput(Net):
    def forward(self, x: list[Tensor]) -> Any:
        return self.over(x[0][None], x)

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return (list(x),)


@loop
class DictionaryAsInput(Net):
    def forward(self, x: dict[str, Any]) -> Any:
        return self.over(x["x"], x["x"] * x["gain"])

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return ({"x": x, "gain": 1.0 if call < 2 else 2.0},)


@loop
class CallerReads(Net):
    """Any number of arguments."""

    def forward(self, *inputs: Tensor, **_: Any) -> Any:
        return self.over(inputs[0], sum(inputs))

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        (x,) = super().inputs(call)
        return (x, x / 2) if call < 2 else (x, x / 2, x)


@loop
class Raises(Net):
    """Some calls raise, in the middle of the loop."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        for t, x_t in enumerate(x):
            if t == 5 and x.shape[1] == 4:
                raise ValueError("four sequences")
            v, z = self.step(x_t, v, z)
        return z


@loop
class RaisesWithState(Net):
    """An attribute is half written when a call raises."""

    def forward(self, x: Tensor) -> Any:
        self.v, z = self.zeros(x)
        for t, x_t in enumerate(x):
            if t == 5 and x.shape[1] == 4:
                raise ValueError("four sequences")
            self.v, z = self.step(x_t, self.v, z)
        return z


@loop
class WrongShape(Net):
    """torch raises, for another number of inputs."""

    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one[..., :4] if call == 2 else one for one in super().inputs(call))


@loop
class CallsItself(Net):
    """forward runs the model on halves of the batch."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[1] > 2:
            return torch.cat([self(x[:, :2]), self(x[:, 2:])], 1)
        return self.over(x, x)


@loop
class InThread(Net):
    """A part of the loop runs in another thread, which sees no mode of this one."""

    def forward(self, x: Tensor) -> Any:
        found: list[Tensor] = []
        is_on = torch.is_grad_enabled()

        def work() -> None:
            with torch.set_grad_enabled(is_on):
                found.append(self.over(x, x))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found[0] * 2


@loop
class StepInThread(Net):
    """One operator of each step runs in another thread."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            found: list[Tensor] = []
            thread = threading.Thread(target=lambda z=z, found=found: found.append(self.back(z)))
            thread.start()
            thread.join()
            v = 0.75 * v + self.feed(x_t) + found[0] - z.detach()
            z = Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@loop
class NestedModes(Net):
    """A mode of the user inside of forward."""

    def forward(self, x: Tensor) -> Any:
        from torch.overrides import TorchFunctionMode

        class Doubles(TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (),
                                   kwargs: Any = None) -> Any:
                result = function(*args, **(kwargs or {}))
                return 2 * result if function is nn.functional.linear else result

        with Doubles():
            return self.over(x, x)


class Tagged(Tensor):
    """A subclass of Tensor."""


@loop
class Subclass(Net):
    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        return tuple(one.as_subclass(Tagged) if call in (1, 2) else one
                     for one in super().inputs(call))
