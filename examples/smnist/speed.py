"""How fast the layer is here: against a plain loop of the same equations, and against nn.LSTM of
the same size."""
import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

import lsnn_ext


class Spike(torch.autograd.Function):
    """The step function with the paper's triangle as its derivative."""

    @staticmethod
    def forward(ctx, m: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(m)
        return (m > 0).to(m.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (m,) = ctx.saved_tensors
        return gradient * 0.3 * torch.relu(1 - m.abs())


def plain_loop(x: Tensor, layer: lsnn_ext.ALIF) -> Tensor:
    """What one writes without the package: the equations of the paper, step by step; x (T, B, I)
    gives spikes."""
    alpha, rho = torch.exp(-1 / layer.tau_mem_l0), torch.exp(-1 / layer.tau_adapt_l0)
    w_rec = layer.weight_hh_l0.t().masked_fill(torch.eye(layer.hidden_size, dtype=torch.bool), 0.0)
    current = x @ layer.weight_ih_l0.t()
    v = a = r = z = torch.zeros_like(current[0])
    spikes = []
    for x_t in current:
        i = x_t + z @ w_rec
        a = rho * a + (1 - rho) * z
        threshold = layer.threshold_l0 + layer.beta_l0 * a
        fired = torch.where(r > 0, torch.zeros_like(v), Spike.apply((v - threshold) / threshold))
        v = alpha * v + (1 - alpha) * i - z * threshold
        z = fired
        r = torch.where(z > 0, torch.full_like(r, layer.refractory), torch.clamp(r - 1, min=0))
        spikes.append(z)
    return torch.stack(spikes)


class Speed(NamedTuple):
    """Seconds of one forward and backward pass, medians."""

    layer: float
    loop: float
    lstm: float
    equal: float  # share of neuron-steps in which layer and loop agree


def measure(T: int = 840, B: int = 64, inputs: int = 80, N: int = 220,
            repetitions: int = 3) -> Speed:
    """Alternates the three and takes the median, so that a slow moment of the machine hits all
    alike."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(T, B, inputs, generator=generator) < 0.03).float()
    beta = torch.cat([torch.zeros(N - N // 2), torch.full((N // 2,), 1.8)])
    layer = lsnn_ext.ALIF(inputs, N, bias=False, tau_adapt=700.0, beta=beta, refractory=5)
    lstm = nn.LSTM(inputs, N)
    # multiples of 2^-10: sums are then exact in any order, and the spikes comparable
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(
                (
                    torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5 * 1024
                ).round()
                / 1024
            )
    gradient = torch.randn(T, B, N, generator=generator)
    kinds: dict[str, Callable[[], Tensor]] = {
        "layer": lambda: layer(x)[0], "loop": lambda: plain_loop(x, layer),
        "lstm": lambda: lstm(x)[0]}
    equal = float((layer(x)[0] == plain_loop(x, layer)).float().mean())
    lstm(x[:2])
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repetitions):
        for name, run in kinds.items():
            start = time.perf_counter()
            run().backward(gradient)
            seconds[name].append(time.perf_counter() - start)
    return Speed(*(median(seconds[name]) for name in kinds), equal)


def report(speed: Speed, T: int = 840, B: int = 64, inputs: int = 80, N: int = 220) -> str:
    """The figures in words."""
    threads = torch.get_num_threads()
    return (f"speed, forward and backward of {T} steps, batch {B}, {inputs} inputs, {N} neurons, "
            f"float32, {threads} thread{'s' if threads > 1 else ''}:\n"
            f"  lsnn_ext   {speed.layer * 1e3:8.0f} ms\n"
            f"  plain loop {speed.loop * 1e3:8.0f} ms   {speed.loop / speed.layer:5.1f} times the "
            f"time of lsnn_ext; {100 * speed.equal:.4g} % of the spikes equal\n"
            f"  nn.LSTM    {speed.lstm * 1e3:8.0f} ms   {speed.lstm / speed.layer:5.1f} times the "
            f"time of lsnn_ext")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=840)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--inputs", type=int, default=80)
    parser.add_argument("--neurons", type=int, default=220)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    sizes = (given.steps, given.batch, given.inputs, given.neurons)
    print(report(measure(*sizes, given.repetitions), *sizes))


if __name__ == "__main__":
    main()
