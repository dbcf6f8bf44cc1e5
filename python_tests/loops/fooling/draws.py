"""Random numbers."""
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fooling.base import N, Net, Spike, loop, refused


class Draws(Net):
    """Programs that draw something in each step."""

    def draw(self, t: int, v: Tensor) -> Any:
        """Returns what is added to the membrane."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, v + self.draw(t, v), z)
            out.append(z)
        return torch.stack(out)


@loop
class FirstState(Net):
    def zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand(x.shape[1], N, dtype=x.dtype), x.new_zeros(x.shape[1], N)


@loop
class Uniform(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return torch.rand_like(v)


@loop
class InPlace(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return torch.empty_like(v).normal_(0, 0.5)


@loop
class OfTwoKinds(Draws):
    """The order of the draws matters."""

    def draw(self, t: int, v: Tensor) -> Any:
        noise = torch.randn(v.shape, dtype=v.dtype)
        return noise * torch.bernoulli(torch.full_like(v, 0.25))


@loop
class EverySecondStep(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return torch.rand_like(v) if t % 2 else 0.0


@loop
class OddNumber(Draws):
    """Each draw takes an odd count of numbers, which generators hand out in blocks."""

    def draw(self, t: int, v: Tensor) -> Any:
        return torch.randn(3, dtype=v.dtype).sum() + torch.randn(1)


@loop
class FromState(Draws):
    """A draw whose probability is the state."""

    def draw(self, t: int, v: Tensor) -> Any:
        return torch.bernoulli(torch.sigmoid(v.detach()))


@loop
class CountFromState(Draws):
    """poisson takes more or fewer numbers from the generator, by its rate."""

    def draw(self, t: int, v: Tensor) -> Any:
        return torch.poisson(v.detach().abs()) / 8 + torch.rand(1, dtype=v.dtype)


@loop
class Dropout(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return F.dropout(v, 0.5)


@loop
class DropoutOfWeights(Net):
    def forward(self, x: Tensor) -> Any:
        weight = F.dropout(self.back.weight, 0.25)
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v + self.feed(x_t) + F.linear(z, weight) - z.detach()
            z = Spike.apply(v - 1)
            out.append(z)
        return torch.stack(out)


@loop
class DropoutOfNothing(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return F.dropout(v, 0.0) + F.dropout(v, 0.5, training=False) - 2 * v


@loop
class PoissonInput(Net):
    """The input is a rate."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, ((torch.rand_like(x_t) < x_t).to(x.dtype) for x_t in x))


@loop
class BeforeTheLoop(Net):
    def forward(self, x: Tensor) -> Any:
        noise = torch.randn_like(x)
        return self.over(x, (x[t] + noise[t] for t in range(len(x))))


@loop
class Permutation(Net):
    """A permutation of time, read by Python."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, (x[t] for t in torch.randperm(len(x)).tolist()))


@loop
class PermutationOfInputs(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, x[torch.randperm(len(x))])


@loop
class OwnGenerator(Draws):
    """A generator object, whose state goes from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def draw(self, t: int, v: Tensor) -> Any:
        return torch.rand(v.shape, generator=self.generator, dtype=v.dtype)


@loop
class NewGenerator(Draws):
    """A generator with the same seed in each step."""

    def draw(self, t: int, v: Tensor) -> Any:
        generator = torch.Generator().manual_seed(t // 2)
        return torch.rand(v.shape, generator=generator, dtype=v.dtype)


@loop
class SeedInForward(Net):
    def forward(self, x: Tensor) -> Any:
        torch.manual_seed(3)
        return self.over(x, x + torch.rand_like(x))


@loop
class SeedInLoop(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        torch.manual_seed(t)
        return torch.rand_like(v)


@loop
class StateOfGenerator(Draws):
    """Each step puts the state of the generator back."""

    def draw(self, t: int, v: Tensor) -> Any:
        state = torch.get_rng_state()
        noise = torch.rand_like(v)
        torch.set_rng_state(state)
        return noise


@loop
class Forked(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        with torch.random.fork_rng(devices=[]):
            return torch.rand_like(v)


@refused("random")
class PythonRandom(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return random.random()


@refused("random")
class PythonRandomBranch(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return 0.5 if random.random() < 0.5 else 0.0


@refused("random")
class NumpyRandom(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return float(np.random.rand())  # noqa: NPY002


@refused("random|from_numpy|lift_fresh")
class NumpyRandomBefore(Net):
    """A mask of NumPy before the loop, of shape (I,)."""

    def forward(self, x: Tensor) -> Any:
        return self.over(x, x * torch.from_numpy(np.random.rand(x.shape[2])))  # noqa: NPY002


@loop
class Multinomial(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return torch.multinomial(torch.ones_like(v), 1).to(v.dtype) / 8
