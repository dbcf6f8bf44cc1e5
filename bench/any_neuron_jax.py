"""The published neurons of bench.any_neuron under jax.lax.scan, jitted with their gradients."""
import importlib
import math
from collections.abc import Callable
from typing import Any

from bench.any_neuron import Layer
from bench.contestants import JaxContestant, jax_spike


def _steps(jax: Any) -> dict[str, Callable[..., tuple[Any, ...]]]:
    """By the name of the zoo, the equations in jax.numpy."""
    jnp = jax.numpy

    def normal(m: Any, mean: float, sigma: float) -> Any:
        return jnp.exp(-((m - mean) ** 2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)

    double = jax_spike(
        lambda m: m > 0, lambda m: 0.5 * (1.15 * normal(m, 0.0, 0.5) - 0.3 * normal(m, 0.0, 3.0)))
    multi = jax_spike(lambda m: m > 0, lambda m: 0.5 * (
        1.15 * normal(m, 0.0, 0.5) - 0.15 * (normal(m, 0.5, 3.0) + normal(m, -0.5, 3.0))))
    triangle = jax_spike(lambda m: m >= 0, lambda m: jnp.maximum(1 - abs(m), 0))

    def rf(c: Any, u: Any, v: Any, z: Any, *, omega: Any, b_offset: Any, theta: Any,
           dt: float) -> tuple[Any, ...]:
        u, v = (u - b_offset * u * dt - omega * v * dt + c * dt,
                v + omega * u * dt - b_offset * v * dt)
        return u, v, double(u - theta)

    def tc_lif(c: Any, dendrite: Any, soma: Any, z: Any, *, beta1: Any, beta2: Any, gamma: Any,
               theta: Any) -> tuple[Any, ...]:
        dendrite = dendrite + beta1 * soma + c
        soma = soma + beta2 * dendrite
        z = triangle(soma - theta)
        return dendrite - gamma * z, soma - theta * z, z

    def dh_srnn(c1: Any, c2: Any, d1: Any, d2: Any, v: Any, z: Any, *, alpha: Any, beta1: Any,
                beta2: Any, theta: Any) -> tuple[Any, ...]:
        d1, d2 = beta1 * d1 + (1 - beta1) * c1, beta2 * d2 + (1 - beta2) * c2
        v = alpha * v + (1 - alpha) * (d1 + d2) - theta * z
        return d1, d2, v, multi(v - theta)

    return {"rf": rf, "tc_lif": tc_lif, "dh_srnn": dh_srnn}


def scan(name: str, layer: Layer) -> JaxContestant:
    """A layer of bench.any_neuron with the numbers of its parameters."""
    jax = importlib.import_module("jax")
    kind = layer.kind
    step = _steps(jax)[kind.neuron.step.__module__.rpartition(".")[2]]
    K, S, fixed = kind.currents, kind.states, layer.fixed

    def spikes(parameters: Any, x: Any) -> Any:
        learned = {**parameters}
        w_in, w_rec = learned.pop("w_in"), learned.pop("w_rec")
        N = w_rec.shape[-1]
        flat = w_rec.transpose(1, 0, 2).reshape(N, K * N)

        def one(carry: Any, c: Any) -> Any:
            *states, z = carry
            currents = jax.numpy.split(c + z @ flat, K, axis=1)
            now = step(*currents, *states, z, **learned, **fixed)
            return now, now[-1]

        zero = jax.numpy.zeros((x.shape[1], N), x.dtype)
        return jax.lax.scan(one, (zero,) * (S + 1), x @ w_in.reshape(K * N, -1).T)[1]

    return JaxContestant(name, spikes, layer.parameters, layer.x, layer.cotangent)
