"""What lsnn_ext.profile returns: the numbers, the report, and what would make it faster."""

from collections.abc import Iterator
from dataclasses import dataclass, field

# The phases of a pass in the order of the report. Their seconds in the kernels are those of all
# threads, divided by the number of threads, so that all phases together are the time of the pass.
FORWARD = {
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
    "idle_backward": "threads that wait",
    "outside_backward": "everything else",
}
BOUNDED = ("triangle", "boxcar")  # surrogates that are zero far from the threshold
FULL_TILE = 16  # sequences


def phases_of(
    threads: int, forward: tuple[float, dict[str, int]], backward: tuple[float, dict[str, int]],
    projection: tuple[float, float], readout: tuple[float, float],
) -> dict[str, float]:
    """Seconds by phase.

    forward, backward: seconds of the pass and what the kernels counted. projection, readout:
    seconds of the products in front of the recurrence and behind it that ran outside of its
    operator, in both passes.
    """
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
    # they were timed apart
    scale = min(1.0, max(0.0, all_f - in_operator) / max(1e-12, projection[0] + readout[0]))
    phases["projection"] += projection[0] * scale
    phases["readout"] += readout[0] * scale
    phases["outside_forward"] = max(0.0, all_f - sum(phases[key] for key in FORWARD))

    kernels = list(BACKWARD)[: list(BACKWARD).index("sum_tiles")]
    phases |= {key: b["ns_" + key] * 1e-9 / threads for key in kernels}
    phases |= {key: b["ns_" + key] * 1e-9 for key in ("sum_tiles", "pack_backward")}
    busy, in_operator = (
        b["ns_backward_tiles"] - b["ns_wait_backward"]) * 1e-9 / threads, b["ns_backward"] * 1e-9
    phases["copy"] = max(0.0, busy - sum(phases[key] for key in kernels))
    phases["idle_backward"] = max(
        0.0, in_operator - phases["sum_tiles"] - phases["pack_backward"] - busy
    )
    scale = min(1.0, max(0.0, all_b - in_operator) / max(1e-12, projection[1] + readout[1]))
    phases["gradient_in"] += projection[1] * scale
    phases["gradient_out"] += readout[1] * scale
    phases["outside_backward"] = max(0.0, all_b - sum(phases[key] for key in BACKWARD))
    return phases


