"""What a fooling program is: a module with a loop, the calls that it gets, and what is wanted."""
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T, B, I, N = 14, 3, 5, 8  # steps, batch, inputs, neurons
CALLS = 6  # the fourth and the fifth have another shape
Program = TypeVar("Program", bound="type[Net]")


class Wanted(NamedTuple):
    """What convert should do with a program; equal results are demanded of all."""

    how: str  # "fused": replayed, with a kernel; "loop": anything; "refused": with this reason
    reason: str = ""  # a pattern that the report's reason has, in any case


PROGRAMS: dict[str, tuple[type["Net"], Wanted]] = {}


def program(how: str, reason: str = "") -> Callable[[Program], Program]:
    """A decorator that puts a program into the table."""
    def put(kind: Program) -> Program:
        name = f"{kind.__module__.rpartition('.')[2]}-{kind.__name__}"
        assert name not in PROGRAMS and (how == "refused") == bool(reason), name
        PROGRAMS[name] = kind, Wanted(how, reason)
        return kind
    return put


fused, loop = program("fused"), program("loop")


def refused(reason: str) -> Callable[[Program], Program]:
    """A decorator of a program that must be refused with a reason that has this pattern."""
    return program("refused", reason)


def add(put: Callable[[Any], Any], base: type["Net"], methods: str, **bodies: Any) -> None:
    """Puts a program into the table for each body: a subclass of base with these methods.

    Args:
        methods: their names, separated by spaces; attributes may follow.
        bodies: a function, or a tuple with one for each method.
    """
    for name, body in bodies.items():
        functions = body if isinstance(body, tuple) else (body,)
        members = dict(zip(methods.split(), functions, strict=True))
        put(type(name, (base,), {**members, "__module__": functions[0].__module__}))


class Spike(torch.autograd.Function):
    """A spike with the surrogate gradient of a fast sigmoid."""

    scale = 4.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g / (Spike.scale * x.abs() + 1) ** 2


def spike_by(**methods: Any) -> Any:
    """Returns the method `spike` of a program, whose surrogate has another forward or backward."""
    function: Any = type("Local", (Spike,), {
        name: staticmethod(method) for name, method in methods.items()})

    def spike(self: Net, v: Tensor) -> Tensor:
        return function.apply(v)

    spike.__module__ = next(iter(methods.values())).__module__  # that of the program
    return spike


class Net(nn.Module):
    """A recurrent layer of leaky neurons; programs are subclasses of it.

    Weights and inputs are multiples of 1/8, and beta is 3/4: all sums are exact in float64, so
    that results are equal to the last bit in any order of summation.
    """

    dtype = torch.float64
    rounds = False  # whether results may differ by the rounding of a product
    replayed: tuple[int, ...] = (1, 2, 4)  # calls of a fused program that must not run its forward
    losses: tuple[str, ...] = ()  # attributes that the loss has, beside the results
    learns = True  # whether parameters get a gradient that is not 0
    spoils = False  # whether the caller writes to the results before the next call
    changes = False  # whether `change` must change what a call returns

    def __init__(self) -> None:
        super().__init__()
        self.feed, self.back = nn.Linear(I, N), nn.Linear(N, N, bias=False)
        self.beta, self.threshold = 0.75, 1.0
        self.prepare()

    def zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(x.shape[1], N), x.new_zeros(x.shape[1], N)

    # ------------------------------------------------------------------ what programs replace
    def prepare(self) -> None:
        """Makes what the program has besides the layers."""

    def order(self, x: Tensor) -> Iterable[Tensor]:
        """The inputs of the steps."""
        return x

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(x, v, z)

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.fire(self.feed(x) + self.back(z), v, z)

    def fire(self, current: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + current - self.threshold * z.detach()
        return v, self.spike(v - self.threshold)

    def spike(self, v: Tensor) -> Tensor:
        return Spike.apply(v)

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        return spikes

    def run_steps(self, x: Tensor, inputs: Iterable[Tensor] | None = None
                  ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """The number, input, membrane and spikes of each step, for as many sequences as x has."""
        v, z = self.zeros(x)
        for t, x_t in enumerate(x if inputs is None else inputs):
            v, z = self.step_at(t, x_t, v, z)
            yield t, x_t, v, z

    def over(self, x: Tensor, inputs: Iterable[Tensor] | None = None) -> Tensor:
        """The spikes of all steps."""
        return torch.stack([z for _, _, _, z in self.run_steps(x, inputs)])

    def over_with_membrane(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The spikes of all steps, and the last membrane."""
        _, _, membranes, spikes = zip(*self.run_steps(x), strict=True)
        return torch.stack(spikes), membranes[-1]

    def forward(self, x: Tensor) -> Any:
        return self.result(x, self.over(x, self.order(x)))

    # ------------------------------------------------------------------------ what the judge asks
    @classmethod
    def inputs(cls, call: int) -> tuple[Any, ...]:
        """The arguments of the call, -1 for those that convert gets."""
        x = numbers(call, *((T - 3, B + 1) if call in (3, 4) else (T, B)), I).to(cls.dtype)
        return cls.given(x, call)

    @staticmethod
    def given(x: Tensor, call: int) -> tuple[Any, ...]:
        """The arguments made of this sequence."""
        return (x,)

    @classmethod
    def around(cls, call: int) -> AbstractContextManager[Any]:
        """What the call runs under."""
        return nullcontext()

    def change(self, call: int) -> None:
        """What the user does before the call."""

    @classmethod
    def reset(cls) -> None:
        """Puts back what `change` has changed outside of the model."""


class OwnLoop(Net):
    """Programs with a loop of their own, which yields what is stacked."""

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return torch.stack(list(self.iterate(x, *self.zeros(x))))


def numbers(seed: int, *shape: int) -> Tensor:
    """Halves from 0 to 1."""
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randint(0, 3, shape, generator=generator).double() / 2


def build(kind: type[Net]) -> Net:
    """The model, with parameters of few bits."""
    kind.reset()
    torch.manual_seed(1)
    model = kind().to(kind.dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            low, high = (-4, 7) if parameter.dim() > 1 else (-1, 4)
            parameter.copy_(torch.randint(low, high, parameter.shape) / 8)
    return model
