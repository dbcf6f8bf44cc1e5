"""What one call costs a control loop: one step, one item, no gradients.

    python -m bench.latency                        # 100, 220, 512 and 1024 neurons, one thread
    python -m bench.latency --neurons 220 --ticks 20000

At each tick every contestant takes one step, one after the other, so that other load on the machine
slows all of them, and each finds the caches as the others left them. The loop by hand and LSTMCell
need no lsnn_ext; the weights of the loop are those of the layer. Shown are the median and the 99th
percentile of the microseconds of a call; 5 % of the inputs are spikes.
"""
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.arguments import at_least_one, make_parser
from bench.problem import ALPHA, BETA, RHO, THETA
from lsnn_ext import ALIF, LIF, LSNN

INPUTS = {100: 20, 220: 80, 512: 80, 1024: 80}
Tick = Callable[[Tensor], object]


def _ours(layer: ALIF | LIF | LSNN) -> Tick:
    state: Any = None

    def tick(x: Tensor) -> object:
        nonlocal state
        out, state = layer.step(x, state)
        return out

    return tick


def _by_hand(layer: ALIF) -> Tick:
    """The paper's neuron, without refractory period, delay and options."""
    weights = dict(layer.named_parameters())
    w_in, bias = weights["weight_ih_l0"], weights["bias_ih_l0"]
    w_rec = weights["weight_hh_l0"].t().clone().fill_diagonal_(0)
    v = a = z = torch.zeros(1, layer.hidden_size)

    def tick(x: Tensor) -> object:
        nonlocal v, a, z
        current = nn.functional.linear(x, w_in, bias) + z @ w_rec
        a = RHO * a + (1 - RHO) * z
        A = THETA + BETA * a
        fired = ((v - A) / A > 0).to(v.dtype)
        v = ALPHA * v + (1 - ALPHA) * current - z * A
        z = fired
        return z

    return tick


def _lstm(inputs: int, neurons: int) -> Tick:
    cell, state = nn.LSTMCell(inputs, neurons), None

    def tick(x: Tensor) -> object:
        nonlocal state
        state = cell(x, state)
        return state[0]

    return tick


def contestants(inputs: int, neurons: int) -> dict[str, Tick]:
    """All contestants, with fresh weights and state."""
    torch.manual_seed(0)
    layer = ALIF(inputs, neurons)
    return {
        "ALIF.step": _ours(layer),
        "LIF.step": _ours(LIF(inputs, neurons)),
        "LSNN.step, 10 readouts": _ours(LSNN(inputs, neurons // 2, neurons - neurons // 2, 10)),
        "ALIF by hand": _by_hand(layer),
        "nn.LSTMCell": _lstm(inputs, neurons),
    }


def measure(inputs: int, neurons: int, ticks: int) -> dict[str, list[float]]:
    """Microseconds of every call, in ascending order, the first hundred ticks left out."""
    ready = contestants(inputs, neurons)
    times: dict[str, list[float]] = {name: [] for name in ready}
    xs = (torch.rand(256, 1, inputs) < 0.05).float()
    for number in range(-100, ticks):
        for name, tick in ready.items():
            start = time.perf_counter_ns()
            tick(xs[number % 256])
            if number >= 0:
                times[name].append((time.perf_counter_ns() - start) / 1000)
    return {name: sorted(values) for name, values in times.items()}


def main(given: list[str] | None = None) -> None:
    parser = make_parser("bench.latency", __doc__)
    parser.add_argument("--neurons", type=at_least_one, nargs="+", default=list(INPUTS))
    parser.add_argument("--ticks", type=at_least_one, default=3000)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, {arguments.ticks} ticks; "
          "in microseconds")
    for neurons in arguments.neurons:
        inputs = INPUTS.get(neurons, 80)
        with torch.no_grad():
            times = measure(inputs, neurons, arguments.ticks)
        print(f"\nN = {neurons}, I = {inputs}".ljust(32) + "median       p99")
        for name, values in times.items():
            print(f"  {name:28s}{values[len(values) // 2]:8.1f}  "
                  f"{values[len(values) * 99 // 100]:8.1f}")


if __name__ == "__main__":
    main()
