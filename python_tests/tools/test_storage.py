"""lsnn_ext.save and load: nothing is lost on the way."""
import random
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lsnn_ext
from compare import assert_same
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, Linear
from lsnn_ext.modules.parametrizations import Clamp
from lsnn_ext.optim import DeepR

pytest.importorskip("safetensors")
TAU = torch.linspace(10, 30, 7)
MODULES: dict[str, Callable[[], nn.Module]] = {
    "ALIF": lambda: ALIF(5, 7, 2, bidirectional=True, dropout=0.25, tau_mem=TAU, refractory=2,
                         learn={"tau_mem": "log", "beta": "plain"}, dt=0.5,
                         checkpoint_every="1 GB"),
    "ALIF-delays": lambda: ALIF(5, 7, delay=torch.arange(49).view(7, 7) % 3, autapses=True,
                                surrogate="arctan", surrogate_cutoff=0.001, dampening=0.7,
                                saved_dtype=torch.bfloat16),
    "ALIF-clamped": lambda: ALIF(5, 7, dynamics="srnn", per_neuron=True,
                                 learn={"tau_mem": Clamp(2.0, 50.0)}, kappa=0.5),
    "ALIF-alone": lambda: ALIF(5, 7, recurrent=False, bias=False, batch_first=True,
                               dtype=torch.float64),
    "LIF": lambda: LIF(5, 7, dynamics="norse_lif", tau_mem=10.0, threshold=1.0, refractory=0,
                       autapses=False),
    "LSNN": lambda: LSNN(5, 4, 3, 2, delay=2, tau_out=15.0, bias=True),
    "LeakyReadout": lambda: LeakyReadout(5, 3, 12.5, bias=False),
    "LeakyReadout-synapse": lambda: LeakyReadout(5, 3, 12.5, tau_syn=4.5, learn="tau_syn"),
    "Linear": lambda: Linear(5, 3, bias=False),
    "nested": lambda: nn.ModuleDict({"a": nn.Sequential(nn.Linear(5, 4), Linear(4, 6)),
                                     "b": nn.ModuleList([ALIF(6, 3), LIF(3, 2)])})}


def _network() -> Any:
    """A network of all kinds, whose parts are found by name."""
    return nn.ModuleDict({
        "first": ALIF(5, 4, learn=("tau_mem", "beta"), tau_adapt=100.0), "second": ALIF(4, 4),
        "net": LSNN(4, 2, 2, 4, learn=("tau_mem", "tau_out"), per_neuron=True),
        "last": nn.ModuleDict({"fixed": LeakyReadout(4, 4), "linear": Linear(4, 4)})})


