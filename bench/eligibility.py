"""E-prop by its definition: eligibility traces forward in time, times learning signals.

Written from the paper, and not by the kernels or the table of equations, so that it can judge them:
python_tests/equations/test_eprop.py compares, bench/eprop.py also times.
"""
import torch
from torch import Tensor

from lsnn_ext.models import MODELS

Gradients = dict[str, Tensor]
Found = tuple[Tensor, Gradients]  # spikes (T, B, N) and gradients


def sum_traces(x: Tensor, w_in: Tensor, w_rec: Tensor, w_out: Tensor, target: Tensor, *,
              alpha: float, theta: float, rho: float, beta: Tensor, k: float, refractory: int = 0,
              dampening: float = 0.3, dynamics: str = "eprop_elig", feedback: Tensor | None = None,
              local: Tensor | None = None, learn: bool = True) -> Found:
    """Returns spikes, and the gradients of half the summed squared error by e-prop.

    Args:
        x: inputs (T, B, I).
        w_in: (N, I).
        w_rec: (N, N), from and to; the diagonal is not used.
        w_out: (O, N).
        target: (T, B, O).
        alpha, theta, rho, beta, refractory, dampening: as of functional.alif; beta (N,).
        k: decay of the readout.
        dynamics: of the table of models; its variant *_stop has the same spikes.
        feedback: weights (O, N) of the learning signal. Default w_out.
        local: (T, B, N) a learning signal of each step that the readout does not filter.
        learn: False computes the spikes only.

    Source: Bellec et al., Nature Communications 2020, equation (1) with the learning signal (4)
    and, for `eprop_elig`, the trace (25).
    """
    model = MODELS[dynamics]
    kappa = 1 - alpha if model.kappa == "1-alpha" else 1.0
    q = 1 - rho if model.q == "1-rho" else 1.0
    feedback = w_out if feedback is None else feedback
    B, N, O = x.shape[1], len(w_rec), len(w_out)
    weights = torch.cat([w_in.T, w_rec * (1 - torch.eye(N).to(w_rec))])  # (I + N, N)
    v = a = z = r = left = x.new_zeros(B, N)  # left: of the trace of spikes
    over, y = z, x.new_zeros(B, O)
    dv = da = dv_free = da_free = z  # derivatives of a spike; free: whether refractory or not
    eps_v, eps_a = x.new_zeros(B, 1, len(weights)), x.new_zeros(B, N, len(weights))
    filtered, rest = torch.zeros_like(eps_a), 1 - k
    g, g_out, spikes = x.new_zeros(N, len(weights)), torch.zeros_like(w_out), []
    for t, x_t in enumerate(x):
        pre = torch.cat([x_t, z], 1)
        crosses = model.drive == "cross"
        a = rho * a + q * (over if crosses else z)
        v = alpha * v + kappa * (pre @ weights) - z * theta
        A = theta + beta * a
        s = A if model.scale == "A" else torch.full_like(A, theta)
        m = (v - A) / s
        over, free = (m > 0).to(v), r == 0
        z = over * free
        r = torch.where(z > 0, refractory, (r - 1).clamp(min=0))
        spikes.append(z)
        if not learn:
            continue
        d_v, d_a = (dv_free, da_free) if crosses else (dv, da)
        # eligibility vector of (v, a): its last value by the derivatives of this step, then z'
        eps_a = rho * eps_a + q * (d_v[..., None] * eps_v + d_a[..., None] * eps_a)
        eps_v = alpha * eps_v + kappa * pre[:, None]
        # derivatives of the spike, and the trace
        slope = dampening * torch.relu(1 - m.abs()) / s
        dv_free, da_free = slope, -beta * slope * (1 + m if model.scale == "A" else 1)
        dv, da = dv_free * free, da_free * free
        e = dv[..., None] * eps_v + da[..., None] * eps_a
        filtered = k * filtered + rest * e
        left = k * left + rest * z
        y = k * y + rest * (z @ w_out.T)
        error = y - target[t]
        g += torch.einsum("bn,bni->ni", error @ feedback, filtered)
        g_out += error.T @ left
        if local is not None:
            g += torch.einsum("bn,bni->ni", local[t], e)
    if not learn:
        return torch.stack(spikes), {}
    I = w_in.shape[1]
    g_rec = g[:, I:].T.clone().fill_diagonal_(0)
    return torch.stack(spikes), {"w_in": g[:, :I], "w_rec": g_rec, "w_out": g_out}
