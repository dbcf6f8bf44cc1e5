"""What lsnn_ext.profile returns: the numbers and the report."""
from collections.abc import Sequence
from dataclasses import dataclass, field

# The phases of a pass in the order of the report. Their seconds in the kernels are those of all
# threads, divided by the number of threads, so that all phases together are the time of the pass.
FORWARD = {
    "products": "products and readouts outside",
    "projection": "projection of inputs",
    "sums": "events and sums of weights",
    "step": "step of the neurons",
    "readout": "readout",
    "write": "writing results",
    "pack_forward": "packing weights",
    "idle_forward": "threads that wait",
    "outside_forward": "everything else",
}
BACKWARD = {
    "recompute": "recomputation (checkpoint_every)",
    "replay": "replay of the states",
    "product_dense": "product with the weights, dense",
    "product_active": "product with the weights, active rows",
    "product_sparse": "product with the weights, sparse",
    "readout_adjoint": "adjoint of the readout",
    "adjoint": "adjoint of the step",
    "gradient": "gradient of the recurrent weights",
    "gradient_in": "gradient of inputs and their weights",
    "gradient_out": "gradient of the readout's weights",
    "sum_tiles": "sum of the tiles' gradients",
    "copy": "copying in the tiles",
    "pack_backward": "packing weights",
    "products_backward": "products and readouts outside",
    "idle_backward": "threads that wait",
    "outside_backward": "everything else",
}


def phases_of(threads: int, forward: tuple[float, dict[str, int]],
              backward: tuple[float, dict[str, int]], products: Sequence[float],
              ) -> dict[str, float]:
    """Seconds by phase. forward, backward: seconds of the pass and what the kernels counted;
    products: seconds of products and readouts outside of the operator, in both passes."""
    (all_f, f), (all_b, b) = forward, backward
    timed = ("events", "sums", "step", "readout", "wait_forward", "forward_tiles")
    seconds = {key: f["ns_" + key] * 1e-9 / threads for key in timed}
    own = f["input_rows"] / max(1, f["rows"])  # share of the rows that were added for inputs
    sums, in_operator = seconds["events"] + seconds["sums"], f["ns_forward"] * 1e-9
    phases = dict.fromkeys((*FORWARD, *BACKWARD), 0.0)
    phases |= {"projection": sums * own, "sums": sums * (1 - own), "step": seconds["step"],
               "readout": seconds["readout"], "pack_forward": f["ns_pack_forward"] * 1e-9}
    busy = seconds["forward_tiles"] - seconds["wait_forward"]
    phases["write"] = max(0.0, busy - sums - seconds["step"] - seconds["readout"])
    # What is left of an operator is time in which threads had no tile, or waited for the others at
    # one, and what is left of a pass lies outside.
    phases["idle_forward"] = max(0.0, in_operator - phases["pack_forward"] - busy)
    # they were timed in other passes
    phases["products"] = min(products[0], max(0.0, all_f - in_operator))
    phases["outside_forward"] = max(0.0, all_f - sum(phases[key] for key in FORWARD))

    kernels = list(BACKWARD)[: list(BACKWARD).index("sum_tiles")]
    phases |= {key: b["ns_" + key] * 1e-9 / threads for key in kernels}
    phases |= {key: b["ns_" + key] * 1e-9 for key in ("sum_tiles", "pack_backward")}
    busy, in_operator = (
        b["ns_backward_tiles"] - b["ns_wait_backward"]) * 1e-9 / threads, b["ns_backward"] * 1e-9
    phases["copy"] = max(0.0, busy - sum(phases[key] for key in kernels))
    phases["idle_backward"] = max(
        0.0, in_operator - phases["sum_tiles"] - phases["pack_backward"] - busy)
    phases["products_backward"] = min(products[1], max(0.0, all_b - in_operator))
    phases["outside_backward"] = max(0.0, all_b - sum(phases[key] for key in BACKWARD))
    return phases


@dataclass(frozen=True)
class Profile:
    """Where the time of a forward and a backward pass goes, in seconds of one pass; str() is the
    report. Times and counts are those of the repeat with the median time."""

    target: str  # class of the module, or name of the function
    repeats: int
    threads: int  # of torch
    lost: float  # share of the kernels' time in which other programs preempted them
    instruction_set: str  # of the kernels
    forward: float  # the whole pass
    backward: float  # the same; almost 0 if no gradient is wanted
    phases: dict[str, float]  # by the keys of FORWARD and BACKWARD; their sum is forward + backward
    rate: float  # share of neuron-steps with a spike
    active: float | None  # share of neuron-steps whose surrogate is not zero; None: no backward
    input_density: float | None  # share of the inputs of the operators that are not zero
    product_steps_dense: int  # steps of tiles in which the backward product was dense,
    product_steps_active: int  # or computed only the active rows,
    product_steps_sparse: int  # or only the synapses that are not zero
    calls: int  # of the operator in a forward pass
    batch: float  # sequences in a call, on average
    tiles: float  # pieces for threads that a call is divided into
    neuron_steps: int  # T * B * N, over all calls
    counters: dict[str, int] = field(repr=False)  # of the kernels, see csrc/cpu/counters.h

    @property
    def seconds(self) -> float:
        """Of both passes."""
        return self.forward + self.backward

    def __str__(self) -> str:
        lost = f"; preempted for {self.lost:.0%} of their time" if self.lost > 0.15 else ""
        lines = [f"{self.target}, {self.instruction_set}, {_count(self.threads, 'thread')}; median "
                 f"of {self.repeats}{lost}"]
        for title, seconds, names in (("forward", self.forward, FORWARD),
                                      ("backward", self.backward, BACKWARD)):
            lines.append(self._line(title, seconds))
            lines += [self._line("  " + name, self.phases[key]) for key, name in names.items()
                      if self.phases[key] >= 0.0005 * self.seconds]
        active = ("" if self.active is None
                  else f"; {self.active:.2%} have a surrogate that is not zero")
        lines.append(f"{self.rate:.2%} of the neurons fire in a step{active}")
        products = {"dense": self.product_steps_dense, "active rows": self.product_steps_active,
                    "sparse": self.product_steps_sparse}
        if total := sum(products.values()):
            texts = [f"{product} in {steps:,}" for product, steps in products.items() if steps]
            lines.append(f"backward product: {', '.join(texts)} of {total:,} steps of tiles")
        if self.input_density is not None:
            lines.append(f"{self.input_density:.2%} of the inputs of the operator are not zero")
        lines.append(f"{_count(self.calls, 'call')}, a batch of {self.batch:.3g} in "
                     f"{_count(self.tiles, 'tile')}, {self.neuron_steps:,} neuron-steps")
        return "\n".join(lines)

    def _line(self, name: str, seconds: float) -> str:
        return f"{name:40}{seconds * 1e3:10.2f} ms{seconds / self.seconds:8.1%}"


def _count(number: float, noun: str) -> str:
    text = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    return f"{text} {noun}" + ("" if number == 1 else "s")
