"""The neurons of the zoo once more, written from the papers and their authors' code: loops over
time, in complex numbers, matrices or differences where the zoo has none, each with its own spikes.

Each is a function of currents (T, K, B, N), recurrent weights (K, N, N) and coefficients, and
returns spikes (T, B, N) and the states after the last step.
"""
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsnn_ext import zoo
from lsnn_ext.codegen.neuron import Parts

Slope = Callable[[Tensor], Tensor]
Loop = Callable[..., tuple[Tensor, list[Tensor]]]


def _fire(m: Tensor, slope: Slope, at_zero: float = 0.0) -> Tensor:
    """A step function whose gradient is injected: the value of the second term is 0."""
    hard = torch.heaviside(m.detach(), m.new_tensor(at_zero))
    return hard + (m - m.detach()) * slope(m.detach())


def _gauss(m: Tensor, mean: float, sigma: float) -> Tensor:
    exact = m.new_tensor([mean, sigma])  # float32 else
    return torch.distributions.Normal(*exact).log_prob(m).exp()


def _double_gaussian(m: Tensor) -> Tensor:
    return 0.575 * _gauss(m, 0.0, 0.5) - 0.15 * _gauss(m, 0.0, 3.0)


def _multi_gaussian(m: Tensor) -> Tensor:
    return (0.575 * _gauss(m, 0.0, 0.5) - 0.075 * _gauss(m, 0.5, 3.0)
            - 0.075 * _gauss(m, -0.5, 3.0))


def _triangle(m: Tensor) -> Tensor:
    return torch.clamp(1 - m.abs(), min=0)


def _boxcar(m: Tensor) -> Tensor:
    return torch.where(m <= -0.5, 0.0, torch.where(m > 0.5, 0.0, 1.0)).to(m)


def _slayer(m: Tensor) -> Tensor:
    return 0.4 * 5 / (2 * torch.exp(m.abs() * 5))


def _super_spike(m: Tensor) -> Tensor:
    return (100 * m.abs() + 1).pow(-2)


def _run(x: Tensor, w: Tensor, states: list[Tensor],
         one: Callable[..., tuple[Tensor, list[Tensor]]]) -> tuple[Tensor, list[Tensor]]:
    z = torch.zeros_like(x[0, 0])
    spikes = []
    for now in x:
        z, states = one(list(now + z @ w), z, *states)
        spikes.append(z)
    return torch.stack(spikes), states


def _zeros(x: Tensor, count: int) -> list[Tensor]:
    return [torch.zeros_like(x[0, 0]) for _ in range(count)]


