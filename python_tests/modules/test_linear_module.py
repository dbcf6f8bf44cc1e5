"""lsnn_ext.Linear stands in the place of nn.Linear."""
import pytest
import torch
from torch import nn

from compare import assert_same, outputs_and_gradients
from draws import draw_spikes
from lsnn_ext import Linear


def _pair(inputs: int, outputs: int, **options: bool | torch.dtype) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours = Linear(inputs, outputs, **options)  # type: ignore[arg-type]
    torch.manual_seed(0)
    theirs = nn.Linear(inputs, outputs, **options)  # type: ignore[arg-type]
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_equals_torch(bias: bool, dtype: torch.dtype) -> None:
    """functional.linear, which it calls, has tests of its own for other sizes."""
    ours, theirs = _pair(120, 10, bias=bias, dtype=dtype)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    x = draw_spikes(70, 40, 120, dtype=dtype).requires_grad_()
    found = [outputs_and_gradients(module, [x, *module.parameters()], x)
             for module in (ours, theirs)]
    assert_same("y, x, weight, bias", *found, tolerance=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (500, 5, 40), (0, 3)], ids=str)
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    ours, theirs = _pair(30, 9)
    x = draw_spikes(*shape, 30)
    assert_same("y", ours(x), theirs(x), tolerance=1e-6)


def test_compiled_and_autocast() -> None:
    ours, theirs = _pair(120, 10)
    x = draw_spikes(70, 40, 120)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert_same("compiled", compiled(x), theirs(x), tolerance=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same("autocast", ours(x), theirs(x))


def test_errors() -> None:
    ours, theirs = _pair(120, 10)
    x = draw_spikes(70, 40, 120)
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        ours([1.0])
    with pytest.raises(ValueError, match="weight: expected device meta as x, got cpu"):
        ours(x.to("meta"))
    for wrong in (x.double(), x[:2].double(), x[..., 1:], x[:2, :, 1:]):
        for module in (ours, theirs):
            with pytest.raises(RuntimeError):
                module(wrong)
