"""State dicts of layers hold model and version; others are refused, older ones read."""
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compare import through_file
from draws import draw
from lsnn_ext import ALIF, LSNN
from lsnn_ext.modules.extra_state import VERSION
from lsnn_ext.modules.parametrizations import Clamp
from module_kinds import Exp, make_kinds

I, N = 4, 8
LEARN = ("tau_mem", "tau_adapt", "beta", "threshold")
PLAIN = dict.fromkeys(LEARN, "plain")
KINDS = {**make_kinds(I, N), "ALIF": lambda **options: ALIF(I, N, 2, **options)}
every = pytest.mark.parametrize("kind", KINDS)


def _identity(module: nn.Module) -> dict[str, Any]:
    (value,) = [v for name, v in module.state_dict().items() if name.endswith("_extra_state")]
    return dict(json.loads(bytes(value.tolist())))


@every
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_identity(kind: str, device: str) -> None:
    """It is read whatever the default device is."""
    layer = KINDS[kind](dynamics="srnn", delay=2, dt=0.5, tau_mem=15.0)
    with torch.device(device):
        found = _identity(layer)
    assert found == {"dynamics": "srnn", "version": VERSION, "learn": {}, "dt": 0.5, "delay": 2,
                     "refractory": 0, "autapses": True}
    learned = ALIF(I, N, learn={"tau_mem": Clamp(5.0, 25.0), "beta": "plain", "threshold": "log"})
    assert _identity(learned)["learn"] == {"tau_mem": ["clamp", 5.0, 25.0], "beta": ["plain"],
                                           "threshold": ["log"]}


@every
def test_another_model_is_refused(kind: str) -> None:
    """Before anything has been changed."""
    one, other = KINDS[kind](), KINDS[kind](dynamics="eprop")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="^dynamics: expected a state dict of model 'eprop' "
                                               "for this (ALIF|LIF), got one of 'lsnn'; make the "
                                               "layer with dynamics='lsnn'"):
            other.load_state_dict(one.state_dict(), strict=strict)
    after = other.state_dict()
    names = [name for name in before if "neurons" in name or kind != "LSNN"]
    assert all(torch.equal(before[name], after[name]) for name in names)


@every
@pytest.mark.parametrize(("name", "value"), [("dt", 2.0), ("refractory", 3), ("autapses", True),
                                             ("delay", 1)])
def test_other_settings_are_told(kind: str, name: str, value: Any) -> None:
    one, other = KINDS[kind](), KINDS[kind](**{name: value})
    with pytest.warns(UserWarning, match=f"state dict is of a layer with {name}=.* there and "
                                         f"{value} here"):
        other.load_state_dict(one.state_dict())


def test_newer_and_broken_ones() -> None:
    layer = ALIF(I, N)
    saved = layer.state_dict()
    newer = json.dumps({**_identity(layer), "version": VERSION + 1}).encode()
    broken = (b"nothing", b"[]", b"[" * 10**5, b'{"version": 2}', b'{"version": "x", "learn": {}}',
              b'{"version": 1e999, "learn": {}}', b'{"version": 2, "learn": 3}',
              *(b'{"version": 2, "learn": {"tau_mem": %s}}' % words
                for words in (b"[]", b"3", b'["load"]', b'["clamp"]', b'["clamp", 1, "2"]')))
    for bytes_, message in ((newer, f"expected a state dict of version {VERSION} or older, got "
                                    f"version {VERSION + 1}"),
                            *((words, "expected the extra state of a ALIF of lsnn_ext")
                              for words in broken)):
        saved["_extra_state"] = torch.tensor(list(bytes_), dtype=torch.uint8)
        with pytest.raises(RuntimeError, match=f"^_extra_state: {message}"):
            layer.load_state_dict(saved)


@every
def test_older_ones(kind: str) -> None:
    """Of version 1: no identity, and the numbers themselves where something was learned."""
    learn = [name for name in LEARN if kind != "LIF" or name in ("tau_mem", "threshold")]
    old = KINDS[kind](learn=dict.fromkeys(learn, "plain"))
    with torch.no_grad():
        for name, value in old.named_parameters():
            if "tau" in name or "threshold" in name:
                value.mul_(1.25)
    saved = {name: value for name, value in old.state_dict().items() if "_extra" not in name}
    for new in (KINDS[kind](learn=learn), KINDS[kind](learn=dict.fromkeys(learn, "plain")),
                KINDS[kind]()):
        given = dict(saved)
        assert str(new.load_state_dict(given)) == "<All keys matched successfully>"
        assert list(given) == list(saved)  # the caller's is as it was
        for name in learn:
            part = "neurons." if kind == "LSNN" else ""
            torch.testing.assert_close(_read(new, f"{part}{name}_l0"), saved[f"{part}{name}_l0"])
        if new.state_dict().keys() >= saved.keys():
            assert torch.equal(new(draw(20, 3, I))[0], old(draw(20, 3, I))[0])


def _read(module: nn.Module, name: str) -> Tensor:
    *path, last = name.split(".")
    value: Tensor = getattr(module.get_submodule(".".join(path)), last)
    return value.detach()


FORMS: dict[str, Any] = {"log": LEARN, "plain": PLAIN, "clamp": {**PLAIN, "tau_mem": Clamp(1, 99)},
                         "none": ()}


@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("of", FORMS)
def test_from_form_to_form(of: str, to: str) -> None:
    """How a layer stores what it learns does not matter to another one."""
    torch.manual_seed(0)
    one, other = ALIF(I, N, 2, learn=FORMS[of], tau_mem=17.0), ALIF(I, N, 2, learn=FORMS[to])
    found = through_file(one.state_dict(), weights_only=True)
    assert str(other.load_state_dict(found)) == "<All keys matched successfully>"
    for name in ("tau_mem_l1", "tau_adapt_l0", "beta_l0", "threshold_l1"):
        torch.testing.assert_close(_read(other, name), _read(one, name))
    if of == to:
        assert torch.equal(one(draw(20, 3, I))[0], other(draw(20, 3, I))[0])


@pytest.mark.parametrize("assign", [True, False])
def test_into_a_layer_without_memory(assign: bool) -> None:
    layer = ALIF(I, N, learn=LEARN, per_neuron=True, tau_mem=13.0)
    empty = ALIF(I, N, learn=LEARN, per_neuron=True, device="meta")
    if not assign:
        empty = empty.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict(), assign=assign)
    assert torch.equal(empty(draw(20, 3, I))[0], layer(draw(20, 3, I))[0])


def test_parametrizations_of_others_are_left_alone() -> None:
    one, other = ALIF(I, N), ALIF(I, N)
    for layer in (one, other):
        parametrize.register_parametrization(layer, "tau_mem_l0", Exp())
    with torch.no_grad():
        one.tau_mem_l0 = torch.tensor(11.0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.tau_mem_l0, one.tau_mem_l0)
    with pytest.raises(RuntimeError, match="tau_mem_l0"):
        ALIF(I, N).load_state_dict(one.state_dict())


def test_whole_models() -> None:
    """Layers inside of others, in a dict that has lost what was not a tensor."""
    model = nn.Sequential(ALIF(I, N, learn="tau_mem"), nn.Identity(), LSNN(I, 3, 5, 2))
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(saved)
    other = nn.Sequential(ALIF(I, N, dynamics="srnn", learn="tau_mem"), nn.Identity(),
                          LSNN(I, 3, 5, 2))
    with pytest.raises(RuntimeError, match="^dynamics: .*'srnn'.*'lsnn'"):
        other.load_state_dict(saved)