def rf(x: Tensor, w: Tensor, *, omega: Tensor, b_offset: Tensor,
       theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    turn = 1 + 0.01 * torch.complex(-b_offset, omega)

    def one(c: Any, z: Tensor, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        u = turn * u + 0.01 * c[0]
        return _fire(u.real - theta, _double_gaussian), [u]

    spikes, (u,) = _run(x, w, [torch.complex(*_zeros(x, 2))], one)
    return spikes, [u.real, u.imag]


def brf(x: Tensor, w: Tensor, *, omega: Tensor, b_offset: Tensor, theta: Tensor,
        gamma: Tensor) -> tuple[Tensor, list[Tensor]]:
    """With the paper's q, which counts the spike of the step before."""
    boundary = (-1 + torch.sqrt(1 - torch.square(0.01 * omega))) / 0.01

    def one(c: Any, z: Tensor, u: Tensor, q: Tensor) -> tuple[Tensor, list[Tensor]]:
        q = gamma * q + z
        u = u + 0.01 * (torch.complex(boundary - b_offset - q, omega) * u + c[0])
        return _fire(u.real - (theta + q), _double_gaussian), [u, q]

    spikes, (u, q) = _run(x, w, [torch.complex(*_zeros(x, 2)), *_zeros(x, 1)], one)
    return spikes, [u.real, u.imag, gamma * q + spikes[-1]]


def tc_lif(x: Tensor, w: Tensor, *, beta1: Tensor, beta2: Tensor, gamma: Tensor,
           theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    """With membranes before the reset as states."""
    def one(c: Any, z: Tensor, dendrite: Tensor, soma: Tensor) -> tuple[Tensor, list[Tensor]]:
        dendrite, soma = dendrite - gamma * z, soma - theta * z
        dendrite = c[0] + (dendrite - beta1.neg() * soma)
        soma = torch.addcmul(soma, beta2, dendrite)
        return _fire(soma - theta, _triangle, 1.0), [dendrite, soma]

    spikes, (dendrite, soma) = _run(x, w, _zeros(x, 2), one)
    return spikes, [dendrite - gamma * spikes[-1], soma - theta * spikes[-1]]


def dh_srnn(x: Tensor, w: Tensor, *, alpha: Tensor, beta1: Tensor, beta2: Tensor,
            theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    """With the branches as an axis of their own."""
    beta = torch.stack([beta1, beta2])[:, None]

    def one(c: Any, z: Tensor, d: Tensor, v: Tensor) -> tuple[Tensor, list[Tensor]]:
        now = torch.stack(c)
        d = now + beta * (d - now)
        v = torch.lerp(d.sum(0), v, alpha.expand_as(v)) - theta * z
        return _fire(v - theta, _multi_gaussian), [d, v]

    spikes, (d, v) = _run(x, w, [torch.zeros_like(x[0]), *_zeros(x, 1)], one)
    return spikes, [*d, v]


def silif(x: Tensor, w: Tensor, *, alpha: Tensor, beta: Tensor, a: Tensor, b: Tensor,
          theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    def one(c: Any, z: Tensor, u: Tensor, adaptation: Tensor) -> tuple[Tensor, list[Tensor]]:
        adaptation = a * u + (b * z + beta * adaptation)
        drive = c[0] - adaptation
        u = drive + alpha * (u - z - drive)
        return _fire(u - theta, _boxcar), [u, adaptation]

    return _run(x, w, _zeros(x, 2), one)


def c_silif(x: Tensor, w: Tensor, *, alpha_real: Tensor, alpha_imag: Tensor, b: Tensor,
            theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    alpha = torch.complex(alpha_real, alpha_imag)

    def one(c: Any, z: Tensor, u: Tensor) -> tuple[Tensor, list[Tensor]]:
        u = alpha * (u - 0.5 * z) + b * c[0]
        return _fire(u.real + u.real - theta, _boxcar), [u]

    spikes, (u,) = _run(x, w, [torch.complex(*_zeros(x, 2))], one)
    return spikes, [u.real, u.imag]


def ef_adlif(x: Tensor, w: Tensor, *, alpha: Tensor, beta: Tensor, a: Tensor, b: Tensor, q: Tensor,
             theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    def one(c: Any, z: Tensor, u: Tensor, adaptation: Tensor) -> tuple[Tensor, list[Tensor]]:
        goal = q * (a * u + b * z)
        drive = c[0] - adaptation
        u = drive + alpha * (u - drive)
        z = _fire(u - theta, _slayer)
        u = torch.where(z.detach() > 0, torch.zeros_like(u), u)
        return z, [u, goal + beta * (adaptation - goal)]

    return _run(x, w, _zeros(x, 2), one)


def lif_two_synapses(x: Tensor, w: Tensor, *, alpha: Tensor, beta1: Tensor, beta2: Tensor,
                     theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    """With the membrane before the reset as state; the gradient of the threshold by hand."""
    def one(c: Any, z: Tensor, i1: Tensor, i2: Tensor, v: Tensor) -> tuple[Tensor, list[Tensor]]:
        i1, i2 = beta1 * i1 + beta1 * c[0], beta2 * i2 + beta2 * c[1]
        v = i2 + (i1 + alpha * (v - theta * z))
        excess = v.detach() - theta.detach()
        active = (v.detach() >= 0.5 * theta.detach()).to(v)
        slope_theta = -v.detach() / theta.detach() ** 2
        z = ((excess >= 0).to(v) + active * (v - v.detach()) / theta.detach()
             + active * slope_theta * (theta - theta.detach()))
        return z, [i1, i2, v]

    spikes, (i1, i2, v) = _run(x, w, _zeros(x, 3), one)
    return spikes, [i1, i2, v - theta * spikes[-1]]


def alif_two_synapses(x: Tensor, w: Tensor, *, rate_mem: Tensor, rate_syn1: Tensor,
                      rate_syn2: Tensor, rate_adapt: Tensor, beta: Tensor,
                      theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    """With the threshold itself as state, which begins at theta."""
    def one(c: Any, z: Tensor, i1: Tensor, i2: Tensor, v: Tensor,
            threshold: Tensor) -> tuple[Tensor, list[Tensor]]:
        v = (1 - rate_mem) * v + rate_mem * (i1 + i2)
        threshold = rate_adapt * theta + (1 - rate_adapt) * threshold
        z = _fire(v - threshold, _super_spike)
        fired = z.detach() > 0
        return z, [(1 - rate_syn1) * i1 + c[0], (1 - rate_syn2) * i2 + c[1],
                   v.masked_fill(fired, 0), torch.where(fired, threshold + beta, threshold)]

    spikes, (i1, i2, v, threshold) = _run(x, w, [*_zeros(x, 3), theta.expand_as(x[0, 0])], one)
    return spikes, [i1, i2, v, threshold - theta]


def alif_at_once(x: Tensor, w: Tensor, *, alpha: Tensor, rho: Tensor, beta: Tensor,
                 theta: Tensor) -> tuple[Tensor, list[Tensor]]:
    """With the threshold and the membrane before the reset as states."""
    def one(c: Any, z: Tensor, u: Tensor, threshold: Tensor) -> tuple[Tensor, list[Tensor]]:
        u = c[0] + alpha * (u - z * threshold - c[0])
        threshold = theta + rho * (threshold - theta) + (1 - rho) * beta * z
        return _fire(u - threshold, _double_gaussian), [u, threshold]

    spikes, (u, threshold) = _run(x, w, [*_zeros(x, 1), theta.expand_as(x[0, 0])], one)
    return spikes, [u - threshold * spikes[-1], (threshold - theta) / beta]


LOOPS: dict[str, Loop] = {
    "rf": rf, "brf": brf, "tc_lif": tc_lif, "dh_srnn": dh_srnn, "silif": silif, "c_silif": c_silif,
    "ef_adlif": ef_adlif, "lif_two_synapses": lif_two_synapses,
    "alif_two_synapses": alif_two_synapses, "alif_at_once": alif_at_once}

# Numbers of the authors' code; of a range the centre, of a logarithmic one the geometric mean.
_LOG_DT = 0.5 * (math.log(0.01) + math.log(0.5))
DEFAULTS: dict[str, dict[str, float]] = {
    "rf": {"omega": 10, "b_offset": 1, "theta": 1, "dt": 0.01},
    "brf": {"omega": 10, "b_offset": 1, "theta": 1, "gamma": 0.9, "dt": 0.01},
    "tc_lif": {"beta1": -0.5, "beta2": 0.5, "gamma": 0.5, "theta": 1},
    "dh_srnn": {"alpha": 0.8807970779778823, "beta1": 0.9820137900379085,
                "beta2": 0.9820137900379085, "theta": 1},
    "silif": {"alpha": math.exp(-math.sqrt(10 * 250) * 0.004),
              "beta": math.exp(-math.sqrt(2.5 * 10) * 0.004), "a": 0.5, "b": 1, "theta": 1},
    "c_silif": {"alpha_real": math.exp(-0.5 * math.exp(_LOG_DT)) * math.cos(
        math.pi * math.exp(_LOG_DT)), "alpha_imag": math.exp(-0.5 * math.exp(_LOG_DT)) * math.sin(
            math.pi * math.exp(_LOG_DT)), "b": 0.5, "theta": 1},
    "ef_adlif": {"alpha": math.exp(-1 / ((5 + 25) / 2)), "beta": math.exp(-1 / ((60 + 300) / 2)),
                 "a": 0.5, "b": 1, "q": 60, "theta": 1},
    "lif_two_synapses": {"alpha": math.exp(-1e-3 / 20e-3), "beta1": math.exp(-1e-3 / 20e-3),
                         "beta2": math.exp(-1e-3 / 20e-3), "theta": 1},
    "alif_two_synapses": {"rate_mem": 1e-3 / 1e-2, "rate_syn1": 1e-3 / 5e-3,
                          "rate_syn2": 1e-3 / 5e-3, "rate_adapt": 1e-3 / 800, "beta": 1.8,
                          "theta": 1},
    "alif_at_once": {"alpha": math.exp(-1 / 20), "rho": math.exp(-1 / 20), "beta": 1.8,
                     "theta": 0.01}}


# ------------------------------------------------------------------------------------------ calls
T, B, N = 40, 3, 13
# mean and standard deviation of the currents, and standard deviation of the sums of weights
DRIVE = {"rf": (10, 60, 30), "brf": (10, 60, 30), "tc_lif": (0.2, 0.4, 0.3),
         "dh_srnn": (3, 8, 3), "silif": (1.5, 3, 1), "c_silif": (0.2, 0.8, 0.3),
         "ef_adlif": (2, 5, 2), "lif_two_synapses": (0.03, 0.1, 0.1),
         "alif_two_synapses": (0.4, 1, 0.5), "alif_at_once": (0.05, 0.2, 0.1)}


def zoo_coefficients(name: str) -> dict[str, Any]:
    """The defaults of a neuron."""
    parameters = inspect.signature(zoo.NEURONS[name].step).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def parts_of(name: str) -> Parts:
    """The names of the currents and states of a neuron."""
    neuron = zoo.NEURONS[name].neuron
    return neuron.parts_of(neuron.coefficients, torch.zeros(()), 1)


def count_currents(name: str) -> int:
    """K of a neuron."""
    return len(parts_of(name).currents)


def draw_call(name: str, seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Currents (T, B, K, N), weights (K, N, N), coefficients (N,) near their defaults."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    mean, deviation, recurrent = DRIVE[name]
    K = count_currents(name)
    x = mean + deviation * draw(T, B, K, N)
    w = recurrent / N**0.5 * draw(K, N, N)
    values = {key: value * (1 + 0.02 * draw(N).clamp(-2, 2))
              for key, value in zoo_coefficients(name).items() if key != "dt"}
    for key in ("alpha", "beta1", "beta2") if name != "tc_lif" else ():
        if key in values:
            values[key] = values[key].clamp(max=0.99)
    return x, w, values
