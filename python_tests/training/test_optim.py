"""DEEP R: the rules of the LSNN paper's code in numpy, step by step."""
import copy
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compare import through_file
from lsnn_ext import LSNN, init, optim
from lsnn_ext.optim import DeepR

LR, L1, BETAS, EPS = 0.03, 0.1, (0.9, 0.999), 1e-8
SHAPES = (7, 5), (6, 6), (3, 6)


class Rules:
    """DEEP R around Adam as the paper's code has it, in numpy."""

    def __init__(self, thetas: list[Any], signs: list[Any], allowed: list[Any], p: float,
                 temperature: float) -> None:
        self.thetas, self.signs, self.allowed = thetas, signs, allowed
        self.wanted = int(sum(mask.sum() for mask in allowed) * p)
        self.temperature, self.t = temperature, 0
        self.m = [np.zeros_like(theta) for theta in thetas]
        self.v = [np.zeros_like(theta) for theta in thetas]

    def step(self, gradients: list[Any], noises: list[Any]) -> int:
        """All but the draw of new connections; how many have to be drawn."""
        self.t += 1
        for k, (sign, gradient, noise) in enumerate(zip(self.signs, gradients, noises,
                                                        strict=True)):
            theta = self.thetas[k]
            before = theta > 0
            g = sign * gradient
            self.m[k] = BETAS[0] * self.m[k] + (1 - BETAS[0]) * g
            self.v[k] = BETAS[1] * self.v[k] + (1 - BETAS[1]) * g * g
            m = self.m[k] / (1 - BETAS[0] ** self.t)
            v = self.v[k] / (1 - BETAS[1] ** self.t)
            theta = theta - LR * m / (np.sqrt(v) + EPS)
            theta = np.where(before, theta, 0.0)
            moved = theta - LR * L1 + np.sqrt(2 * LR * self.temperature) * noise
            self.thetas[k] = np.where(theta > 0, moved, theta)
        return self.wanted - sum(int((theta > 0).sum()) for theta in self.thetas)

    def connect(self, chosen: list[Any]) -> None:
        for theta, places in zip(self.thetas, chosen, strict=True):
            assert (theta[places] <= 0).all()
            theta[places] = optim.EPSILON

    def weights(self) -> list[Any]:
        return [np.where(theta > 0, sign * theta, 0.0)
                for theta, sign in zip(self.thetas, self.signs, strict=True)]


def _weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random, dtype=dtype)) for shape in SHAPES]


def _adam(groups: Any, lr: float = LR) -> torch.optim.Adam:
    return torch.optim.Adam(groups, lr=lr, betas=BETAS, eps=EPS)


def _gradients(weights: Iterable[nn.Parameter], random: torch.Generator) -> None:
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=random, dtype=weight.dtype)


def _train(tuned: DeepR, weights: list[nn.Parameter], random: torch.Generator, steps: int) -> None:
    for _ in range(steps):
        _gradients(weights, random)
        tuned.step()


def _connections(weights: Any) -> list[int]:
    return [int((weight != 0).sum()) for weight in weights]


@pytest.mark.parametrize("temperature", [0.0, 0.003], ids=["cold", "warm"])
def test_equals_the_rules_step_by_step(temperature: float) -> None:
    weights = _weights()
    diagonal = ~torch.eye(6, dtype=torch.bool)
    generator = torch.Generator().manual_seed(5)
    tuned = DeepR(_adam([{"params": weights, "connectivity": 0.4}]), l1=L1,
                  temperature=temperature, masks={weights[1]: diagonal}, generator=generator)
    allowed = [np.ones(SHAPES[0], bool), diagonal.numpy(), np.ones(SHAPES[2], bool)]
    signs = [sign.double().numpy() for sign in tuned.state_dict()["deep_r"]["signs"][0]]
    rules = Rules([np.abs(weight.detach().numpy()) for weight in weights], signs, allowed, 0.4,
                  temperature)
    random, made = torch.Generator().manual_seed(1), 0
    for _ in range(300):
        _gradients(weights, random)
        same = torch.Generator()
        same.set_state(generator.get_state())
        noises = [torch.randn(shape, generator=same, dtype=torch.float64).numpy()
                  if temperature else 0.0 for shape in SHAPES]
        given = [weight.grad.clone() for weight in weights]  # type: ignore[union-attr]
        missing = rules.step([gradient.numpy() for gradient in given], noises)
        tuned.step()
        for gradient, weight in zip(given, weights, strict=True):
            assert weight.grad is not None and torch.equal(gradient, weight.grad)
        now = [weight.detach().numpy().copy() for weight in weights]
        # what the draw alone decides is taken over: which dormant ones were connected
        chosen = [(np.abs(w) == optim.EPSILON) & (theta <= 0)
                  for w, theta in zip(now, rules.thetas, strict=True)]
        assert sum(map(np.sum, chosen)) == missing == tuned.rewired
        assert not any((places & ~mask).any() for places, mask in zip(chosen, allowed, strict=True))
        rules.connect(chosen)
        made += missing
        for mine, other in zip(now, rules.weights(), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-13)
            assert ((mine != 0) == (other != 0)).all()
    assert made > 100


