"""Random steps: their programs against the steps themselves and autograd."""
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from surrogates import Boxcar
from traced_steps import NEURONS, check_step

STEPS = 300
PER_TEST = 25


UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.neg, torch.abs, torch.relu, torch.square, torch.detach, torch.clone, torch.sign,
    Boxcar.apply, lambda x: x.clamp(-1, 1), lambda x: x ** 3, lambda x: 1 - x,
    lambda x: x * 0.7, lambda x: x / 3, lambda x: (x > 0.3).to(x), lambda x: 1 / (1 + x.abs()),
    lambda x: x.clone().mul_(0.9).add_(0.1), lambda x: x.masked_fill(x > 1, 0.5),
    lambda x: torch.nn.functional.leaky_relu(x, 0.1), lambda x: x.clamp(min=0.2),
    torch.round, torch.floor, torch.frac, lambda x: torch.div(x, 0.3, rounding_mode="trunc")]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.sub, torch.mul, torch.maximum, torch.minimum,
    lambda x, y: torch.add(x, y, alpha=0.3), lambda x, y: x / (1 + y.abs()),
    lambda x, y: torch.where(x > y, x, y * 0.5), lambda x, y: torch.lerp(x, y, 0.3),
    lambda x, y: (x >= y) * x, lambda x, y: ((x > 0) & ~(y > 0)).to(x)]
ROWS: list[Callable[[Tensor, Tensor], Tensor]] = [  # of what has the shape (B, N)
    lambda x, y: x.clone().sub_(y), lambda x, y: torch.where((x > 0) | (y > 0), x, -y),
    lambda x, y: torch.addcmul(x, x, y), lambda x, y: x.clone().copy_(y.expand_as(x)) * x]
TRANSCENDENTAL: list[Callable[[Tensor], Tensor]] = [
    torch.sigmoid, torch.tanh, torch.sin, torch.cos, torch.atan, torch.erf,
    lambda x: torch.exp(-x * x), lambda x: torch.log(1 + x.abs()), lambda x: (x.abs() + 1).sqrt()]


def make_step(draw: random.Random, are_numbers: list[bool], states: int,
              is_exact: bool) -> Callable:
    unary = UNARY if is_exact else UNARY + TRANSCENDENTAL
    plan = [(draw.random(), draw.choice(unary), draw.choice(BINARY), draw.choice(ROWS),
             draw.randrange(10 ** 6), draw.randrange(10 ** 6)) for _ in range(draw.randint(3, 10))]
    ends = [draw.randrange(10 ** 6) for _ in range(states)]

    def step(*rows: Tensor, **coefficients: Any) -> list[Tensor]:
        values = [*rows, *coefficients.values()]
        numbers = [*are_numbers]  # a traced step gets numbers as tensors
        made = list(rows)
        for choice, one, two, of_rows, i, j in plan:
            x, y = values[i % len(values)], values[j % len(values)]
            is_number, other = numbers[i % len(values)], numbers[j % len(values)]
            if choice < 0.4 and not is_number:
                value = one(x)
            elif choice < 0.55:
                value = of_rows(made[i % len(made)], made[j % len(made)])
            elif not is_number and not other:
                value = two(x, y)
            else:
                value = x * 0.5 + y - x / (3 + y * y)
            values.append(value)
            numbers.append(is_number and other and choice >= 0.55)
            if not numbers[-1] and value.dim() == 2:
                made.append(value)
        results = [made[-1 - i % min(4, len(made))] for i in ends]
        return [*results, Boxcar.apply(made[-1] - 0.1)]

    return step


@pytest.mark.parametrize("part", range(STEPS // PER_TEST))
def test_random_steps(part: int) -> None:
    for seed in range(part * PER_TEST, (part + 1) * PER_TEST):
        draw = random.Random(seed)
        dtype = draw.choice((torch.float32, torch.float64))
        currents, states = draw.randint(1, 2), draw.randint(1, 3)
        is_exact = draw.random() < 0.6
        torch.manual_seed(seed)
        kinds: list[Any] = [0.7, -1.3, 3, torch.randn((), dtype=dtype),
                            torch.randn(NEURONS, dtype=dtype)]
        coefficients = {f"k{i}": draw.choice(kinds) for i in range(draw.randint(0, 3))}
        are_numbers = [False] * (currents + states + 1) + [
            not isinstance(x, Tensor) for x in coefficients.values()]
        step = make_step(draw, are_numbers, states, is_exact)
        try:
            check_step(step, coefficients, currents=currents, states=states, dtype=dtype,
                       is_exact=is_exact, scale=0.8, seed=seed,
                       tolerance=None if is_exact else {torch.float32: 3e-4, torch.float64: 1e-12}[
                           dtype])
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
