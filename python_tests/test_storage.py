"""lsnn_ext.save and load: nothing is lost on the way, and what cannot be kept is refused."""
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import lsnn_ext
from compare import assert_same
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, Linear

safetensors = pytest.importorskip("safetensors")
TAU = torch.linspace(10, 30, 7)
MODULES: dict[str, Callable[[], nn.Module]] = {
    "ALIF": lambda: ALIF(5, 7, 2, bidirectional=True, dropout=0.25, tau_mem=TAU, refractory=2,
                         learn=("tau_mem", "beta"), checkpoint_every="1 GB", dt=0.5),
    "ALIF-delays": lambda: ALIF(5, 7, delay=torch.arange(49).view(7, 7) % 3, autapses=True,
                                surrogate="arctan", surrogate_cutoff=0.001, dampening=0.7,
                                saved_dtype=torch.bfloat16),
    "ALIF-alone": lambda: ALIF(5, 7, recurrent=False, bias=False, batch_first=True,
                               dtype=torch.float64),
    "LIF": lambda: LIF(5, 7, dynamics="norse_lif", tau_mem=10.0, threshold=1.0, refractory=0,
                       autapses=False),
    "LSNN": lambda: LSNN(5, 4, 3, 2, delay=2, tau_out=15.0, bias=True),
    "LeakyReadout": lambda: LeakyReadout(5, 3, 12.5, bias=False),
    "Linear": lambda: Linear(5, 3, bias=False),
    "nested": lambda: nn.ModuleDict({"a": nn.Sequential(nn.Linear(5, 4), Linear(4, 6)),
                                     "b": nn.ModuleList([ALIF(6, 3), LIF(3, 2)])}),
}


def _trained(module: nn.Module) -> nn.Module:
    """With other numbers than those it was made with."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.rand_like(p) * 0.01)
    return module


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:dropout acts")
def test_round_trip(name: str, tmp_path: Path) -> None:
    module = _trained(MODULES[name]())
    lsnn_ext.save(module, tmp_path / "m.safetensors")
    other = lsnn_ext.load(tmp_path / "m.safetensors")
    assert type(other) is type(module) and repr(other) == repr(module)
    state = module.state_dict()
    assert [*other.state_dict()] == [*state]
    for key, value in other.state_dict().items():
        assert value.dtype == state[key].dtype
        assert_same(key, value, state[key])
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in module.named_parameters()]
    for one, two in zip(module.modules(), other.modules(), strict=True):
        for key, value in vars(one).items():
            if not key.startswith("_") and not isinstance(value, torch.Tensor):
                assert value == vars(two)[key], key
    if name == "nested":
        return
    dtype = next(module.parameters()).dtype
    x = torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    got, want = other.eval()(10 * x), module.eval()(10 * x)
    if not isinstance(want, torch.Tensor):
        got, want = got[0], want[0]
    assert want.any()
    assert_same("output", got.detach(), want.detach())


@pytest.mark.parametrize("name", ["ALIF", "ALIF-delays", "LSNN"])
@pytest.mark.filterwarnings("ignore:dropout acts")
def test_a_loaded_module_may_begin_anew(name: str, tmp_path: Path) -> None:
    """What the constructor was given comes along, beside what has been learned."""
    fresh = MODULES[name]()
    lsnn_ext.save(_trained(MODULES[name]()), tmp_path / "m")
    other = lsnn_ext.load(tmp_path / "m")
    for module in (fresh, other):
        torch.manual_seed(2)
        module.reset_parameters()  # type: ignore[operator]
    for key, value in other.state_dict().items():
        assert_same(key, value, fresh.state_dict()[key])


def test_the_file_is_plain(tmp_path: Path) -> None:
    lsnn_ext.save(ALIF(5, 7), tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", framework="pt") as file:
        assert {"state.weight_ih_l0", "state.weight_hh_l0", "state.tau_mem_l0"} <= set(file.keys())
        told = json.loads(file.metadata()["lsnn_ext"])
    assert (told["format"], told["version"]) == (1, lsnn_ext.__version__)
    assert told["module"]["arguments"]["hidden_size"] == 7


class Mine(ALIF):
    pass


def _parametrized() -> nn.Module:
    module = nn.Sequential(ALIF(5, 7))
    nn.utils.parametrizations.weight_norm(module[0], "weight_hh_l0")
    return module


@pytest.mark.parametrize(("module", "message"), [
    (lambda: nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), r"module\.1: expected one of .* LSTM"),
    (lambda: Mine(2, 3), "module: expected one of .* got Mine"),
    (_parametrized, r"module\.0: expected plain parameters"),
])
def test_others_are_refused(module: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        lsnn_ext.save(module(), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    import safetensors.torch as st

    st.save_file({"a": torch.ones(2)}, tmp_path / "m")
    with pytest.raises(ValueError, match="without its description"):
        lsnn_ext.load(tmp_path / "m")
    told = json.dumps({"format": 2, "version": "9.0", "module": {}})
    st.save_file({"a": torch.ones(2)}, tmp_path / "m", metadata={"lsnn_ext": told})
    with pytest.raises(ValueError, match="expected format 1, got 2 of lsnn_ext 9.0"):
        lsnn_ext.load(tmp_path / "m")
