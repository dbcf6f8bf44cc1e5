"""Steps and short calls without gradients, compared with the operators."""
from collections.abc import Callable
from typing import Any

import pytest
import torch

from compare import flat
from lsnn_ext._core import prepared_layer
from lsnn_ext.modules import recurrent

I, N = 6, 37
needs_prepared_layers = pytest.mark.skipif(
    not prepared_layer._USABLE, reason="no compiled operators here, or emulated ones")


def assert_equal(got: Any, want: Any) -> None:
    """Bit for bit, zeros with their signs; got has no gradient."""
    got, want = flat(got), [leaf.detach() for leaf in flat(want)]
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and not one.requires_grad
        assert torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def without_operators(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call that must not take the operators."""
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("called the operators")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent.Recurrent, "_run_layers", refuse)
        return call(*arguments)


def prepared(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result without gradients and without the operators."""
    with torch.no_grad():
        return without_operators(call, *arguments)


def agree(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of prepared layers, equal to that of the operators."""
    result = prepared(call, *arguments)
    assert_equal(result, call(*arguments))
    return result
