"""Random numbers."""
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fooling.base import N, Net, OwnLoop, add, loop, refused


class Draws(Net):
    """Programs that draw something in each step."""

    def draw(self, t: int, v: Tensor) -> Any:
        """Returns what is added to the membrane."""
        raise NotImplementedError

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(x, v + self.draw(t, v), z)


@loop
class Uniform(Draws):
    def draw(self, t: int, v: Tensor) -> Any:
        return torch.rand_like(v)


# A generator object, whose state goes from call to call.
add(loop, Draws, "prepare draw", OwnGenerator=(
    lambda self: setattr(self, "generator", torch.Generator().manual_seed(5)),
    lambda self, t, v: torch.rand(v.shape, generator=self.generator, dtype=v.dtype)))


def draw_after_seed(self: Net, t: int, v: Tensor) -> Tensor:
    torch.manual_seed(t)
    return torch.rand_like(v)


def draw_and_restore(self: Net, t: int, v: Tensor) -> Tensor:
    """Each step puts the state of the generator back."""
    state = torch.get_rng_state()
    noise = torch.rand_like(v)
    torch.set_rng_state(state)
    return noise


def draw_forked(self: Net, t: int, v: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return torch.rand_like(v)


add(loop, Draws, "draw",
    InPlace=lambda self, t, v: torch.empty_like(v).normal_(0, 0.5),
    # The order of the draws matters.
    OfTwoKinds=lambda self, t, v: torch.randn(v.shape, dtype=v.dtype) * torch.bernoulli(
        torch.full_like(v, 0.25)),
    EverySecondStep=lambda self, t, v: torch.rand_like(v) if t % 2 else 0.0,
    # Each draw takes an odd count of numbers, which generators hand out in blocks.
    OddNumber=lambda self, t, v: torch.randn(3, dtype=v.dtype).sum() + torch.randn(1),
    FromState=lambda self, t, v: torch.bernoulli(torch.sigmoid(v.detach())),
    # poisson takes more or fewer numbers from the generator, by its rate.
    CountFromState=lambda self, t, v: torch.poisson(v.detach().abs()) / 8 + torch.rand(
        1, dtype=v.dtype),
    Dropout=lambda self, t, v: F.dropout(v, 0.5),
    DropoutOfNothing=lambda self, t, v: (
        F.dropout(v, 0.0) + F.dropout(v, 0.5, training=False) - 2 * v),
    SeedInLoop=draw_after_seed,
    StateOfGenerator=draw_and_restore,
    Forked=draw_forked,
    Multinomial=lambda self, t, v: torch.multinomial(torch.ones_like(v), 1).to(v.dtype) / 8)

add(refused("random"), Draws, "draw",
    PythonRandom=lambda self, t, v: random.random(),
    PythonRandomBranch=lambda self, t, v: 0.5 if random.random() < 0.5 else 0.0,
    NumpyRandom=lambda self, t, v: float(np.random.rand()))  # noqa: NPY002


def draw_before_the_loop(self: Net, x: Tensor) -> Any:
    noise = torch.randn_like(x)
    return (x[t] + noise[t] for t in range(len(x)))


add(loop, Net, "order",
    PoissonInput=lambda self, x: ((torch.rand_like(x_t) < x_t).to(x.dtype) for x_t in x),
    BeforeTheLoop=draw_before_the_loop,
    # A permutation of time, read by Python.
    Permutation=lambda self, x: (x[t] for t in torch.randperm(len(x)).tolist()),
    PermutationOfInputs=lambda self, x: x[torch.randperm(len(x))])

# A mask of NumPy before the loop, of shape (I,).
add(refused("random|from_numpy|lift_fresh"), Net, "order",
    NumpyRandomBefore=lambda self, x: x * torch.from_numpy(
        np.random.rand(x.shape[2])))  # noqa: NPY002

add(loop, Net, "zeros", FirstState=lambda self, x: (
    torch.rand(x.shape[1], N, dtype=x.dtype), x.new_zeros(x.shape[1], N)))


@loop
class DropoutOfWeights(OwnLoop):
    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        weight = F.dropout(self.back.weight, 0.25)
        for x_t in x:
            v, z = self.fire(self.feed(x_t) + F.linear(z, weight), v, z)
            yield z
