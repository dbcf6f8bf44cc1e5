"""Linears of torch that take spikes, in a model that convert works on."""
import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lsnn_ext
import published
from compare import assert_same
from originals import package

T, B, I, N, O = 30, 4, 7, 12, 3


class Net(nn.Module):
    """With a projection of its inputs, and Linears around and behind its layers; `also`: one more
    behind the first layer."""

    def __init__(self, also: nn.Module) -> None:
        super().__init__()
        norse = package("norse.torch")
        self.project = nn.Linear(I, N)
        self.first = norse.LIFRecurrent(N, N)
        self.between = nn.Linear(N, N, bias=False)
        self.second = norse.LIFRecurrent(N, N)
        self.readout = nn.Linear(N, O)
        self.again = self.readout  # at two places
        self.also = also

    def forward(self, x: Tensor) -> Tensor:
        z, _ = self.first(self.project(x))
        more: Tensor = self.also(z).mean()
        z, _ = self.second(self.between(z))
        out: Tensor = self.readout(z).mean(0) + self.again(z).sum(0) + more
        return out


def _net(also: nn.Module | None = None) -> Net:
    torch.manual_seed(0)
    net = Net(nn.Identity() if also is None else also)
    with torch.no_grad():
        for linear in (net.project, net.between):
            linear.weight.mul_(8)
    return net


def _x(spikes: bool = True) -> Tensor:
    drawn = torch.rand(T, B, I, generator=torch.Generator().manual_seed(1))
    return (drawn < 0.4).float() if spikes else drawn


def _names(report: lsnn_ext.Report) -> set[str]:
    return {one.name for one in report.linears}


@pytest.mark.parametrize("spikes", [True, False])
def test_those_that_take_spikes(spikes: bool) -> None:
    """The projection too where the inputs are spikes. Parameters are the same objects, under the
    same names and in the same order, and revert puts the very modules back."""
    net, x = _net(), _x(spikes)
    were = {name: net.get_submodule(name) for name in ("project", "between", "readout")}
    parameters, kept = dict(net.named_parameters()), copy.deepcopy(net.state_dict())
    want = net(x)
    _, report = lsnn_ext.convert(net, verify=x, repeats=1)
    found = report.comparison
    assert found is not None and found.verdict == "equal" and found.dtype == "float64"
    assert max(found.states.values()) < 1e-12 and max(found.gradients.values()) < 1e-12
    assert min(found.rates.values()) > 0.02
    assert _names(report) == {"between", "readout"} | ({"project"} if spikes else set())
    assert ("readout", "again") in [one.names for one in report.linears]
    assert "2 of 2 spiking modules replaced, and" in str(report)
    assert "readout = again" in str(report) and "lsnn_ext.modules.linear.Linear" in str(report)
    assert type(net.readout) is lsnn_ext.Linear and net.readout is net.again
    assert isinstance(net.readout, nn.Linear)
    assert (type(net.project) is lsnn_ext.Linear) is spikes
    assert list(net.named_parameters()) == list(parameters.items())
    assert list(net.state_dict()) == list(kept)
    net.load_state_dict(kept)
    assert_same("output", net(x).detach(), want.detach(), tolerance=1e-5)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_same("copy", other(x).detach(), net(x).detach())
    torch.optim.SGD(net.parameters(), 0.01).zero_grad()
    net(x).square().sum().backward()
    with torch.no_grad():
        net.readout.weight.mul_(2)
    lsnn_ext.revert(net)
    assert all(net.get_submodule(name) is module for name, module in were.items())
    assert net.readout is net.again and net.readout.weight is parameters["readout.weight"]


class Own(nn.Linear):
    pass


def _hooked() -> nn.Module:
    linear = nn.Linear(N, O)
    linear.register_forward_hook(lambda *_: None)
    return linear


