"""The modules at the edges: nothing to do, parameters from outside, and numbers in the layer's own
precision."""
import pytest
import torch

from lsnn_ext import ALIF, LIF, LSNN

I, N = 3, 5


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("layer", [ALIF(I, N, num_layers=2, delay=1),
                                   LIF(I, N, bidirectional=True)], ids=str)
def test_no_steps_or_no_items(layer: ALIF | LIF, T: int, B: int) -> None:
    spikes, state = layer(torch.rand(T, B, I))
    assert spikes.shape == (T, B, N * (1 + layer.bidirectional))
    assert state.v.shape == (2, B, N) and state.z.shape == (
        2, 2 if isinstance(layer, ALIF) else 1, B, N)
    spikes.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0)])
def test_network_without_steps_or_items(T: int, B: int) -> None:
    readout, state = LSNN(I, 2, 3, 4)(torch.rand(T, B, I))
    assert readout.shape == (T, B, 4) and state.readout.shape == (B, 4)


def test_one_step_of_no_items() -> None:
    assert ALIF(I, N).step(torch.rand(0, I))[0].shape == (0, N)


def test_beta_in_double_precision() -> None:
    assert LSNN(I, 2, 3, 4, beta=1.8, dtype=torch.float64).neurons.beta_l0.tolist() == [
        0.0, 0.0, 1.8, 1.8, 1.8]
