"""Means of the readout over windows of steps, and times in milliseconds."""
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lsnn_ext import ALIF, LIF, LSNN


def _net(**more: Any) -> LSNN:
    torch.manual_seed(0)
    return LSNN(5, 8, 8, 3, threshold=0.005, **more)


def _equal(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.detach().abs().max()) > 0
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_windows_of_each_form(bidirectional: bool) -> None:
    net = _net(bidirectional=bidirectional)  # which sets the seed of x too
    x = torch.rand(12, 4, 5)
    whole, end = net(x)
    found, state = net(x, readout_every=3)
    wanted = torch.stack([whole[k:k + 3].mean(0) for k in range(0, 12, 3)])
    _equal(found, wanted)
    assert torch.equal(state.readout, end.readout)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), list(net.parameters()))
                            for y in (found, wanted)), strict=True):
        _equal(one, other)
    _equal(net(x[:, 0], readout_every=3)[0], wanted[:, 0])
    first = _net(bidirectional=bidirectional, batch_first=True)
    _equal(first(x.transpose(0, 1), readout_every=3)[0], wanted.transpose(0, 1))
    y, _, spikes, rates = net(x, return_spikes=True, return_rates=True, readout_every=12)
    assert y.shape == (1, 4, 3) and spikes.shape[0] == 12 and rates.shape[1] == 4
    assert net(x[:0], readout_every=3)[0].shape == (0, 4, 3)


@pytest.mark.parametrize("steps", [[12, 6, 3], [3, 12, 6]])
def test_windows_of_packed_sequences(steps: list[int]) -> None:
    """Each has those of its own steps, in the order given."""
    sequences = [torch.rand(T, 5) for T in steps]
    net = _net()
    y, _ = net(pack_sequence(sequences, enforce_sorted=False), readout_every=3)
    means, lengths = pad_packed_sequence(y)
    assert lengths.tolist() == [T // 3 for T in steps]
    for item, x in enumerate(sequences):
        _equal(means[:len(x) // 3, item], net(x, readout_every=3)[0])


def test_windows_that_do_not_fit_are_refused() -> None:
    net, x = _net(), torch.rand(12, 4, 5)
    with pytest.raises(ValueError, match=r"readout_every: expected a divisor of the T = 12 .* 5"):
        net(x, readout_every=5)
    with pytest.raises(ValueError, match="readout_every: expected a whole number >= 1, got 0"):
        net(x, readout_every=0)
    with pytest.raises(ValueError, match="readout_every: .* each sequence, got 3 for one of 4"):
        net(pack_sequence([x[:, 0], x[:4, 1]]), readout_every=3)


@pytest.mark.parametrize("make", [
    lambda **more: ALIF(5, 8, **more), lambda **more: LIF(5, 8, **more),
    lambda **more: LSNN(5, 4, 4, 3, **more).neurons], ids=["ALIF", "LIF", "LSNN"])
def test_times_are_whole_steps(make: Any) -> None:
    for dt, refractory, delay in (1.0, 3, 9), (0.5, 6, 19), (0.1, 30, 99):
        layer = make(dt=dt, refractory="3 ms", delay="10ms")
        assert (layer.refractory, layer.delay) == (refractory, delay)
    assert make(dt=2, delay="2 ms", refractory="0 ms").delay == 0
    assert make(delay=4, refractory=2).delay == 4
    assert make(recurrent=False, delay="1 ms").delay == 0


@pytest.mark.parametrize(("given", "said"), [
    ({"refractory": "3 ms", "dt": 2}, "refractory: expected whole steps of dt=2, got '3 ms'"),
    ({"delay": "5 s"}, "delay: expected steps, or a time such as '5 ms', got '5 s'"),
    ({"refractory": "-1 ms"}, "refractory: expected steps, or a time"),
    ({"delay": "0 ms"}, "delay, in steps: expected a whole number >= 1, got 0"),
    ({"delay": "2 ms", "recurrent": False}, "delay: expected 0 with recurrent=False"),
    ({"delay": "5 ms", "dt": 0.001, "tau_mem": 0.02, "tau_adapt": 0.2},
     "delay: expected a number of steps with dt=0.001, which seems to be in seconds")])
def test_times_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        ALIF(5, 8, **given)
    assert said in str(refused.value)
