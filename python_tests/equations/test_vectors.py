"""Reference and operator compute what the paper's own code computed, with all gradients."""
from collections.abc import Callable
from typing import Any

import pytest

import vectors
from lsnn_ext import functional, reference


@pytest.mark.parametrize("alif", [reference.alif, functional.alif], ids=["reference", "operator"])
@pytest.mark.parametrize("name", vectors.NAMES)
def test_official_vector(name: str, alif: Callable[..., Any]) -> None:
    vectors.check(name, alif)


def test_vectors_cover_the_official_cells() -> None:
    for kind in ("lif_", "alif_", *(f"eprop_{cell}_" for cell in vectors.EPROP_MODELS)):
        assert any(name.startswith(kind) for name in vectors.NAMES), kind
    assert len(vectors.NAMES) == 34
