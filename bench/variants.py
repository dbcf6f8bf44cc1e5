"""One layer, in several variants: what each algorithm and option of the kernels gains or costs,
side by side in one run.

    python -m bench.variants                       # all of the comparisons below
    python -m bench.variants sparse --repeats 20   # some

Every comparison is of forward and backward through functional.layer with autograd, by forced
choices or arguments that change nothing but the way. Times are medians in ms with the ratio to
the first line; memory is the peak of resident size in a fresh process.
"""
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import memory
from bench.arguments import at_least_one, make_parser
from bench.contestants import OURS, Differentiated, Within, rounding
from bench.measure import alternate
from bench.problem import COEFFICIENTS, YARDSTICKS, Problem, Shape
from bench.rates import BASE_RATE, LONG_ENOUGH, find_scale
from lsnn_ext import LSNN, _ops, functional


@dataclass(frozen=True)
class Variant:
    """One line of a comparison; density: share of the recurrent weights that are not 0, delays: how
    many distinct ones."""

    name: str
    forced: dict[str, str | int] = field(default_factory=dict)  # see lsnn_ext._ops.forced
    arguments: dict[str, Any] = field(default_factory=dict)  # of functional.layer
    precision: str = "highest"  # of torch.set_float32_matmul_precision
    layers: int = 1
    bits: bool = False  # between layers
    density: float = 1.0
    delays: int = 1


@dataclass(frozen=True)
class Comparison:
    shape: Shape
    variants: tuple[Variant, ...]


P, M, L = (YARDSTICKS[name].shape for name in "PML")
AS_CHOSEN = Variant("as chosen")
DENSE, ACTIVE = (Variant(variant, {"product": variant}) for variant in ("dense", "active"))
_PRODUCTS = (AS_CHOSEN, DENSE, ACTIVE, Variant("bfloat16 allowed", precision="medium"))
_EXISTING = {"sparse_grad": "existing"}
_SPARSE = (Variant("dense weights"), Variant("12 %", density=0.12),
           Variant("12 %, gradient of these", arguments=_EXISTING, density=0.12),
           Variant("12 %, by active rows", {"product": "active"}, density=0.12),
           Variant("12 %, ten delays", density=0.12, delays=10),
           Variant("the same, gradient of these", arguments=_EXISTING, density=0.12, delays=10))
_CHECKPOINTS = (AS_CHOSEN, Variant("every 64 steps", arguments={"checkpoint_every": 64}))
_MEMBRANES = (AS_CHOSEN, Variant("y saved as bfloat16", arguments={"saved_dtype": torch.bfloat16}))
_ALONE = (AS_CHOSEN, Variant("one thread to a sequence", {"team_size": 1}))
COMPARISONS = {
    "product P": Comparison(P, _PRODUCTS),
    "product M": Comparison(M, _PRODUCTS),
    "product L": Comparison(L, _PRODUCTS),
    "sparse, 12 %": Comparison(Shape(250, 32, 80, 1024), _SPARSE),
    "ten delays P": Comparison(P, tuple(replace(one, delays=10)
                                        for one in (AS_CHOSEN, ACTIVE, DENSE))),
    "checkpoints P": Comparison(P, _CHECKPOINTS),
    "checkpoints M": Comparison(M, _CHECKPOINTS),
    "membranes P": Comparison(P, _MEMBRANES),
    "membranes M": Comparison(M, _MEMBRANES),
    "one sequence, N=512": Comparison(Shape(500, 1, 40, 512), _ALONE),
    "one sequence, N=1024": Comparison(Shape(500, 1, 40, 1024), _ALONE),
    "three layers P": Comparison(P, (Variant("bits between", layers=3, bits=True),
                                     Variant("numbers between", layers=3))),
}
LONG = Shape(20000, 16, 40, 1024)


class Layers(Differentiated):
    """Layers of one size on top of each other, each with the weights of the problem."""

    def __init__(self, problem: Problem, variant: Variant) -> None:
        self.name, self.problem, self.variant = OURS, problem, variant
        random = torch.Generator().manual_seed(2)
        kept = torch.rand(problem.w_rec.shape, generator=random) < variant.density
        self.weights = [(problem.w_in if k == 0 else problem.w_rec).clone().requires_grad_()
                        for k in range(variant.layers)]
        self.w_rec = (problem.w_rec * kept / variant.density**0.5).requires_grad_()
        self.leaves, self.cotangent = [*self.weights, self.w_rec], problem.cotangent
        self.delay: int | Tensor = 0
        if variant.delays > 1:
            self.delay = torch.randint(variant.delays, problem.w_rec.shape, generator=random)

    def spikes(self) -> Tensor:
        x: Any = self.problem.x
        for k, w_in in enumerate(self.weights):
            last = k == len(self.weights) - 1
            found = functional.layer(
                x, w_in, self.w_rec, **COEFFICIENTS, delay=self.delay,
                spikes="bits" if self.variant.bits and not last else True,
                **self.variant.arguments)
            x = found.packed or found.spikes
        assert isinstance(x, Tensor)
        return x


@contextmanager
def _chosen(variant: Variant) -> Iterator[None]:
    with _ops.forced(**variant.forced), rounding(variant.precision):
        yield


def make(problem: Problem, variant: Variant) -> Within:
    """The layers of a variant, with its choices forced."""
    return Within(Layers(problem, variant), partial(_chosen, variant))


def compare(name: str, repeats: int) -> None:
    """Prints the times of a comparison, whose variants alternate."""
    of = COMPARISONS[name]
    problem = Problem.of(of.shape)
    scale, rate = find_scale(problem.first(LONG_ENOUGH), BASE_RATE / 100)
    problem = problem.scaled(scale)
    print(f"{name}: {of.shape}, {100 * rate:.1f} % spikes in the dense layer")
    times = alternate([make(problem, variant) for variant in of.variants], repeats)
    found = [(variant.name, statistics.median(forward), statistics.median(both))
             for variant, (forward, both) in zip(of.variants, times, strict=True)]
    for variant, forward, both in found:
        print(f"  {variant:26} forward {forward:8.2f} {forward / found[0][1]:5.2f}x   "
            f"forward+backward {both:8.2f} {both / found[0][2]:5.2f}x")


def _network_pass(checkpoint_every: int | None, shape: Shape) -> Callable[[], object]:
    """A training step of a network with readout over a long sequence."""
    T, B, I, N = shape
    net = LSNN(I, N // 2, N - N // 2, 10, checkpoint_every=checkpoint_every)
    # loads what the first call needs
    net(torch.zeros(64, B, I))[0].sum().backward()
    x = (torch.rand(T, B, I) < 0.05).float()
    return lambda: net(x)[0].square().mean().backward()


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser("bench.variants", __doc__)
    parser.add_argument("words", nargs="*",
                        help=f"words of their names: {', '.join(COMPARISONS)}, memory")
    parser.add_argument("--repeats", type=at_least_one, default=11)
    given = parser.parse_args(arguments)
    chosen = [name for name in (*COMPARISONS, "memory") if not given.words
              or any(word in name for word in given.words)]
    if not chosen:
        parser.error(
            f"words: expected some of {', '.join(COMPARISONS)} or memory, got {given.words}")
    for name in chosen:
        if name != "memory":
            compare(name, given.repeats)
            continue
        print(f"memory: LSNN, {LONG}, peak beyond the input of one forward+backward")
        for every in (None, 256):
            peak = memory.peak_of(_network_pass, every, LONG) * 2**20 / 1e6
            print(f"  checkpoint_every={every!s:6} {peak:8.0f} MB")


if __name__ == "__main__":
    main()
