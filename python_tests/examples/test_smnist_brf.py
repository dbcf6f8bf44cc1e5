"""The resonators of the sequential MNIST example, on a few random digits."""
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_files import excite, write_digits
from example_path import generator, load_checkpoint, needs
from lsnn_ext.zoo import brf

needs("matplotlib", "tqdm")
from common import training  # noqa: E402
from published.networks import build_higuchi  # noqa: E402
from smnist import data as mnist  # noqa: E402
from smnist import train as smnist  # noqa: E402

GIVEN = ["--models", "brf", "--permuted", "--batch", "2", "--kept-back", "2", "--no-speed"]


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mnist.Digits:
    """Twelve digits to learn from; programs test on five others, and draw nothing."""
    write_digits(tmp_path)
    monkeypatch.setenv("LSNN_DATA", str(tmp_path))
    monkeypatch.setattr(smnist, "curve_picture", lambda *_: None)
    return mnist.load()[0]


def _network(digits: mnist.Digits) -> Any:
    return smnist.Run(smnist.arguments(GIVEN), digits).learners["BRF"]


def test_first_values(digits: mnist.Digits) -> None:
    """Those of the published program, which counts 68,874 parameters, but for two."""
    net = _network(digits)
    assert sum(p.numel() for p in net.parameters()) == 68_874
    neurons, N = net.neurons, net.N
    for values, low, high in ((neurons.omega, 15, 85), (neurons.b_offset, 0.1, 1)):
        assert low <= values.min() < values.max() <= high
        assert (values.mean() - (low + high) / 2).abs() < 4 * (high - low) / (12 * N) ** 0.5
    assert net.tau.tolist() == [300] * 10
    for weight, fans in ((neurons.weight_ih_l0 / 200, 1 + 2 * N), (neurons.weight_hh_l0, 1 + 2 * N),
                         (net.weight, N + 10)):
        assert 0.9 < weight.abs().max() / (6 / fans) ** 0.5 <= 1


def test_omega_stays_where_the_step_is_defined(digits: mnist.Digits) -> None:
    net = _network(digits)
    with torch.no_grad():
        net.neurons.parametrizations["omega"].original[:2] = torch.tensor([-120.0, 120])
    assert net.neurons.omega[:2].tolist() == [99, 99]
    net(torch.rand(50, 2, 1)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


def test_its_readouts_are_those_of_the_published_network(digits: mnist.Digits) -> None:
    net = _network(digits)
    excite(net)
    neurons = net.neurons
    with torch.no_grad():
        for value in (*(neurons.parametrizations[name].original for name in neurons.learn),
                      net.tau):
            value[::2].neg_()  # the absolute value counts
    loop = build_higuchi({
        "hidden.omega": neurons.omega, "hidden.b_offset": neurons.b_offset,
        "hidden.linear.weight": torch.cat([neurons.weight_ih_l0, neurons.weight_hh_l0], 1),
        "out.tau_mem": net.tau, "out.linear.weight": net.weight}, brf)
    x = torch.randint(256, (100, 3, 1), generator=generator()) / 256
    spikes, readout = loop(x, [(torch.zeros(3, 256),) * 4, (torch.zeros(3, 10),)])
    assert spikes.mean() > 0.01 and torch.equal(spikes, neurons(x)[0])
    torch.testing.assert_close(net(x), readout)


def test_the_label_is_learned_at_every_step(digits: mnist.Digits,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision is the mean readout."""
    run = smnist.Run(smnist.arguments([*GIVEN, "--kept-back", "0"]), digits)
    net = run.learners["BRF"]
    excite(net)
    readout = net(mnist.analog(digits.pixels[:, run.order]))
    labels = readout.mean(0).argmax(-1)
    assert not torch.equal(labels, readout[-1].argmax(-1))
    labels[:3] = (labels[:3] + 1) % 10
    run.digits = digits._replace(labels=labels)
    monkeypatch.setattr(run, "draw", lambda: slice(None))
    monkeypatch.setattr(run, "learn", lambda rate, losses: losses("BRF"))
    found: Any = run.step()
    loss = torch.stack([nn.functional.cross_entropy(y, labels) for y in readout]).mean()
    torch.testing.assert_close(found[0], loss)
    assert found[2]["accuracy"] == pytest.approx(9 / 12)
    assert run.recognised(net, run.digits) == 9 / 12


def test_the_rate_falls_linearly_and_a_run_is_resumed(digits: mnist.Digits, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    set_rate = training.set_rate

    def noted(optimizer: torch.optim.Optimizer, rate: float) -> None:
        rates.append(rate)
        set_rate(optimizer, rate)
        if len(rates) == 6:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training, "set_rate", noted)
    for name in "whole", "stopped":
        smnist.main([*GIVEN, "--iterations", "4", "--out", str(tmp_path / name)])
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.1, 0.075])
    smnist.main(["--resume", "--no-speed", "--out", str(tmp_path / "stopped")])
    assert rates[6:] == pytest.approx([0.05, 0.025])
    whole, stopped = (load_checkpoint(tmp_path / name)["BRF"] for name in ("whole", "stopped"))
    first = _network(digits).state_dict()
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, stopped[name]), name
    assert not torch.equal(first["neurons.weight_ih_l0"], whole["neurons.weight_ih_l0"])
    run = smnist.Run(smnist.arguments([*GIVEN, "--iterations", "4", "--lr", "0.02"]), digits)
    run.history = [{}]
    assert run.rate_of("BRF", 1.0) == pytest.approx(0.015)
