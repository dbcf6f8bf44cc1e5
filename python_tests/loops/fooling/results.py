"""Kinds of results and arguments, dtypes, errors, and threads."""
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fooling.base import N, Net, add, fused, loop, numbers
from fooling.changes import Changed


class Result(NamedTuple):
    """A result with names."""

    spikes: Tensor
    steps: int


@dataclass
class Record:
    """A result that is a dataclass."""

    spikes: Tensor
    name: str


add(fused, Net, "result",
    ATuple=lambda self, x, spikes: (spikes, None, 3, "text", [], ()),
    ADictionary=lambda self, x, spikes: OrderedDict(
        b=spikes, a={"sum": spikes.sum(), 3: [spikes[0]]}),
    Named=lambda self, x, spikes: Result(spikes, len(x)))

add(loop, Net, "result",
    ADataclass=lambda self, x, spikes: Record(spikes, "spikes"),
    SameTwice=lambda self, x, spikes: (spikes, spikes, spikes[0], spikes.view(-1)),
    OtherDtypes=lambda self, x, spikes: (
        spikes > 0, spikes.argmax(-1), spikes.to(torch.bfloat16), spikes.detach()))


@loop
class RowsOfTheLastStep(Net):
    """Parts of one tensor that the loop makes, as attributes and results."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x, v, z)
        self.first, self.second, *_ = (2 * z.detach()).unbind(0)
        return v, z

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return spikes, self.first, self.second


@loop
class Nothing(Net):
    """Only an attribute has the result."""

    losses = ("spikes",)

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        self.spikes = spikes


@loop
class ItsInput(Net):
    """The input itself, a view of it, and a parameter."""

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return spikes, x, x[0], self.back.weight, self.back.weight.t()


@fused
class SinglePrecision(Net):
    dtype = torch.float32

    def prepare(self) -> None:
        self.beta = 0.5


# The model and its input become float32.
add(fused, Changed, "prepare to_change given", OtherDtypeLater=(
    SinglePrecision.prepare, lambda self: self.float(),
    lambda x, call: (x.float() if call > 1 else x,)))


add(fused, Net, "given replayed",
    # The input is contiguous, and has a gradient, in some calls only.
    Transposed=(lambda x, call: (
        x.transpose(0, 1).contiguous().transpose(0, 1) if call % 2 else x,), (1,)),
    InputLearns=(lambda x, call: (x.requires_grad_(call not in (2, 5)),), (1, 4)))


class Tagged(Tensor):
    """A subclass of Tensor."""


add(loop, Net, "given",
    Expanded=lambda x, call: (x[:1].expand_as(x),),  # strides of zero
    # torch raises, for another number of inputs.
    WrongShape=lambda x, call: (x[..., :4] if call == 2 else x,),
    Subclass=lambda x, call: (x.as_subclass(Tagged) if call in (1, 2) else x,))


# Indices into an embedding.
add(fused, Net, "prepare zeros step_at given", Integers=(
    lambda self: setattr(self, "embedding", nn.Embedding(3, 5)),
    lambda self, x: Net.zeros(self, self.back.weight.new_zeros(*x.shape, 1)),
    lambda self, t, x, v, z: self.step(self.embedding(x), v, z),
    lambda x, call: ((2 * x[..., 0]).long(),)))


@loop
class OptionalState(Net):
    """None or a state, which the caller passes on."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        v, z = self.zeros(x) if state is None else state
        for x_t in x:
            v, z = self.step(x_t, v, z)
        return z, (v, z)

    @staticmethod
    def given(x: Tensor, call: int) -> tuple[Any, ...]:
        state = (numbers(call + 20, x.shape[1], N), numbers(call + 30, x.shape[1], N).round())
        return x, (state if call in (1, 2, 4) else None)


add(loop, Net, "forward given",
    # Arguments that are no tensors.
    WithFlag=(lambda self, x, gain=1.0, backwards=False: self.over(
                  x, gain * (x.flip(0) if backwards else x)),
              lambda x, call: (x, 1.0 if call < 2 else 2.0, call == 5)),
    ListAsInput=(lambda self, x: self.over(x[0][None], x), lambda x, call: (list(x),)),
    DictionaryAsInput=(lambda self, x: self.over(x["x"], x["x"] * x["gain"]),
                       lambda x, call: ({"x": x, "gain": 1.0 if call < 2 else 2.0},)),
    # Any number of arguments.
    CallerReads=(lambda self, *inputs, **_: self.over(inputs[0], sum(inputs)),
                 lambda x, call: (x, x / 2) if call < 2 else (x, x / 2, x)))


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
class InThread(Net):
    """A part of the loop runs in another thread, which sees no mode of this one."""

    def forward(self, x: Tensor) -> Any:
        is_on = torch.is_grad_enabled()

        def work() -> Tensor:
            with torch.set_grad_enabled(is_on):
                return self.over(x, x)

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result() * 2


@loop
class NestedModes(Net):
    """A mode of the user inside of forward."""

    def forward(self, x: Tensor) -> Any:
        class Doubles(TorchFunctionMode):
            def __torch_function__(self, function: Any, types: Any, args: Any = (),
                                   kwargs: Any = None) -> Any:
                result = function(*args, **(kwargs or {}))
                return 2 * result if function is nn.functional.linear else result

        with Doubles():
            return self.over(x, x)
