"""The judge of the fooling programs finds conversions that are wrong, and the programs matter."""
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fooling.around import LastOnly
from fooling.base import Net, Wanted
from fooling.changes import Changed, Decay
from fooling.counters import Counts
from fooling.draws import Uniform
from fooling.indices import Plain
from fooling.judge import Convert, Verdict, judge
from fooling.parts import BatchNorm
from fooling.results import ItsInput, SinglePrecision

Forward = Callable[..., Any]  # (model, the original's forward, arguments)


def wrong(forward: Forward, how: str = "loop", reasons: str = "") -> Convert:
    """A convert that replaces forward by this one."""
    def convert(model: nn.Module, x: Any) -> tuple[nn.Module, Verdict]:
        before = type(model)

        def of_class(self: nn.Module, *arguments: Any) -> Any:
            return forward(self, lambda *given: before.forward(self, *given), *arguments)

        model.__class__ = type(before.__name__, (before,), {"forward": of_class})
        return model, Verdict(how, reasons)
    return convert


def unchanged(model: nn.Module, forward: Forward, *x: Any) -> Any:
    return forward(*x)


def replay(results: dict[Any, Any]) -> Forward:
    """The first result of each shape, for ever."""
    def of(model: nn.Module, forward: Forward, x: Tensor) -> Any:
        result = forward(x)
        return result + (results.setdefault(x.shape, result.detach()) - result.detach())
    return of


def draws_more(model: nn.Module, forward: Forward, x: Tensor) -> Any:
    torch.rand(1)
    return forward(x)


def one_ulp(model: nn.Module, forward: Forward, x: Tensor) -> Any:
    z, v = forward(x)
    return z, v * (1 + 2.0**-52)


def loses_a_gradient(model: Net, forward: Forward, x: Tensor) -> Any:
    model.back.weight.requires_grad_(False)
    result = forward(x)
    model.back.weight.requires_grad_(True)
    return result


def makes_a_gradient(model: Net, forward: Forward, x: Tensor) -> Any:
    return forward(x) + 0 * sum(one.sum() for one in model.unused)  # type: ignore[union-attr]


def scales_a_gradient(model: Net, forward: Forward, x: Tensor) -> Any:
    result = forward(x)
    if result.requires_grad:
        result.register_hook(lambda g: g * (1 + 1e-8))
    return result


def forgets_the_count(model: Net, forward: Forward, x: Tensor) -> Any:
    count = model.count
    result = forward(x)
    model.count = count  # type: ignore[assignment]
    return result


def copies(model: nn.Module, forward: Forward, x: Tensor) -> Any:
    return tuple(one.clone() for one in forward(x))


def restores_buffers(model: Any, forward: Forward, x: Tensor) -> Any:
    result = forward(x)
    model.between.num_batches_tracked.zero_()
    return result


def swallows(model: nn.Module, forward: Forward, x: Tensor) -> Any:
    return forward(x).double()


def keeps_the_decay(model: Net, forward: Forward, x: Tensor) -> Any:
    beta, model.beta = model.beta, 0.75
    result = forward(x)
    model.beta = beta
    return result


def writes(model: nn.Module, forward: Forward, x: Tensor) -> Any:
    result = forward(x)
    x.data.mul_(2)
    return result


def leaves_an_attribute(model: nn.Module, forward: Forward, x: Tensor) -> Any:
    model.left_behind = 3  # type: ignore[assignment]
    return forward(x)


class Unused(Net):
    """A parameter without a gradient."""

    def prepare(self) -> None:
        self.unused = nn.ParameterList([nn.Parameter(torch.ones(2))])


WRONG: list[tuple[type[Net], Forward, str]] = [
    (Plain, replay({}), "result: .* numbers differ"), (Uniform, draws_more, "random: "),
    (LastOnly, one_ulp, "result: .* numbers differ"),
    (Plain, loses_a_gradient, "gradient of back.weight: a gradient became another"),
    (Unused, makes_a_gradient, "gradient of unused.0: None became another"),
    (Plain, scales_a_gradient, "gradient of feed.weight: differs by"),
    (Counts, forgets_the_count, "state: .*count"), (ItsInput, copies, "the same objects"),
    (BatchNorm, restores_buffers, "state: .*num_batches_tracked"),
    (SinglePrecision, swallows, "result: dtype"), (Decay, keeps_the_decay, "call 2 .*result: "),
    (Plain, writes, "arguments: "), (Plain, leaves_an_attribute, "state: keys")]


@pytest.mark.parametrize(("kind", "forward", "text"), WRONG, ids=[
    f"{kind.__name__}-{text.partition(':')[0]}" for kind, _, text in WRONG])
def test_wrong_conversion_is_found(kind: type[Net], forward: Forward, text: str) -> None:
    found = judge(kind, Wanted("loop"), wrong(forward))
    assert found and re.search(text, "\n".join(found).replace("\n  ", " ")), found
    assert judge(kind, Wanted("loop"), wrong(unchanged)) == []


def test_conversion_that_runs_the_model_is_found() -> None:
    def runs(model: nn.Module, x: Any) -> tuple[nn.Module, Verdict]:
        model(x)
        return model, Verdict("refused", "")

    def learns(model: nn.Module, x: Any) -> tuple[nn.Module, Verdict]:
        model(x).sum().backward()
        return model, Verdict("refused", "")

    assert "changes the model" in judge(Counts, Wanted("loop"), runs)[0]
    assert "changes the state of the generator" in judge(Uniform, Wanted("loop"), runs)[0]
    assert judge(Plain, Wanted("loop"), learns) == ["convert: sets .grad"]


def test_what_is_wanted_is_demanded() -> None:
    replaced = wrong(unchanged, "fused")
    assert judge(Plain, Wanted("fused"), replaced) == [
        f"call {call}: runs the original" for call in Plain.replayed]
    assert "expected a kernel" in judge(Plain, Wanted("fused"), wrong(unchanged))[0]
    for how, reason, count in (("refused", "because of .item()", 0), ("refused", "", 1),
                               ("loop", "because of .item()", 1)):
        assert len(judge(Plain, Wanted("refused", "item"), wrong(unchanged, how, reason))) == count


def test_a_program_that_cannot_fool_is_found() -> None:
    class Silent(Net):
        def result(self, x: Tensor, spikes: Tensor) -> Any:
            return 0 * spikes

    class Raises(Net):
        def result(self, x: Tensor, spikes: Tensor) -> Any:
            raise ValueError("always")

    class NeverChanges(Changed):
        def to_change(self) -> None:
            """Changes nothing."""

    for kind, texts in (
            (Silent, ["all results of the program are equal",
                      "the program has other gradients than `learns` tells"]),
            (Raises, ["the program raises ValueError('always')"]),
            (NeverChanges, ["the change of the program has no effect"])):
        assert judge(kind, Wanted("loop"), wrong(unchanged)) == texts