def _with(*changes: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    """Makes a network that something has been done to."""
    def make() -> nn.Module:
        made = _network()
        for change in changes:
            change(made)
        return made
    return make


def _set(part: str, **values: Any) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        for name, value in values.items():
            setattr(net.get_submodule(part), name, value)
    return change


def _tied(name: str, part: str, other: str) -> Callable[[nn.Module], None]:
    def tie(net: nn.Module) -> None:
        one = net.get_submodule(other)
        owned: Any = one._parameters if name in one._parameters else one._buffers
        setattr(net.get_submodule(part), name, owned[name])
    return tie


def _rewired(net: Any) -> None:
    optimizer = DeepR.of(net.net, torch.optim.SGD, 0.3, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net.net(torch.rand(9, 2, 4))[0].square().sum().backward()
        optimizer.step()


def _changed_readout(net: LSNN, **values: Any) -> LSNN:
    _set("readout", **values)(net)
    return net


def _twice() -> nn.Module:
    one, both = ALIF(4, 4, learn="tau_mem"), nn.ModuleList([LIF(4, 4), None])
    return nn.Sequential(OrderedDict(a=one, b=nn.Sequential(both, one), c=one, d=both, e=None))


TIMES = "parametrizations.tau"
# What a network may have gone through since it was made.
CHANGED: dict[str, Callable[[], nn.Module]] = {
    "network": _network,
    "named": lambda: nn.Sequential(OrderedDict(_network().items())),
    "twice": _twice,
    "one Linear twice": lambda: nn.Sequential(*[nn.Linear(4, 4)] * 2),
    "tied weights": _with(_tied("weight_hh_l0", "second", "net.neurons")),
    "tied readouts": _with(_tied("weight", "last.linear", "net.readout")),
    "tied constants": _with(_tied("tau_adapt_l0", "first", "second")),
    "tied times": _with(_tied("original", f"net.neurons.{TIMES}_mem_l0", f"net.readout.{TIMES}")),
    "tied within": _with(_set("second", weight_ih_l0=nn.Parameter(torch.rand(4, 4))),
                         lambda net: setattr(net.second, "weight_hh_l0", net.second.weight_ih_l0)),
    "eval": _with(lambda net: net.eval()),
    "eval of parts": _with(lambda net: (net.net.readout.eval(), net.last.eval())),
    "train in eval": _with(lambda net: (net.eval(), net.net.neurons.train())),
    "frozen": _with(lambda net: net.requires_grad_(False)),
    "frozen parts": _with(*(lambda net, name=name: net.get_parameter(name).requires_grad_(False)
                            for name in ("second.weight_hh_l0", "last.fixed.bias",
                                         f"net.neurons.{TIMES}_mem_l0.original"))),
    "a gradient of a constant": _with(lambda net: net.second.beta_l0.requires_grad_()),
    "tau": _with(_set("last.fixed", tau=7.5)),
    "no tau": _with(_set("last.fixed", tau=None)),
    "tau_syn": _with(_set("last.fixed", tau_syn=7.5)),
    "tau_syn of a network": _with(_set("net", readout=LeakyReadout(4, 4, tau_syn=3.0))),
    "tau of a network": lambda: _changed_readout(LSNN(5, 4, 3, 2), tau=33.0),
    "dt of a network": lambda: _changed_readout(LSNN(5, 4, 3, 2), dt=0.5),
    "another order": _with(_set("net.readout", batch_first=True)),
    "another readout": _with(_set("net", readout=LeakyReadout(4, 4, None, bias=False))),
    "other neurons": _with(_set("net", neurons=ALIF(4, 4, delay=2, dynamics="sj_soft"))),
    "settings": _with(_set("first", dt=0.5, refractory=3, dropout=0.25, surrogate="arctan",
                           autapses=True, sparse_grad="existing", checkpoint_every=64)),
    "dtypes": _with(lambda net: (net.net.readout.double(), net.second.bfloat16())),
    "float64": _with(lambda net: net.double()),
    "transposed": _with(lambda net: setattr(net.second.weight_ih_l0, "data", torch.rand(4, 4).t())),
    "one vector": _with(lambda net: nn.utils.vector_to_parameters(
        torch.rand(sum(p.numel() for p in net.parameters())), net.parameters())),
    "DeepR": _with(_rewired),
    "NaN": _with(lambda net: net.first.weight_hh_l0.data.fill_(float("nan")))}


def _again(module: nn.Module) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        lsnn_ext.save(module, Path(folder) / "m")
        return lsnn_ext.load(Path(folder) / "m")


def _groups(named: list[tuple[str, object]]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for name, one in named:
        found.setdefault(id(one), []).append(name)
    return [*found.values()]


def _bits(value: Tensor) -> Tensor:
    return value.detach().contiguous().view(-1).view(torch.uint8)


def assert_equal(other: nn.Module, module: nn.Module) -> None:
    """Everything that a call, an optimizer or a state dict sees of two modules."""
    assert repr(other) == repr(module)
    for members in ("named_modules", "named_parameters", "named_buffers"):
        named, loaded = (list(getattr(each, members)(remove_duplicate=False))
                         for each in (module, other))
        assert _groups(loaded) == _groups(named)
    before = parametrize.type_before_parametrizations
    for one, two in zip(module.modules(), other.modules(), strict=True):
        assert before(two) is before(one)
        for key, value in vars(one).items():
            if key == "_first":
                assert value.keys() == vars(two)[key].keys()
                assert all(torch.equal(vars(two)[key][name], value[name]) for name in value)
            elif not key.startswith("_") and not isinstance(value, Tensor):
                assert value == vars(two)[key], key
    state, there = module.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    assert [*there] == [*state]
    for name, value in state.items():
        two = there[name]
        assert (type(two), two.dtype, two.shape, two.requires_grad) == (
            type(value), value.dtype, value.shape, value.requires_grad), name
        assert torch.equal(_bits(two), _bits(value)), name


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.filterwarnings("ignore:dropout")
def test_what_has_changed_since(name: str) -> None:
    module = CHANGED[name]()
    assert_equal(_again(module), module)


def test_a_device(tmp_path: Path) -> None:
    """Tensors go there before they are tied."""
    layer = ALIF(5, 7, learn="tau_mem", delay=torch.eye(7).long())
    lsnn_ext.save(nn.Sequential(layer, layer), tmp_path / "m")
    one, two = lsnn_ext.load(tmp_path / "m", device="meta").children(), lsnn_ext.load(
        tmp_path / "m", device=torch.device("cpu")).children()
    assert all(value.is_meta for value in next(one).parameters()) and not [*one]
    assert next(two).weight_hh_l0.device.type == "cpu" and not [*two]  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="device"):
        lsnn_ext.load(tmp_path / "m", device="nowhere")


def test_the_file_may_be_overwritten(tmp_path: Path) -> None:
    layer = ALIF(5, 7)
    lsnn_ext.save(layer, tmp_path / "m")
    other: Any = lsnn_ext.load(tmp_path / "m")
    (tmp_path / "m").write_bytes(bytes((tmp_path / "m").stat().st_size))
    assert_same("weights", other.weight_hh_l0, layer.weight_hh_l0)
    lsnn_ext.save(other, tmp_path / "m")
    assert_same("weights", lsnn_ext.load(tmp_path / "m").weight_hh_l0,  # type: ignore[arg-type]
                layer.weight_hh_l0)


def test_no_number_is_drawn() -> None:
    module, state = _network(), torch.get_rng_state()
    _again(module)
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_of_numpy() -> None:
    layer = ALIF(5, 4, dt=np.float32(0.3), dampening=np.float64(0.5))
    other = _again(layer)
    assert (other.dt, other.dampening) == (layer.dt, layer.dampening)
    other.load_state_dict(layer.state_dict())
    x = torch.rand(30, 2, 5, dtype=torch.float64) * 5
    for learn in ((), "tau"):
        readout = LeakyReadout(5, 3, np.float32(12.3), dt=np.float32(0.3), learn=learn,
                               dtype=torch.float64)
        assert_same("readout", _again(readout)(x)[0].detach(), readout(x)[0].detach())
    _set("", dt=np.float32(0.7))(plain := LeakyReadout(5, 3, 12.3, dtype=torch.float64))
    assert_same("readout", _again(plain)(x)[0].detach(), plain(x)[0].detach())
    assert (type(readout.dt), type(layer.dt)) == (float, float)


def test_what_was_silenced_stays_silent() -> None:
    """The constructor has warned; neither save nor load does again."""
    with pytest.warns(UserWarning, match="dropout: expected 0"):
        layer = ALIF(5, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _again(layer).dropout == 0.5


def test_tied_weights_learn_as_one() -> None:
    module: Any = CHANGED["tied weights"]()
    learned = []
    for each in (module, _again(module)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        x = torch.ones(7, 2, 4)
        (each.second(x)[0].sum() + each.net(x)[0].sum()).backward()
        optimizer.step()
        assert each.second.weight_hh_l0 is each.net.neurons.weight_hh_l0
        learned.append(each.second.weight_hh_l0.detach())
    assert_same("weights", learned[1], learned[0])


def test_a_changed_readout_computes_as_before() -> None:
    net = _changed_readout(LSNN(5, 4, 3, 2), tau=3.0, dt=0.25)
    x = torch.rand(30, 2, 5) * 5
    assert_same("readout", _again(net)(x)[0].detach(), net(x)[0].detach())


PARTS: dict[str, Callable[[bool], nn.Module]] = {
    "ALIF": lambda learn: ALIF(4, 4, learn=("tau_mem", "threshold") if learn else ()),
    "LIF": lambda learn: LIF(4, 4, 2, bidirectional=learn, delay=torch.eye(4).long()),
    "LSNN": lambda learn: LSNN(4, 2, 2, 4, learn="tau_out" if learn else ()),
    "LeakyReadout": lambda learn: LeakyReadout(4, 4, learn="tau" if learn else ()),
    "Linear": lambda learn: Linear(4, 4, bias=learn), "nn.Linear": lambda _: nn.Linear(4, 4)}
TREES = st.recursive(st.tuples(st.sampled_from([*PARTS]), st.booleans()) | st.none(),
                     lambda trees: st.lists(trees, min_size=1, max_size=3), max_leaves=8)


def _grown(tree: Any, draw: random.Random, known: list[nn.Module]) -> nn.Module | None:
    """The modules of a tree, some of them twice."""
    if known and draw.random() < 0.2:
        return draw.choice(known)
    if tree is None:
        return None
    if isinstance(tree, tuple):
        made = PARTS[tree[0]](tree[1])
    else:
        parts: Any = {f"m{i}": _grown(part, draw, known) for i, part in enumerate(tree)}
        made = draw.choice([lambda: nn.Sequential(OrderedDict(parts)),
                            lambda: nn.ModuleDict(parts),
                            lambda: nn.ModuleList(parts.values())])()
    known.append(made)
    return made


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(TREES, st.randoms(use_true_random=False))
def test_any_tree(tree: Any, draw: random.Random) -> None:
    """Modules in each other, some twice, with tied and frozen tensors and parts in eval mode."""
    module: Any = nn.ModuleList([_grown(tree, draw, [])])
    owned = [(part, name, value) for part in module.modules()
             for name, value in part.named_parameters(recurse=False)]
    for part, name, value in owned:
        same = [one for _, other, one in owned if one.shape == value.shape and other == name]
        part._parameters[name] = one = draw.choice(same) if draw.random() < 0.2 else value
        one.requires_grad_(draw.random() < 0.8)
    for part in module.modules():
        part.training = draw.random() < 0.7
    assert_equal(_again(module), module)


def _trained(module: nn.Module) -> nn.Module:
    """With other numbers than those it was made with."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.rand_like(p) * 0.01)
    return module


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:dropout")
def test_round_trip(name: str) -> None:
    module = _trained(MODULES[name]())
    other = _again(module)
    assert_equal(other, module)
    if name == "nested":
        return
    dtype = next(module.parameters()).dtype
    x = torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    got, want = other.eval()(10 * x), module.eval()(10 * x)
    if not isinstance(want, Tensor):
        got, want = got[0], want[0]
    assert want.any()
    assert_same("output", got.detach(), want.detach())


@pytest.mark.parametrize("name", ["ALIF", "ALIF-delays", "LSNN"])
@pytest.mark.filterwarnings("ignore:dropout")
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
