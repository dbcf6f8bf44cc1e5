"""The operator computes what the paper's own code computed: outputs, final counters and gradients
of all parameters."""
import pytest
import torch

import vectors
from compare import assert_all_same, assert_same
from lsnn_ext import functional

# Values and gradients, relative to the largest of each. float32: the official code sums in another
# order.
TOLERANCE = {torch.float64: (1e-12, 1e-11), torch.float32: (5e-6, 3e-5)}


@pytest.mark.parametrize("name", vectors.NAMES)
def test_official_vector(name: str) -> None:
    vector = vectors.load(name)
    outputs, gradients = vector.run(functional.alif)
    values, slopes = TOLERANCE[vector.dtype]
    assert_same("spikes", outputs.pop("spikes"), vector.outputs.pop("spikes"))
    assert_all_same(outputs, vector.outputs, tolerance=values)
    for loss, want in vector.gradients.items():
        assert_all_same(gradients[loss], want, tolerance=slopes)
