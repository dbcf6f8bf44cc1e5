"""Coefficients of the equations: numbers, tensors, and the defaults of a model."""
from typing import NamedTuple, TypeAlias

from torch import Tensor

from ..models import find_model

Coefficient: TypeAlias = float | Tensor


class Decay(NamedTuple):
    """A decay over a step, exp(-dt / tau), which the CUDA kernels compute."""

    tau: Tensor  # (), (1,) or (N,)
    dt: float

    def value(self) -> Tensor:
        return (-self.dt / self.tau).exp()


def complete_coefficients(
    dynamics: str, *, alpha: Coefficient, theta: Coefficient, rho: Coefficient | None = None,
    beta: Coefficient | None = None, kappa: Coefficient | None = None, q: Coefficient | None = None,
    p: Coefficient | None = None, eta: Coefficient | None = None, sigma: Coefficient | None = None,
    width: Coefficient | None = None, R: Coefficient | None = None) -> dict[str, Coefficient]:
    """All COEFFICIENTS by name, differentiable; None: the default of the model."""
    model = find_model(dynamics)
    rules: dict[str, Coefficient] = {"0": 0.0, "theta": theta, "alpha": alpha, "unused": 0.0}
    rho = 0.0 if rho is None else rho
    if kappa is None:
        kappa = 1 - alpha if model.kappa == "1-alpha" else 1.0
    if q is None:
        q = 1 - rho if model.q == "1-rho" else 1.0
    return {"alpha": alpha, "kappa": kappa, "rho": rho, "q": q, "p": 0.0 if p is None else p,
            "beta": rules[model.beta] if beta is None else beta,
            "eta": model.eta if eta is None else eta, "theta": theta,
            "sigma": 0.0 if sigma is None else sigma,
            "width": (theta if model.width is None else model.width) if width is None else width,
            "R": rules[model.R] if R is None else R}