def test_a_thousand_steps_keep_connections_and_signs() -> None:
    torch.manual_seed(2)
    net = LSNN(12, 10, 8, 5)
    signs = init.dale(net, 0.25)
    tuned = DeepR.of(net, torch.optim.Adam, 0.25, lr=0.05, l1=0.01, temperature=1e-5, signs=signs)
    weights, wanted = list(signs), int(0.25 * (12 * 18 + 18 * 17 + 5 * 18))
    random, moved = torch.Generator().manual_seed(0), set()
    for _ in range(1000):
        _gradients(net.parameters(), random)
        tuned.step()
        assert sum(_connections(weights)) == wanted
        moved.add(tuple(_connections(weights)))
        assert all(bool((weight * sign >= 0).all()) for weight, sign in signs.items())
        assert not net.neurons.weight_hh_l0.diagonal().any()
    assert len(moved) > 20  # one connectivity over all: each matrix has its own share
    assert float(net.readout.bias.detach().abs().min()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "added later"])
def test_each_group_keeps_its_own(at_once: bool) -> None:
    weights, bias = _weights(), nn.Parameter(torch.zeros(3))
    first, *others = [*({"params": [weight], "connectivity": p} for weight, p in zip(
        weights, (0.2, 0.5, 1.0), strict=True)), {"params": [bias]}]
    tuned = DeepR(_adam([first, *others] if at_once else [first]), l1=0.5)
    for group in [] if at_once else others:
        tuned.add_param_group(group)
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        _train(tuned, [*weights, bias], random, 1)
        assert _connections(weights) == [7, 18, 18]
    assert tuned.connectivity() == [[0.2], [0.5], [1.0], []]
    assert float(bias.detach().abs().min()) > 0
    tuned.zero_grad()
    assert all(one.grad is None for one in (*weights, bias))


def test_groups_have_their_own_l1_and_learning_rate() -> None:
    """With no gradient to speak of, a connection shrinks by lr * l1 a step."""
    a, b = (nn.Parameter(torch.ones(4, 4, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [a], "connectivity": 0.5, "l1": 3.0, "lr": 0.1},
              {"params": [b], "connectivity": 0.5, "temperature": 0.2}]
    tuned = DeepR(torch.optim.SGD(groups, lr=0.01), l1=2.0)
    a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
    tuned.step()
    assert torch.allclose(a.detach()[a != 0], torch.tensor(0.7, dtype=torch.float64))
    assert float(b.detach()[b != 0].std()) > 0.02


def test_the_share_of_a_matrix_follows_its_size_and_its_places_are_uniform() -> None:
    generator = torch.Generator().manual_seed(3)
    counts, places = torch.zeros(2), torch.zeros(4, 5)
    for _ in range(400):
        a, b = nn.Parameter(torch.zeros(4, 5)), nn.Parameter(torch.zeros(10, 6))
        DeepR(_adam([{"params": [a, b], "connectivity": 0.1}]), generator=generator)
        counts += torch.tensor(_connections((a, b)))
        places += a.detach() != 0
        assert float(a.detach().abs().max()) in (0.0, pytest.approx(optim.EPSILON))
    assert float(counts[0] / counts.sum()) == pytest.approx(20 / 80, abs=0.02)
    expected = float(places.mean())
    assert float(((places - expected) ** 2 / expected).sum()) < 45  # chi^2 of 19: 1 of 1,500


def test_a_full_matrix_leaves_its_share_to_the_others() -> None:
    a, b = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(3, 4))
    DeepR(_adam([{"params": [a, b], "connectivity": 1.0}]))
    assert _connections((a, b)) == [2, 12]


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam"])
def test_any_optimizer(kind: str) -> None:
    """Fully connected and without l1, DeepR equals the plain optimizer."""
    made = []
    for wrapped in (False, True):
        weight = nn.Parameter(10 + torch.rand(5, 4, generator=torch.Generator().manual_seed(0),
                                              dtype=torch.float64))
        weight.data[::2] *= -1
        tuned: Any = getattr(torch.optim, kind)([{"params": [weight], "connectivity": 1.0}],
                                                lr=0.01)
        if wrapped:
            tuned = DeepR(tuned, l1=0.0)
        schedule = torch.optim.lr_scheduler.StepLR(tuned, 3, 0.5)
        random = torch.Generator().manual_seed(1)
        for _ in range(10):
            def closure(weight: nn.Parameter = weight, random: torch.Generator = random) -> Tensor:
                _gradients([weight], random)
                return weight.detach().sum()

            assert float(tuned.step(closure)) != 0
            schedule.step()
        assert tuned.param_groups[0]["lr"] == pytest.approx(0.01 / 8)
        made.append(weight.detach())
    torch.testing.assert_close(made[0], made[1], rtol=1e-12, atol=0)


