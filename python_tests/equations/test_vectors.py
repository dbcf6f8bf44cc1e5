"""The operator computes what the paper's own code computed, with all gradients."""
import pytest

import vectors
from lsnn_ext import functional


@pytest.mark.parametrize("name", vectors.NAMES)
def test_official_vector(name: str) -> None:
    vectors.check(name, functional.alif)
