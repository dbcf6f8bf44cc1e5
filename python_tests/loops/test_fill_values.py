"""torch.full with a tensor as its number: recorded; with a tensor in its size: refused."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lsnn_ext.loops import convert

FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "full": lambda x, level: torch.full((3, 4), level),
    "full by name": lambda x, level: torch.full(size=(3, 4), fill_value=level),
    "full_like": torch.full_like,
    "new_full": lambda x, level: x.new_full((3, 4), level)}
SIZES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "full": lambda x, level: torch.full((3, 3 + (level > 0).long()), 1.0),
    "full by name": lambda x, level: torch.full(
        size=(3, 3 + (level > 0).long()), fill_value=1.0),
    "full with a tensor": lambda x, level: torch.full((3, 3 + (level > 0).long()), level),
    "zeros": lambda x, level: torch.zeros(3, 3 + (level > 0).long())}


class Started(nn.Module):
    """A membrane that starts at a level."""

    def __init__(self, start: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.start = start
        self.register_buffer("level", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """x: (T, 3, 4)."""
        v = self.start(x[0], self.level)
        for x_t in x:
            v = 0.9 * v + torch.tanh(v) * x_t
        return v


@pytest.mark.parametrize("name", FILLS)
def test_number_is_read_in_each_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSNN_COMPILE", "0")
    x = torch.randn(8, 3, 4)
    original = Started(FILLS[name])
    model, report = convert(Started(FILLS[name]), x)
    assert report.converted, str(report)
    for level in (0.5, 0.5, -0.25):
        original.level.fill_(level)
        model.level.fill_(level)
        assert torch.allclose(model(x), original(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_size_by_a_number_is_refused(name: str) -> None:
    x = torch.randn(8, 3, 4)
    model, report = convert(Started(SIZES[name]), x)
    assert not report.converted and "depend" in report.reason
    model.level.fill_(-0.25)
    with pytest.raises(RuntimeError, match="size"):
        model(x)