# -------------------------------------------------------------------------------------------- state
def test_resumes_to_the_same_bits() -> None:
    def begun() -> tuple[list[nn.Parameter], DeepR]:
        weights = _weights(dtype=torch.float32)
        other = nn.Parameter(torch.ones(3))
        groups = [{"params": weights, "connectivity": 0.3}, {"params": [other]}]
        return [*weights, other], DeepR(_adam(groups, 0.05), temperature=1e-3, l1=L1,
                                        generator=torch.Generator().manual_seed(7))

    weights, tuned = begun()
    random = torch.Generator().manual_seed(0)
    _train(tuned, weights, random, 20)
    kept = through_file({"weights": weights, "optimizer": tuned.state_dict(),
                         "random": random.get_state()}, weights_only=True)
    _train(tuned, weights, random, 20)
    again, resumed = begun()
    resumed.param_groups[0]["lr"] = 77.0
    with torch.no_grad():
        for weight, stored in zip(again, kept["weights"], strict=True):
            weight.copy_(stored)
    resumed.load_state_dict(kept["optimizer"])
    assert resumed.param_groups[0]["lr"] == 0.05
    random.set_state(kept["random"])
    _train(resumed, again, random, 20)
    assert all(map(torch.equal, weights, again))
    assert resumed.rewired == tuned.rewired and not torch.equal(weights[0], kept["weights"][0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v)),
                                    lambda v: through_file(v, weights_only=False)],
                         ids=["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_to_the_same_bits(copied: Callable[[Any], Any]) -> None:
    net = LSNN(4, 5, 6, 2)
    tuned = DeepR.of(net, torch.optim.Adam, 0.3, lr=0.05, temperature=1e-3, l1=L1)
    random = torch.Generator().manual_seed(0)
    _train(tuned, list(net.parameters()), random, 5)
    again, other = copied((net, tuned))
    assert isinstance(other, DeepR) and other.param_groups is other.optimizer.param_groups
    assert other.rewired == tuned.rewired > 0 and other.connectivity() == tuned.connectivity()
    weights, theirs = list(net.parameters()), list(again.parameters())
    for _ in range(10):
        before = [weight.detach().clone() for weight in theirs]
        _train(tuned, weights, random, 1)
        assert all(map(torch.equal, before, theirs))  # nothing is shared
        for one, weight in zip(theirs, weights, strict=True):
            one.grad = weight.grad.clone()
        other.step()
        assert all(map(torch.equal, weights, theirs))
    other.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "connectivity": 0.5})
    other.load_state_dict(copied(other).state_dict())
    assert len(tuned.param_groups) == len(other.param_groups) - 1


def test_the_same_generator_gives_the_same_run() -> None:
    runs = []
    for seed in (1, 1, 2):
        weights = _weights()
        torch.manual_seed(seed)
        tuned = DeepR(_adam([{"params": weights, "connectivity": 0.3}]), l1=0.5)
        _train(tuned, weights, torch.Generator().manual_seed(0), 20)
        runs.append(weights)
    assert all(map(torch.equal, runs[0], runs[1]))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_without_a_gradient_a_matrix_stays() -> None:
    weights = _weights()
    tuned = DeepR(_adam([{"params": weights, "connectivity": 0.3}]), l1=1.0)
    before = [weight.detach().clone() for weight in weights]
    weights[0].grad = torch.zeros_like(weights[0])
    tuned.step()
    for k, (old, new) in enumerate(zip(before, weights, strict=True)):
        assert torch.equal(old[old != 0], new.detach()[old != 0]) == (k > 0)


