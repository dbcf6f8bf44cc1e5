"""Which parameters are weights, those that decay and those whose signs are kept."""
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lsnn_ext import ALIF, LSNN, LearnedDelay, optim
from lsnn_ext.modules.parametrizations import Log


def test_signs_are_kept_under_a_plain_optimizer() -> None:
    weight, free = (nn.Parameter(torch.zeros(3, 4)) for _ in range(2))
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    tuned = torch.optim.SGD([weight, free], lr=0.3)
    handle = optim.keep_signs(tuned, {weight: sign})
    random = torch.Generator().manual_seed(0)
    seen = torch.zeros(3, 4, dtype=torch.bool)
    for _ in range(100):
        for one in (weight, free):
            one.grad = torch.randn(one.shape, generator=random)
        tuned.step()
        assert bool((weight * sign >= 0).all())
        seen |= weight.detach() == 0
    assert float(seen.float().mean()) > 0.8 and bool((weight != 0).any())
    assert bool((free * sign < 0).any())  # what is not held goes where it goes
    handle.remove()
    weight.grad = 100 * sign.expand(3, 4)
    tuned.step()
    assert bool((weight * sign < 0).all())


def test_keep_signs_refuses_what_does_not_fit() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    tuned = torch.optim.SGD([weight], lr=0.1)
    for signs, said in (({weight: -torch.ones(2)}, "got 4 others"),
                        ({torch.ones(2, 2): torch.ones(2)}, "expected weights of the optimizer")):
        with pytest.raises(ValueError, match=said):
            optim.keep_signs(tuned, signs)


# ------------------------------------------------------------------------------------------ weights
def test_names_of_constants_are_those_of_our_modules() -> None:
    """In other modules R or q may be a weight; torch's weight_norm keeps a gain for each row."""
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.R, self.q = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False))

    other = Other()
    decays, stays = (group["params"] for group in optim.parameter_groups(other, weight_decay=0.1))
    directions = other.normed.parametrizations.weight.original1
    assert {id(one) for one in decays} == {id(one) for one in (other.R, other.q, directions)}
    assert [one.shape for one in stays] == [(3, 1)]


class Mixed(nn.Module):
    """Convolution, normalization, an embedding, neurons whose constants learn, learned delays, and
    positive weights that are stored as logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.embedding = (
            nn.Conv1d(2, 3, 4), nn.BatchNorm1d(3), nn.Embedding(5, 4))
        self.net = LSNN(4, 5, 6, 2, num_layers=2, learn=(
            "tau_mem", "tau_adapt", "beta", "threshold", "tau_out"), per_neuron=True)
        self.delays = LearnedDelay(4, 3, 2, per="synapse")
        self.positive = nn.Linear(4, 3)
        nn.init.uniform_(self.positive.weight, 0.5, 1.0)
        parametrize.register_parametrization(self.positive, "weight", Log())
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))


def _names(module: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    chosen = set(map(id, parameters))
    return {name for name, value in module.named_parameters() if id(value) in chosen}


WEIGHTS = {"conv.weight", "embedding.weight", "net.readout.weight", "delays.neurons.weight_ih_l0",
           "delays.neurons.weight_hh_l0", "normed.parametrizations.weight.original1",
           *(f"net.neurons.weight_{name}_l{k}" for name in ("ih", "hh") for k in range(2))}


def _assert_decay(module: nn.Module, tuned: Any, weights: set[str]) -> None:
    """That steps without a gradient let these decay by 0.5 * 0.1, and change no others."""
    first = {name: value.detach().clone() for name, value in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for steps in range(1, 4):
        tuned.step()
        for name, value in module.named_parameters():
            if value.dim() != 2 or not isinstance(tuned, optim.DeepR):  # which rewires it
                wanted = first[name] * (0.95 ** steps if name in weights else 1)
                torch.testing.assert_close(value.detach(), wanted, msg=name)


def test_weights_decay_and_nothing_else() -> None:
    module = Mixed()
    decaying, others = optim.parameter_groups(module, weight_decay=0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert _names(module, decaying["params"]) == WEIGHTS
    assert len(decaying["params"]) + len(others["params"]) == len(list(module.parameters()))
    _assert_decay(module, torch.optim.AdamW([decaying, others], lr=0.5), WEIGHTS)


def test_only_weights_decay_under_deep_r() -> None:
    """By default AdamW has a decay."""
    module = nn.Sequential(nn.Conv1d(2, 3, 4), LSNN(4, 5, 6, 2, learn=("tau_adapt", "threshold")))
    tuned = optim.DeepR.of(module, torch.optim.AdamW, 0.5, lr=0.5, weight_decay=0.1, l1=0.0)
    _assert_decay(module, tuned, {"0.weight"})


@pytest.mark.parametrize("learned", [{"alpha": "plain"}, {"rho": "clamp"}, {"q": "plain"}], ids=str)
def test_constants_of_any_form_do_not_decay(learned: dict[str, str]) -> None:
    layer = ALIF(3, 4, dynamics="adlif", alpha=0.9, rho=0.98, p=0.5, q=1.0, learn=learned,
                 per_neuron=True)
    decaying, _ = optim.parameter_groups(layer, weight_decay=0.1)
    assert _names(layer, decaying["params"]) == {"weight_ih_l0", "weight_hh_l0"}


def test_learned_delays_are_no_synapses() -> None:
    """DEEP R does not rewire them, and trains them as all else."""
    layer = LearnedDelay(4, 3, 2, per="synapse")
    first = layer.delay.detach().clone()
    wanted = {"neurons.weight_ih_l0", "neurons.weight_hh_l0"}
    assert _names(layer, optim.find_synapses(layer)[0]) == wanted
    tuned = optim.DeepR.of(layer, torch.optim.SGD, 0.3, lr=0.1)
    assert torch.equal(layer.delay, first)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    tuned.step()
    torch.testing.assert_close(layer.delay.detach(), first - 0.1)


@pytest.mark.parametrize(("module", "decay", "error", "said"), [
    ([], 0.1, TypeError, r"module: expected a torch\.nn\.Module, got list"),
    (nn.ReLU(), 0.1, ValueError, "module: expected parameters, got none in ReLU"),
    (nn.Linear(2, 2), -0.1, ValueError, "weight_decay: expected a number >= 0, got -0.1"),
    (nn.Linear(2, 2), math.nan, ValueError, "weight_decay: expected a number >= 0, got nan"),
    (nn.Linear(2, 2), math.inf, ValueError, "weight_decay: expected a number >= 0, got inf"),
    (nn.Linear(2, 2), True, TypeError, "weight_decay: expected a number >= 0, got True"),
    (nn.Linear(2, 2), "0.1", TypeError, "weight_decay: expected a number >= 0, got '0.1'")])
def test_what_is_wrong_is_named(module: Any, decay: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=f"^{said}$"):
        optim.parameter_groups(module, weight_decay=decay)
