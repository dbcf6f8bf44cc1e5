"""The options of functions and layers: each has a type, a text and a default, once."""
import inspect

import pytest

from lsnn_ext import ALIF, LIF, LSNN, functional, reference
from lsnn_ext._core.options import (
    ALIF_DEFAULTS,
    LAYER_DEFAULTS,
    AlifOptions,
    LayerOptions,
    LIFOptions,
)
from lsnn_ext.modules.lsnn import LSNNOptions

AS_LSTM = {"num_layers", "bias", "batch_first", "dropout", "bidirectional"}


def test_types_and_defaults_have_the_same_names() -> None:
    assert set(AlifOptions.__annotations__) == set(ALIF_DEFAULTS) - {"rows"}
    assert set(LayerOptions.__annotations__) == set(LAYER_DEFAULTS) - AS_LSTM
    shared = [name for name in LayerOptions.__annotations__ if name in ALIF_DEFAULTS
              and LAYER_DEFAULTS[name] is not None]
    assert {"dynamics", "surrogate_cutoff", "sparse_grad"} <= set(shared)
    assert all(LAYER_DEFAULTS[name] == ALIF_DEFAULTS[name] for name in shared)
    assert set(LSNNOptions.__annotations__) == set(LayerOptions.__annotations__) | {"tau_out"}


@pytest.mark.parametrize(("target", "options"), [
    (functional.alif, AlifOptions), (functional.layer, AlifOptions),
    (reference.alif, AlifOptions), (ALIF, LayerOptions), (LIF, LIFOptions), (LSNN, LSNNOptions)])
def test_signatures_and_docstrings_show_all(target: object, options: type) -> None:
    parameters = inspect.signature(target).parameters  # type: ignore[arg-type]
    text = inspect.getdoc(target) or ""
    for name in options.__annotations__:
        default = parameters[name].default
        assert f"\n    {name}: " in text
        if name in ALIF_DEFAULTS and options is AlifOptions and name not in ("alpha", "theta"):
            assert default == ALIF_DEFAULTS[name]
        elif name in LAYER_DEFAULTS and options is not AlifOptions:
            assert default == LAYER_DEFAULTS[name]
    assert "\n    **options\n" not in text