class Laden(nn.Module):
    """Has hung something on its Linear."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.linear, self.what = nn.Linear(N, O), what
        if what == "attribute":
            self.linear.gain = torch.tensor(2.0)
        if what == "buffer":
            self.linear.register_buffer("gain", torch.tensor(2.0))
        if what == "module":
            self.linear.add_module("gain", nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        gain: Any = self.linear.gain
        return gain(y) if self.what == "module" else gain * y


class Listed(nn.Module):
    """Holds its Linear in a list too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(N, O)
        self.parts = [self.linear]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)  # type: ignore[no-any-return]


class Each(nn.Module):
    """Calls its Linear with single steps, and then with numbers."""

    def __init__(self, numbers: bool) -> None:
        super().__init__()
        self.linear, self.numbers = nn.Linear(N, O), numbers

    def forward(self, x: Tensor) -> Tensor:
        if self.numbers:
            return self.linear(x) + self.linear(x / 2)  # type: ignore[no-any-return]
        return torch.stack([self.linear(x_t) for x_t in x])


@pytest.mark.parametrize("also", [
    Own(N, O), _hooked(), Laden("attribute"), Laden("buffer"), Laden("module"),
    Listed(), Each(False), Each(True), parametrizations.weight_norm(
        nn.Linear(N, O)), nn.Sequential(nn.Dropout(0.5), nn.Linear(N, O)),
], ids=["subclass", "hooked", "attribute", "buffer", "module", "listed", "steps", "numbers",
        "parametrized", "dropout"])
def test_those_that_stay(also: nn.Module) -> None:
    net = _net(also)
    were = [module for module in net.also.modules() if isinstance(module, nn.Linear)]
    _, report = lsnn_ext.convert(net, verify=_x(), repeats=0)
    assert _names(report) == {"project", "between", "readout"}
    assert [module for module in net.also.modules() if isinstance(module, nn.Linear)] == were


def test_where_all_stay() -> None:
    """On request, where nothing was run, and where no layer is replaced; and inside of layers."""
    x = _x()
    for arguments in ({"verify": x, "spike_linears": False}, {}):
        _, report = lsnn_ext.convert(_net(), repeats=0, **arguments)  # type: ignore[arg-type]
        assert report.linears == () and len(report.replaced) == 2
    plain = nn.Sequential(nn.Linear(I, O))
    _, report = lsnn_ext.convert(plain, verify=x, repeats=0)
    assert report.linears == () and type(plain[0]) is nn.Linear
    package("sinabs")
    from sinabs.layers import ALIFRecurrent

    layer = ALIFRecurrent(tau_mem=8.0, tau_adapt=20.0, rec_connect=nn.Linear(N, N))
    model: Any = nn.Sequential(nn.Linear(I, N), layer, nn.Linear(N, O))
    with torch.no_grad():
        model[0].weight.mul_(16)
    _, report = lsnn_ext.convert(model, verify=x.transpose(0, 1).contiguous(), repeats=0)
    assert _names(report) == {"0", "2"} and type(model[1].rec_connect) is nn.Linear


def test_those_inside_of_layers_stay() -> None:
    """Of layers that are replaced and of others, though they are given sequences of spikes."""
    torch.manual_seed(0)
    other = published.RLIFLayer(N, N, B, normalization="none")
    other.spike_fct = lambda u: published._spike(u, lambda m: 2 * published._boxcar(m))
    first = published.RadLIFLayer(I, N, B, normalization="none")
    model: Any = nn.Sequential(first, other, nn.Linear(N, O))
    _, report = lsnn_ext.convert(model, verify=_x().transpose(0, 1).contiguous(), repeats=0)
    assert [one.name for one in report.replaced] == ["0"] and model[1] is other
    assert _names(report) == {"2"} and type(other.W) is type(model[0].W) is nn.Linear


def test_a_pickle_of_one_has_no_original() -> None:
    net = _net()
    lsnn_ext.convert(net, verify=_x(), repeats=0)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    with pytest.raises(RuntimeError, match="expected the original beside it"):
        lsnn_ext.revert(torch.load(file, weights_only=False))
