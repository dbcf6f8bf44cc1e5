"""What convert and recording leave behind: nothing but the result of the call."""
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import _len_torch_dispatch_stack  # type: ignore[attr-defined]

from fooling import judge
from fooling.base import B, I, N, Net, Spike, T, build, numbers
from fooling.indices import Plain
from fooling.layers import LayersInside

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No mode, and apply as torch has it."""
    yield
    assert _len_torch_function_stack() == 0 == _len_torch_dispatch_stack()
    assert "apply" not in vars(_SingleLevelFunction) and torch.is_grad_enabled()


def x_of(seed: int, requires_grad: bool = False) -> Tensor:
    return numbers(seed, T, B, I).requires_grad_(requires_grad)


@pytest.mark.parametrize("learns", [True, False])
def test_nothing_is_kept_alive(learns: bool) -> None:
    model = build(Plain)
    gc.collect()
    before = {id(one) for one in gc.get_objects() if isinstance(one, Tensor)}
    found: list[weakref.ref[Tensor]] = []
    with torch.set_grad_enabled(learns), judge.notice(
            Net.step.__code__, found, "return", lambda result: map(weakref.ref, result or ())):
        judge.convert(model, x_of(0))
        gc.collect()
        assert found and not any(one() is not None for one in found)
        for seed in range(3):
            result = model(x_of(seed))
            if learns:
                result.sum().backward()
            del result
        model(numbers(0, T + 1, B, I))
    gc.collect()
    assert not any(one() is not None for one in found)
    large = [tuple(one.shape) for one in gc.get_objects() if isinstance(one, Tensor)
             and id(one) not in before and one.numel() >= B * N
             and not any(one is other or one is other.grad for other in model.parameters())]
    assert large == []


def test_error_in_a_recorded_call_leaves_no_recording() -> None:
    class Sometimes(Net):
        fails = False

        def forward(self, x: Tensor) -> Any:
            spikes = self.over(x, x)
            if self.fails:
                raise KeyboardInterrupt
            return spikes

    model, reference = build(Sometimes), build(Sometimes)
    judge.convert(model, x_of(0))
    model.fails = True
    with pytest.raises(KeyboardInterrupt):
        model(x_of(1))
    model.fails = False
    assert torch.equal(model(x_of(2)), reference(x_of(2)))


def test_other_threads_pass_through() -> None:
    """While one thread records, others run functions of autograd and loops of their own."""
    model, other, reference = build(Plain), build(Plain), build(Plain)
    expected = [other(x_of(k)).detach() for k in range(4)]
    wrong: list[int] = []
    is_done = threading.Event()

    def work() -> None:
        while not is_done.is_set():
            for k, one in enumerate(expected):
                y = x_of(k, requires_grad=True)
                Spike.apply(y - 0.25).sum().backward()
                if not torch.equal(other(x_of(k)), one) or y.grad is None:
                    wrong.append(k)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(work)
        try:
            _, verdict = judge.convert(model, x_of(0))
            for steps in range(2, 12):
                x = numbers(steps, steps, B, I)
                assert torch.equal(model(x), reference(x))
        finally:
            is_done.set()
    assert verdict.how == "fused" and wrong == []


@pytest.mark.parametrize("same_shape", [True, False])
def test_threads_call_one_model(same_shape: bool) -> None:
    model, reference = build(LayersInside), build(LayersInside)
    judge.convert(model, x_of(0))
    inputs = [numbers(seed, T if same_shape else T - seed % 4, B, I) for seed in range(16)]
    expected = [reference(x).detach() for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model, inputs))
    assert len(found) == 16 and all(map(torch.equal, found, expected))
