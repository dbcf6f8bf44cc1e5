"""The layer of symplectic adaptive neurons of Baronig et al., as one fused operator over the
sequence.

    from lsnn_ext.se_adlif import SEAdLIF    # in place of from models.alif import SEAdLIF

Arguments, defaults, parameters and initialisation are those of IGITUGraz/SE-adlif. Its EFAdLIF is
not here: its adaptation comes a step later than any row of ours has it.

Source: Baronig et al., Nature Communications 16, 5776 (2025).
"""
import math
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from ._original import Original, Shape, measured

__all__ = ["SEAdLIF"]


class _Tau(nn.Module):
    """A time constant for each neuron: weight itself, or, trained, its place from tau_min to
    tau_max."""

    def __init__(self, size: int, limits: tuple[float, float], method: str, device: Any,
                 dtype: Any) -> None:
        super().__init__()
        if method not in ("fixed", "interpolation"):
            raise ValueError(f"train_tau_u_method, train_tau_w_method: expected 'fixed' or "
                             f"'interpolation', got {method!r}")
        self.learns, self.dt = method == "interpolation", 1.0
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype),
                                   requires_grad=self.learns)
        self.tau_max: Tensor
        self.tau_min: Tensor
        for name, value in zip(("tau_min", "tau_max"), limits, strict=True):
            self.register_buffer(name, torch.tensor(value, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Uniform, from tau_min to tau_max or from 0 to 1."""
        low, high = (0.0, 1.0) if self.learns else (float(self.tau_min), float(self.tau_max))
        nn.init.uniform_(self.weight, low, high)

    def apply_parameter_constraints(self) -> None:
        """What is trained goes back to 0 .. 1."""
        if self.learns:
            with torch.no_grad():
                self.weight.clamp_(0.0, 1.0)

    def get_tau(self) -> Tensor:
        """(N,) in steps."""
        w = self.weight
        return w * self.tau_max + (1.0 - w) * self.tau_min if self.learns else w

    def get_decay(self) -> Tensor:
        """Of a step."""
        return torch.exp(-self.dt / self.get_tau())


class SEAdLIF(Original):
    """SEAdLIF of Baronig et al.: input and recurrent weights inside, batch first.

    Args:
        in_features, out_features: features of the input, I, and neurons, N.
        thr: threshold.
        alpha, c: steepness and height of the surrogate, c alpha / 2 exp(-alpha |u|).
        tau_u_range, tau_w_range: of the time constants of membrane and adaptation, in steps.
        train_tau_u_method, train_tau_w_method: "fixed" or "interpolation".
        use_recurrent: False: no recurrent weights.
        a_range, b_range: of the couplings of membrane and spikes into the adaptation; also what
            apply_parameter_constraints clamps to.
        q: gain of both.

    Parameters: weight (N, I), bias (N,), recurrent (N, N) with the target neuron first, a, b (N,),
    tau_u_trainer.weight, tau_w_trainer.weight.
    """

    original = "models.alif.SEAdLIF"

    def __init__(self, in_features: int, out_features: int, thr: float = 1.0, alpha: float = 5.0,
                 c: float = 0.4, tau_u_range: tuple[float, float] = (20, 20),
                 train_tau_u_method: str = "fixed", tau_w_range: tuple[float, float] = (20, 200),
                 train_tau_w_method: str = "fixed", use_recurrent: bool = True,
                 a_range: tuple[float, float] = (0.0, 1.0),
                 b_range: tuple[float, float] = (0.0, 2.0), q: float = 60.0, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.thr = in_features, out_features, thr
        self.alpha, self.c, self.q, self.use_recurrent = alpha, c, q, use_recurrent
        self.tau_u_range, self.tau_w_range = tau_u_range, tau_w_range
        self.a_range, self.b_range = a_range, b_range
        self.tau_u_trainer: Any = _Tau(out_features, tau_u_range, train_tau_u_method, device, dtype)
        self.tau_w_trainer: Any = _Tau(out_features, tau_w_range, train_tau_w_method, device, dtype)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight, self.bias = empty(out_features, in_features), empty(out_features)
        self.recurrent: Tensor | None
        if use_recurrent:
            self.recurrent = empty(out_features, out_features)
        else:
            self.register_buffer("recurrent", None)
        self.a, self.b = empty(out_features), empty(out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As there, in the same order."""
        self.tau_u_trainer.reset_parameters()
        self.tau_w_trainer.reset_parameters()
        bound = math.sqrt(1 / self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)
        if self.recurrent is not None:
            nn.init.orthogonal_(self.recurrent, gain=1.0)
        nn.init.uniform_(self.a, *self.a_range)
        nn.init.uniform_(self.b, *self.b_range)

    def apply_parameter_constraints(self) -> None:
        """Clamps a, b and what is trained of the time constants; call it after optimizer.step()."""
        self.tau_u_trainer.apply_parameter_constraints()
        self.tau_w_trainer.apply_parameter_constraints()
        with torch.no_grad():
            self.a.clamp_(*self.a_range)
            self.b.clamp_(*self.b_range)

    def _adopt(self, module: Any) -> None:
        for key in ("in_features", "out_features", "thr", "alpha", "c", "q", "use_recurrent",
                    "tau_u_range", "tau_w_range", "a_range", "b_range", "tau_u_trainer",
                    "tau_w_trainer", "weight", "bias", "a", "b"):
            setattr(self, key, getattr(module, key))
        self.recurrent = module.recurrent
        slayer = type(module).forward.__globals__["SLAYER"]

        def spike(u: Tensor) -> Tensor:
            derivative: Tensor = slayer(u, self.alpha, self.c).detach()
            return (u > 0).to(u.dtype) + (u - u.detach()) * derivative

        measured(self._shape(), spike, type(self).__name__, "SLAYER")

    def _shape(self) -> Shape:
        return Shape("exponential", self.c / 2, 1 / self.alpha)

    def extra_repr(self) -> str:
        """What is not a parameter."""
        return (f"{self.in_features}, {self.out_features}, thr={self.thr}, q={self.q}, "
                f"use_recurrent={self.use_recurrent}")

    def forward(self, input_tensor: Tensor, *, with_states: bool = True,
                ) -> tuple[Tensor, Tensor | None]:
        """A whole sequence, from states of 0.

        Args:
            input_tensor: (B, T, I).
            with_states: False: no states, which saves their time and memory.

        Returns:
            spikes (B, T, N), and the states (3, B, T + 1, N): membrane, spikes and adaptation, the
            first ones included; or None.

        Raises:
            TypeError, ValueError: as functional.alif.
        """
        if input_tensor.dim() != 3 or not input_tensor.shape[1]:
            raise ValueError(f"input_tensor: expected shape (B, T, I) with T >= 1, got "
                             f"{tuple(input_tensor.shape)}")
        rho = self.tau_w_trainer.get_decay()
        gain = (1.0 - rho) * self.q
        p, q = gain * self.a, gain * self.b
        w_rec = None if self.recurrent is None else self.recurrent.t()
        out = functional.layer(
            input_tensor.transpose(0, 1).contiguous(), self.weight, w_rec, bias=self.bias,
            alpha=self.tau_u_trainer.get_decay(), rho=rho, p=p, q=q, theta=self.thr,
            dynamics="se_adlif", trace=with_states, **self._shape()._asdict())
        spikes = out.spikes
        assert spikes is not None
        batch_first = spikes.transpose(0, 1)
        if out.traces is None:
            return batch_first, None
        # the operator's adaptation is that of the step before: the last one is still to come
        u, w, zero = out.traces.v, out.traces.a, torch.zeros_like(spikes[:1])
        last = rho * w[-1] + p * u[-1] + q * spikes[-1]
        states = torch.stack([torch.cat([zero, u]), torch.cat([zero, spikes]),
                              torch.cat([zero, w[1:], last[None]])])
        return batch_first, states.transpose(1, 2)