@dataclass(frozen=True)
class Profile:
    """Where the time of a forward and a backward pass goes. All times are seconds of one pass;
    str() is the report.

    Times and counts are those of the repeat whose time is the median.
    """

    layer: str  # class of the module
    repeats: int
    threads: int  # of torch
    cores: int  # that this process may use
    lost: float  # share of the kernels' time in which other programs, or the system, had their core
    instruction_set: str  # of the kernels
    forward: float  # the whole pass
    backward: float  # the same; next to nothing where no gradient is asked for
    phases: dict[str, float]  # by the keys of FORWARD and BACKWARD; their sum is forward + backward
    # how inputs meet weights: inside the operator, by events in front, as a matrix product
    projection: tuple[str, ...]
    rate: float  # share of neuron-steps with a spike
    # share of neuron-steps whose surrogate is not zero; None without a backward pass
    active: float | None
    input_density: float | None  # share of inputs that are not zero, over all layers
    product_steps_dense: int  # steps of tiles in which the backward product was dense,
    product_steps_active: int  # or computed the active rows alone,
    product_steps_sparse: int  # or the synapses that are not zero
    # of the operator in a forward pass: for layers, directions, lengths of packed sequences
    calls: int
    batch: float  # sequences in a call, on average
    tiles: float  # pieces for threads that a call is shared out in
    neuron_steps: int  # T * B * N, over all calls
    delays: int  # the largest number of distinct delays in a call
    surrogates: tuple[str, ...]
    # steps of a segment that is computed again, the most of all calls; 0: none
    checkpoint_every: int
    spikes_beside_readout: int  # bytes of spikes that were written although a readout follows
    fresh_bytes: int  # of large blocks of ours that the memory kept for reuse did not hold
    # what it takes to touch as many fresh bytes for the first time, as measured beside
    fresh_time: float
    page_faults: int | None  # of the process; None where the system does not count them
    page_fault_time: float  # what those outside of our blocks take, as measured beside
    cache_mb: str  # LSNN_CACHE_MB
    # all that the kernels counted, see csrc/cpu/counters.h
    counters: dict[str, int] = field(repr=False)

    @property
    def seconds(self) -> float:
        """Of both passes."""
        return self.forward + self.backward

    def share(self, *keys: str) -> float:
        """Of the phases with these keys in the time of both passes."""
        return sum(self.phases[key] for key in keys) / self.seconds

    @property
    def advice(self) -> tuple[str, ...]:
        """Two to five sentences on what would make it faster; those that concern most of the time
        come first."""
        texts = [text for _, text in sorted(self._found(), key=lambda pair: -pair[0])[:5]]
        largest = sorted(self.phases, key=lambda key: -self.phases[key])
        return (*texts, *(self._hint(key) for key in largest[: max(0, 2 - len(texts))]))

    def _found(self) -> Iterator[tuple[float, str]]:
        """What a measured condition calls for, with the share of the time that it concerns."""
        outside, idle = self.share("outside_forward",
                                   "outside_backward"), self.share("idle_forward", "idle_backward")
        dense = self.product_steps_dense > self.product_steps_active + self.product_steps_sparse
        unbounded = [name for name in self.surrogates if name not in BOUNDED]
        density, active = self.input_density or 0.0, self.active or 0.0
        fresh, faults = self.fresh_time / self.seconds, self.page_fault_time / self.seconds
        if self.batch < FULL_TILE * self.threads:
            yield max(idle, 0.3), (
                f"A batch of {self.batch:.3g} makes {_few(self.tiles, 'tile')} of "
                f"{self.batch / self.tiles:.3g} for {_few(self.threads, 'thread')}: "
                f"{FULL_TILE * self.threads} sequences or more would keep all threads busy with "
                f"full tiles of {FULL_TILE}.")
        if outside > 0.3 and self.neuron_steps < self.calls << 20:
            yield outside, (
                f"Python, autograd and allocation take {outside:.0%}, as a call has only "
                f"{self.neuron_steps / self.calls:,.0f} neuron-steps: longer sequences, a larger "
                f"batch or "
                "torch.compile would spread this cost.")
        if "as a matrix product" in self.projection and density >= 0.2:
            yield self.share("projection", "gradient_in"), (
                f"{density:.0%} of the inputs are not zero: from 20 % on they meet their weights "
                f"in a matrix product, "
                "below that event by event inside the operator, which is faster; spikes as inputs "
                "would be.")
        if dense and not unbounded:
            yield self.share("product_dense"), (
                f"{active:.0%} of the surrogates are not zero, above the limit (25 to 55 %, "
                f"growing with the tile) up "
                "to which the backward product computes active rows alone: a smaller width or "
                "larger tiles would save work.")
        if dense and unbounded:
            yield self.share("product_dense"), (
                f"The surrogate {' and '.join(unbounded)} is nowhere zero, so the backward product "
                f"is dense; with "
                "triangle or boxcar it computes the rows of neurons near their thresholds alone.")
        if self.delays > 1:
            yield self.share("product_dense", "product_active", "gradient", "pack_forward",
                             "pack_backward"), (
                f"There are {self.delays} distinct delays, and for each of them the backward "
                f"product runs once more in "
                "every step and the weights are packed once more: fewer distinct ones would save "
                "work.")
        if self.lost > 0.15:
            yield self.lost, (
                f"For {self.lost:.0%} of their time the kernels had no core, as other programs "
                f"run: this "
                "report tells little about a machine that is less busy.")
        if fresh > 0.1:
            yield fresh, (
                f"{self.fresh_bytes / 1e6:,.0f} MB of memory are fresh in every pass, and clearing "
                f"them takes {fresh:.0%}: let go of results early, so that their blocks are "
                f"reused, or raise LSNN_CACHE_MB, {self.cache_mb} now.")
        if faults > 0.1:
            yield faults, (
                f"{_few(self.page_faults or 0, 'page fault')} take {faults:.0%}, as torch's own "
                f"operators (joined "
                "directions, dropout, other modules) ask for fresh memory in every pass: leave "
                "some out, or preload an allocator that keeps memory, jemalloc for instance.")
        if self.spikes_beside_readout:
            yield self.share("write"), (
                f"{self.spikes_beside_readout / 1e6:,.1f} MB of spikes are written although a "
                f"readout follows: where "
                "only the readout is used, LSNN without return_spikes=True computes it in the same "
                "operator and writes none.")
        if self.instruction_set == "portable":
            yield 1 - outside, (
                "The portable kernels run: those for AVX-512, AVX2 or NEON are faster, where the "
                "processor has them and LSNN_CPU does not forbid them.")
        if self.share("recompute") > 0.02:
            yield self.share("recompute"), (
                f"Recomputation takes {self.share('recompute'):.0%}, the price of "
                f"checkpoint_every: without it this pass would keep about "
                f"{self.neuron_steps * 4.25 / 1e6:,.0f} MB in float32.")
        if self.cores > self.threads and self.tiles > self.threads:
            yield 0.5, (
                f"torch uses {_few(self.threads, 'thread')}, the process may use {self.cores} "
                f"cores, and there are {_few(self.tiles, 'tile')} to share out: see "
                f"torch.set_num_threads.")

    def _hint(self, key: str) -> str:
        """What the time of a phase, one of the largest, grows with."""
        name, direction = (FORWARD | BACKWARD)[key], "forward" if key in FORWARD else "backward"
        start = f"{self.share(key):.0%} of the time is {name} ({direction})"
        if key.startswith("outside"):
            return f"{start}: Python, autograd, allocation and other modules."
        if key.startswith("idle"):
            full = FULL_TILE * self.threads
            return (
                f"{start}: full tiles hold {FULL_TILE} sequences, so a multiple of {full} is "
                f"shared out evenly."
            )
        if key in ("sums", "readout", "gradient", "gradient_out"):
            return (
                f"{start}, which grows with the firing rate, {self.rate:.1%} here; a penalty "
                f"lowers that."
            )
        if key in ("product_active", "product_dense"):
            active = self.active or 0.0
            return (
                f"{start}, which grows with the active share, {active:.0%} here; a smaller width "
                f"lowers that."
            )
        if key in ("projection", "gradient_in"):
            return (
                f"{start}, which grows with the share of inputs that are not 0, "
                f"{self.input_density or 0:.1%} here."
            )
        if key.startswith(("pack", "sum_tiles")):
            return f"{start}, which is done once in every call: longer sequences spread it."
        return (
            f"{start}, the same for every neuron and step, spike or not: fewer steps, with a "
            f"larger dt, lower it."
        )

    def __str__(self) -> str:
        lines = [f"{self.layer}, {self.instruction_set}, {_few(self.threads, 'thread')}; median of "
                 f"{self.repeats}"]
        for title, seconds, names in (("forward", self.forward, FORWARD),
                                      ("backward", self.backward, BACKWARD)):
            lines.append(self._line(title, seconds))
            lines += [self._line("  " + name, self.phases[key]) for key, name in names.items()
                      if self.phases[key] >= 0.0005 * self.seconds]
        active = (
            "" if self.active is None else f"; {self.active:.2%} have a surrogate that is not zero"
        )
        lines.append(f"{self.rate:.2%} of the neurons fire in a step{active}")
        algorithms = {"dense": self.product_steps_dense, "active rows": self.product_steps_active,
                "sparse": self.product_steps_sparse}
        if sum(algorithms.values()):
            texts = [f"{algorithm} in {steps:,}" for algorithm, steps in algorithms.items()
                     if steps]
            lines.append(f"backward product: {', '.join(texts)} of {sum(algorithms.values()):,} "
                         f"steps of tiles")
        if self.input_density is not None:
            lines.append(f"{self.input_density:.2%} of the inputs are not zero, projected "
                         f"{', '.join(self.projection)}")
        faults = "" if self.page_faults is None else f", {_few(self.page_faults, 'page fault')}"
        lines.append(f"{_few(self.calls, 'call')}, a batch of {self.batch:.3g} in "
                     f"{_few(self.tiles, 'tile')}, {self.neuron_steps:,} neuron-steps{faults}")
        return "\n".join([*lines, *(f"* {text}" for text in self.advice)])

    def _line(self, name: str, seconds: float) -> str:
        return f"{name:40}{seconds * 1e3:10.2f} ms{seconds / self.seconds:8.1%}"


def _few(number: float, noun: str) -> str:
    text = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    return f"{text} {noun}" + ("" if number == 1 else "s")
