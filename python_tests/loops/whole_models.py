"""Whole models of other packages' layers, as their users write them."""
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import papers
from originals import package

T, B, I, N = 30, 4, 6, 14


class Case(NamedTuple):
    """A model, its inputs, and the dtype in which its package computes."""

    model: nn.Module
    x: Tensor
    dtype: torch.dtype = torch.float64


class Stacked(nn.Module):
    """Layers one after the other, and the state of the last one that has one."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        state = None
        for part in self.parts:
            found = part(x)
            x, state = found if isinstance(found, tuple) else (found, state)
        return x, state


class Loop(nn.Module):
    """Two layers of snnTorch, and the Linears around them, in one loop."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.project, self.one, self.two, self.out = nn.Linear(I, N), one, two, nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        one: Any = self.one.reset_mem()  # type: ignore[operator]
        two: Any = self.two.reset_mem()  # type: ignore[operator]
        outs = []
        for x_t in x:
            one = self.one(self.project(x_t), *one)
            two = self.two(one[0], *two)
            outs.append(self.out(two[0]))
        return torch.stack(outs)


class YinLoop(nn.Module):
    """The loop of Yin et al., from states that are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = papers.SpikeRNN(I, N, tauM=20, tauAdp_inital=30), nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.set_neuron_state(x.shape[1])
        self.layer.mem = torch.rand(x.shape[1], N).to(x)
        return torch.stack([self.out(self.layer(x_t)[1]) for x_t in x])


def _x(*shape: int) -> Tensor:
    return 3 * torch.rand(shape, generator=torch.Generator().manual_seed(1))


def norse() -> Case:
    """Parameters that learn and are no Parameters of the layer."""
    nt = package("norse.torch")
    p = nt.LSNNParameters(tau_mem_inv=torch.tensor(150.0, requires_grad=True),
                          tau_adapt_inv=torch.tensor(30.0), v_th=torch.tensor(0.3))
    return Case(Stacked(nn.Linear(I, 10), nt.LSNNRecurrent(10, N, p=p, autapses=True),
                        nn.ModuleList([nt.LIFRecurrent(N, 9)])[0], nn.Linear(9, 2)), _x(T, B, I))


def norse_sequential() -> Case:
    """A container of norse that hands states on."""
    nt = package("norse.torch")
    return Case(nt.SequentialState(nn.Linear(I, N), nt.LSNNRecurrent(N, N),
                                   nt.LIFRecurrent(N, 9)), 3 * _x(T, B, I))


def snntorch() -> Case:
    """A layer with a matrix, and one without."""
    snn = package("snntorch")
    return Case(Loop(
        snn.RLeaky(beta=torch.rand(N), linear_features=N, learn_beta=True),
        snn.RSynaptic(alpha=0.5, beta=0.8, all_to_all=False, V=torch.rand(N))), _x(T, B, I),
        torch.float32)


def sinabs() -> Case:
    package("sinabs")
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.layers import ALIFRecurrent, LIFRecurrent

    model = nn.Sequential(
        nn.Linear(I, N),
        nn.ModuleDict({"a": ALIFRecurrent(tau_mem=8.0, tau_adapt=20.0, adapt_scale=0.5,
                                          rec_connect=nn.Linear(N, N))})["a"],
        nn.Sequential(nn.Linear(N, N), LIFRecurrent(
            torch.full((N,), 5.0), nn.Linear(N, N, bias=False), tau_syn=3.0,
            spike_fn=SingleSpike, reset_fn=MembraneReset(), norm_input=False)),
        nn.Linear(N, 2))
    with torch.no_grad():
        model[0].weight.mul_(4)
    return Case(model, _x(B, T, I), torch.float32)


def spikingjelly() -> Case:
    package("spikingjelly")
    from spikingjelly.activation_based.layer import LinearRecurrentContainer
    from spikingjelly.activation_based.neuron import LIFNode, ParametricLIFNode

    return Case(nn.Sequential(
        LinearRecurrentContainer(LIFNode(v_threshold=0.3), I, I, step_mode="m"),
        LinearRecurrentContainer(nn.Sequential(nn.Linear(I, N), ParametricLIFNode(
            v_reset=None, v_threshold=0.1, detach_reset=True)), I, N, step_mode="m"),
        nn.Linear(N, 2)), _x(T, B, I))


def yin() -> Case:
    return Case(YinLoop(), 8 * _x(T, B, I))


def sparch() -> Case:
    """Random states in each call, a norm inside."""
    return Case(nn.Sequential(papers.RadLIFLayer(I, N, B),
                              papers.RLIFLayer(N, 9, B, bidirectional=True),
                              nn.Linear(18, 2)), _x(B, T, I))


def se_adlif() -> Case:
    return Case(Stacked(papers.SEAdLIF(I, N, thr=0.3, train_tau_w_method="interpolation"),
                        nn.Linear(N, 2)), _x(B, T, I))


MAKERS = {made.__name__: made for made in (norse, norse_sequential, snntorch, sinabs, spikingjelly,
                                           yin, sparch, se_adlif)}


def made(name: str) -> Case:
    """Of one seed, in the package's dtype."""
    torch.manual_seed(0)
    model, x, dtype = MAKERS[name]()
    return Case(model.to(dtype), x.to(dtype), dtype)