# ------------------------------------------------------------------------------------ what is wrong
def test_what_is_not_finite_is_refused_before_anything_changes() -> None:
    weights = _weights()
    tuned = DeepR(_adam([{"params": weights, "connectivity": 0.3}]))
    _train(tuned, weights, torch.Generator().manual_seed(0), 1)
    before = [weight.detach().clone() for weight in weights]
    kept = copy.deepcopy(tuned.state_dict())
    for bad in (float("nan"), float("inf")):
        weights[2].grad[1, 1] = bad
        with pytest.raises(ValueError, match=r"gradient: expected finite numbers .*\(3, 6\)"):
            tuned.step()
        assert all(map(torch.equal, before, weights))
        for one, other in zip(kept["state"].values(), tuned.state_dict()["state"].values(),
                              strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_that_others_changed_are_refused() -> None:
    for change, said in ((lambda w: w.neg_(), "signs"), (lambda w: w.zero_(), "connections"),
                         (lambda w: w.fill_(float("nan")), "finite"),
                         (lambda w: w.fill_diagonal_(1.0), "mask is False")):
        weight = nn.Parameter(torch.rand(5, 5) + 0.1)
        tuned = DeepR(_adam([{"params": [weight], "connectivity": 0.4}]),
                      masks={weight: ~torch.eye(5, dtype=torch.bool)})
        with torch.no_grad():
            change(weight)
        weight.grad = torch.ones_like(weight)
        with pytest.raises(ValueError, match=f"weight: expected .*{said}"):
            tuned.step()


W = nn.Parameter(torch.rand(3, 4))
GROUP = {"params": [W], "connectivity": 0.5}


@pytest.mark.parametrize(("group", "arguments", "said"), [
    ({"params": [W]}, {}, "optimizer: expected a parameter group with a connectivity"),
    (GROUP | {"connectivity": 1.5}, {}, "connectivity: expected a fraction from 0 to 1, got 1.5"),
    (GROUP | {"connectivity": "all"}, {}, "connectivity: expected a fraction"),
    (GROUP | {"l1": -1.0}, {}, "l1: expected a number >= 0, got -1.0"),
    (GROUP, {"l1": float("nan")}, "l1: expected a number >= 0"),
    (GROUP, {"temperature": -0.1}, "temperature: expected a number >= 0"),
    (GROUP, {"signs": {W: torch.ones(3)}}, r"signs: expected a shape that broadcasts to \(3, 4\)"),
    (GROUP, {"signs": {W: torch.zeros(4)}}, "signs: expected 1 and -1"),
    (GROUP, {"signs": {W: -torch.ones(4)}}, "signs: expected the signs of the weights, got 12"),
    (GROUP, {"signs": {torch.ones(2, 2): torch.ones(2)}}, "signs: expected weights of groups"),
    (GROUP, {"masks": {W: torch.ones(3, 4)}}, "masks: expected bool tensors"),
    (GROUP, {"generator": None, "l1": True}, "l1: expected a number >= 0, got True")])
def test_bad_arguments_are_named(group: Any, arguments: Any, said: str) -> None:
    before = W.detach().clone()
    with pytest.raises((ValueError, TypeError), match=said):
        DeepR(_adam([group]), **arguments)
    assert torch.equal(before, W)


def test_other_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="optimizer: expected an optimizer of torch, got list"):
        DeepR([W])  # type: ignore[arg-type]
    half = nn.Parameter(torch.ones(2, 2, dtype=torch.float16))
    with pytest.raises(TypeError, match="weight: expected .*bfloat16, got torch.float16"):
        DeepR(_adam([{"params": [half], "connectivity": 0.5}]))
    weight = _weights()[0]
    tuned = DeepR(_adam([{"params": [weight], "connectivity": 0.5}]))
    with pytest.raises(ValueError, match="state_dict: expected the state of a DeepR"):
        tuned.load_state_dict(tuned.optimizer.state_dict())
    other = DeepR(_adam([{"params": [_weights()[1]], "connectivity": 0.5}]))
    with pytest.raises(ValueError, match="state_dict: expected signs of shapes"):
        tuned.load_state_dict(other.state_dict())
