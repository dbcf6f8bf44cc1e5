"""Weights as the LSNN paper draws them: what their statistics are."""
import math

import pytest
import torch

from lsnn_ext import LSNN, init
from lsnn_ext.optim import DeepR, find_synapses


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_signs_of_the_paper() -> None:
    """54 inhibitory and 166 excitatory neurons of 220, 61 excitatory inputs of 80."""
    assert torch.equal(init.signs(220), torch.cat([-torch.ones(54), torch.ones(166)]))
    mixed = init.signs(80, shuffle=True, generator=_generator())
    assert int((mixed == 1).sum()) == 61 and not torch.equal(mixed, mixed.sort().values)
    assert init.signs(3, 1.0).tolist() == [1, 1, 1] and init.signs(2, 0.0).tolist() == [-1, 1]


def test_dale_of_a_square_matrix() -> None:
    """The mask comes last."""
    N, p = 200, 0.12
    signs = init.signs(N)
    w, masked = (init.dale_(torch.empty(N, N, dtype=torch.float64), signs, share,
                            generator=_generator()) for share in (1.0, p))
    assert bool((w * signs > 0).all())  # columns are sources
    assert float(w.sum(1).abs().max()) < 1e-12
    assert float(torch.linalg.eigvals(w).abs().max()) == pytest.approx(1, abs=1e-9)
    positive = w[w > 0]  # half a normal distribution: mean and deviation have this quotient
    assert float(positive.std() / positive.mean()) == pytest.approx(
        math.sqrt(math.pi / 2 - 1), rel=0.02)
    there = masked != 0
    assert int(there.sum()) == int(N * N * p) and torch.equal(masked[there], w[there])
    assert 0.7 * math.sqrt(p) < float(torch.linalg.eigvals(masked).abs().max()) < 2 * math.sqrt(p)
    assert float(there.sum(1).double().var()) == pytest.approx(N * p * (1 - p), rel=0.4)


@pytest.mark.parametrize(("N", "n"), [(220, 80), (10, 220)], ids=["more", "fewer"])
def test_dale_of_other_matrices(N: int, n: int) -> None:
    """More or fewer targets than sources: numbers of the size that a square has."""
    signs = init.signs(n, shuffle=True, generator=_generator())
    generator, sizes = _generator(1), torch.zeros(2)
    for _ in range(20):  # the spectral radius of one draw varies
        w, square = (init.dale_(torch.empty(shape, dtype=torch.float64), signs,
                                generator=generator) for shape in ((N, n), (n, n)))
        assert bool((w * signs > 0).all()) and len(w.unique()) == N * n
        assert float(w.sum(1).abs().max()) < 1e-12
        sizes += torch.stack([w.abs().mean(), square.abs().mean()])
    assert float(sizes[0] / sizes[1]) == pytest.approx(1, abs=0.1)
    w = init.dale_(torch.empty(5, 4), -torch.ones(4), generator=generator)  # sources of one sign
    assert bool((w < 0).all()) and bool(w.isfinite().all())


def test_dale_of_an_lsnn() -> None:
    net = LSNN(80, 120, 100, 10)
    signs, neurons = init.dale(net, 0.12, generator=_generator()), net.neurons
    assert set(map(id, signs)) == set(map(id, find_synapses(net)[0]))
    for weight, sign in signs.items():
        size = weight.numel() - 220 * (weight is neurons.weight_hh_l0)
        assert int((weight != 0).sum()) == int(0.12 * size)
        assert bool((weight * sign >= 0).all())
    assert not neurons.weight_hh_l0.diagonal().any()
    assert bool((signs[neurons.weight_hh_l0][120:] == 1).all())  # the adaptive ones excite
    assert torch.equal(signs[net.readout.weight], signs[neurons.weight_hh_l0])
    assert int((signs[neurons.weight_ih_l0] == 1).sum()) == 61
    x = (torch.rand(300, 8, 80, generator=_generator(3)) < 0.05).float()
    _, _, spikes = net(x, return_spikes=True)
    assert 0.002 < float(spikes.detach().mean()) < 0.15
    before = [weight.detach().clone() for weight in signs]
    DeepR.of(net, torch.optim.Adam, 0.12, signs=signs)  # as many as wanted: nothing is redrawn
    changed = sum(int((old != new).sum()) for old, new in zip(before, signs, strict=True))
    assert changed <= 3  # three matrices are rounded down, and their sum only once


def test_dale_of_layers_and_directions() -> None:
    """The signs of what a layer reads are those of the neurons before it, in both directions."""
    net = LSNN(8, 6, 4, 3, num_layers=2, bidirectional=True)
    signs = init.dale(net, 0.5, generator=_generator())
    assert set(map(id, signs)) == set(map(id, find_synapses(net)[0])) and len(signs) == 9
    neurons, of_neurons = net.neurons, init.signs(10)
    for direction in ("", "_reverse"):
        assert torch.equal(signs[neurons.get_parameter(f"weight_ih_l0{direction}")],
                           signs[neurons.weight_ih_l0])
        assert torch.equal(signs[neurons.get_parameter(f"weight_ih_l1{direction}")],
                           of_neurons.repeat(2))
        for layer in range(2):
            assert torch.equal(signs[neurons.get_parameter(f"weight_hh_l{layer}{direction}")],
                               of_neurons)
    assert torch.equal(signs[net.readout.weight], of_neurons.repeat(2))
    for weight, sign in signs.items():
        assert bool((weight * sign >= 0).all()) and bool(weight.any())


def test_the_unsigned_start() -> None:
    net = LSNN(80, 120, 100, 10)
    init.sparse(net, 0.12, generator=_generator())
    for weight in find_synapses(net)[0]:
        there = weight.detach()[weight != 0]
        n = weight.shape[1]
        size = weight.numel() - 220 * (weight is net.neurons.weight_hh_l0)
        assert len(there) == int(0.12 * size)
        assert float((there > 0).float().mean()) == pytest.approx(0.5, abs=0.1)
        deviation = 1 / math.sqrt(2 * len(there))
        assert float(there.std()) * math.sqrt(n) == pytest.approx(1, abs=4 * deviation)
    assert not net.neurons.weight_hh_l0.diagonal().any()


def test_the_same_generator_gives_the_same_weights() -> None:
    nets = [LSNN(8, 12, 10, 3) for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        init.dale(net, 0.3, generator=_generator(seed))
    same, other = (torch.equal(nets[0].neurons.weight_ih_l0, net.neurons.weight_ih_l0)
                   for net in nets[1:])
    assert same and not other


def test_bad_arguments_are_named() -> None:
    w, signs = torch.empty(3, 4), init.signs(4)
    for call, said in ((lambda: init.signs(0), "n: expected a whole number >= 1, got 0"),
                       (lambda: init.signs(4, 1.5), "excitatory: expected a fraction"),
                       (lambda: init.dale_(w, signs[:3]), r"signs: expected 1 and -1 of shape"),
                       (lambda: init.dale_(w, signs * 2), "signs: expected 1 and -1"),
                       (lambda: init.dale_(w, signs, 1.2), "connectivity: expected a fraction"),
                       (lambda: init.dale_(w[0], signs), r"weight: expected shape \(N, I\)"),
                       (lambda: init.sparse_(w, float("nan")), "connectivity: expected a fraction"),
                       (lambda: init.sparse_(w, 0.5, mask=torch.ones(3, 4)), "mask: expected bool"),
                       (lambda: init.sparse_(w, 0.5, mask=torch.ones(4, 3, dtype=torch.bool)),
                        "mask: expected bool of shape")):
        with pytest.raises(ValueError, match=said):
            call()
