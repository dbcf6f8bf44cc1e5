"""Published layers as plain loops over time, with the published names."""
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsnn_ext.zoo.surrogates import boxcar, multi_gaussian

# ------------------------------------------------------------- Yin, Corradi and Bohte (2021)
b_j0_value, beta_value = 0.5, 1.75


def mem_update_adp(inputs: Tensor, mem: Tensor, spike: Tensor, tau_adp: Tensor, b: Tensor,
                   tau_m: Tensor, dt: int = 1, isAdapt: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    alpha, rho = torch.exp(-dt / tau_m), torch.exp(-dt / tau_adp)
    b = rho * b + (1 - rho) * spike
    A = b_j0_value + (beta_value if isAdapt else 0.0) * b
    mem = alpha * mem + (1 - alpha) * inputs - A * spike * dt
    return mem, multi_gaussian(mem - A), b


class SpikeRNN(nn.Module):
    def __init__(self, input_dim: int, output_dim: int, tauM: float = 20,
                 tauAdp_inital: float = 100, tauM_inital_std: float = 5,
                 tauAdp_inital_std: float = 5, is_adaptive: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.output_dim, self.is_adaptive, self.b_j0 = output_dim, is_adaptive, b_j0_value
        self.dense = nn.Linear(input_dim, output_dim, bias=bias)
        self.recurrent = nn.Linear(output_dim, output_dim, bias=bias)
        self.tau_m = nn.Parameter(torch.empty(output_dim))
        self.tau_adp = nn.Parameter(torch.empty(output_dim))
        nn.init.normal_(self.tau_m, tauM, tauM_inital_std)
        nn.init.normal_(self.tau_adp, tauAdp_inital, tauAdp_inital_std)

    def set_neuron_state(self, batch_size: int) -> None:
        self.mem = self.spike = torch.zeros(batch_size, self.output_dim, dtype=self.tau_m.dtype)
        self.b = torch.full_like(self.mem, self.b_j0)

    def forward(self, input_spike: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.dense(input_spike) + self.recurrent(self.spike)
        self.mem, self.spike, self.b = mem_update_adp(
            inputs, self.mem, self.spike, self.tau_adp, self.b, self.tau_m,
            isAdapt=self.is_adaptive)
        return self.mem, self.spike


# ---------------------------------------------------------------- Bittar and Garner (2022)
class _Sparch(nn.Module):
    limits: dict[str, tuple[float, float]]

    def __init__(self, input_size: int, hidden_size: int, batch_size: int, threshold: float = 1.0,
                 dropout: float = 0.0, normalization: str = "batchnorm", use_bias: bool = False,
                 bidirectional: bool = False) -> None:
        super().__init__()
        self.threshold, self.bidirectional = threshold, bidirectional
        self.spike_fct = boxcar
        self.W = nn.Linear(input_size, hidden_size, bias=use_bias)
        self.V = nn.Linear(hidden_size, hidden_size, bias=False)
        for name, limits in self.limits.items():
            setattr(self, f"{name}_lim", list(limits))
            self.register_parameter(name, nn.Parameter(torch.empty(hidden_size)))
            nn.init.uniform_(getattr(self, name), *limits)
        nn.init.orthogonal_(self.V.weight)
        self.normalize = normalization in ("batchnorm", "layernorm")
        if self.normalize:
            self.norm = (nn.BatchNorm1d(hidden_size, momentum=0.05)
                         if normalization == "batchnorm" else nn.LayerNorm(hidden_size))
        self.drop = nn.Dropout(p=dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x.flip(1)]) if self.bidirectional else x
        Wx = self.W(x)
        if self.normalize:
            Wx = self.norm(Wx.flatten(0, 1)).reshape(Wx.shape)
        s = self.cell(Wx)
        if self.bidirectional:
            s = torch.cat([s.chunk(2)[0], s.chunk(2)[1].flip(1)], dim=2)
        dropped: Tensor = self.drop(s)
        return dropped

    def cell(self, Wx: Tensor) -> Tensor:
        adapts, size = len(self.limits) > 1, (Wx.shape[0], Wx.shape[2])
        u = torch.rand(size).to(Wx)
        w = torch.rand(size).to(Wx) if adapts else torch.zeros_like(u)
        s = torch.rand(size).to(Wx)
        k = {name: torch.clamp(getattr(self, name), *limits)
             for name, limits in self.limits.items()}
        V = self.V.weight.clone().fill_diagonal_(0)
        spikes = []
        for c in Wx.unbind(1):
            if adapts:
                w = k["beta"] * w + k["a"] * u + k["b"] * s
            u = k["alpha"] * (u - s) + (1 - k["alpha"]) * (c + s @ V - w)
            s = self.spike_fct(u - self.threshold)
            spikes.append(s)
        return torch.stack(spikes, dim=1)


_ALPHA = (math.exp(-1 / 5), math.exp(-1 / 25))


class RLIFLayer(_Sparch):
    limits = {"alpha": _ALPHA}


class RadLIFLayer(_Sparch):
    limits = {"alpha": _ALPHA, "beta": (math.exp(-1 / 30), math.exp(-1 / 120)), "a": (-1.0, 1.0),
              "b": (0.0, 2.0)}


# ------------------------------------------------------------------- Baronig et al. (2025)
def SLAYER(x: Tensor, alpha: float, c: float) -> Tensor:  # noqa: N802  the published name
    return c * alpha / 2 * torch.exp(-alpha * x.abs())


class _Inject(torch.autograd.Function):
    """1 where u > 0, with a derivative that is given."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return gradient * derivative, None


class _Tau(nn.Module):
    def __init__(self, size: int, low: float, high: float, learns: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=learns)
        self.learns, self.low, self.high = learns, low, high

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, *((0.0, 1.0) if self.learns else (self.low, self.high)))

    def get_decay(self) -> Tensor:
        w = self.weight
        return torch.exp(-1 / (w * self.high + (1 - w) * self.low if self.learns else w))


class SEAdLIF(nn.Module):
    def __init__(self, in_features: int, out_features: int, thr: float = 1.0, alpha: float = 5.0,
                 c: float = 0.4, tau_u_range: tuple[float, float] = (20, 20),
                 train_tau_u_method: str = "fixed", tau_w_range: tuple[float, float] = (20, 200),
                 train_tau_w_method: str = "fixed", use_recurrent: bool = True,
                 a_range: tuple[float, float] = (0.0, 1.0),
                 b_range: tuple[float, float] = (0.0, 2.0), q: float = 60.0) -> None:
        super().__init__()
        self.out_features, self.thr, self.q, self.alpha, self.c = out_features, thr, q, alpha, c
        self.tau_u_trainer = _Tau(out_features, *tau_u_range, train_tau_u_method != "fixed")
        self.tau_w_trainer = _Tau(out_features, *tau_w_range, train_tau_w_method != "fixed")
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.recurrent = nn.Parameter(torch.empty(out_features, out_features)) if (
            use_recurrent) else None
        self.a, self.b = (nn.Parameter(torch.empty(out_features)) for _ in range(2))
        self.tau_u_trainer.reset_parameters()
        self.tau_w_trainer.reset_parameters()
        bound = math.sqrt(1 / in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.recurrent is not None:
            nn.init.orthogonal_(self.recurrent)
        nn.init.uniform_(self.a, *a_range)
        nn.init.uniform_(self.b, *b_range)

    def forward(self, input_tensor: Tensor) -> tuple[Tensor, Tensor]:
        du, dw = self.tau_u_trainer.get_decay(), self.tau_w_trainer.get_decay()
        u = z = w = input_tensor.new_zeros(input_tensor.shape[0], self.out_features)
        all_u, all_z, all_w = [u], [z], [w]
        for x in input_tensor.unbind(1):
            current = F.linear(x, self.weight, self.bias)
            if self.recurrent is not None:
                current = current + F.linear(z, self.recurrent)
            u = du * u + (1 - du) * (current - w)
            z = _Inject.apply(u - self.thr, SLAYER((u - self.thr).detach(), self.alpha, self.c))
            u = u * (1 - z.detach())
            w = dw * w + (1 - dw) * (self.a * u + self.b * z) * self.q
            for values, value in zip((all_u, all_z, all_w), (u, z, w), strict=True):
                values.append(value)
        states = torch.stack([torch.stack(values, 1) for values in (all_u, all_z, all_w)])
        return states[1, :, 1:], states
