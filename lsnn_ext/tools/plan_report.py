"""What lsnn_ext.plan returns."""
from dataclasses import dataclass, field

MARGIN = 0.2  # share by which the peak of a step may differ from the estimate


@dataclass(frozen=True)
class Choice:
    what: str  # what was decided: "call", "projection", "readout", "product", ...
    chosen: str
    why: str  # the condition, with its numbers

    def __str__(self) -> str:
        return f"  {self.what:14} {self.chosen}" + (f": {self.why}" if self.why else "")


@dataclass
class LayerPlan:
    """A call of one of our layers."""

    name: str  # of the module in the model, and of its class
    operator: str  # of torch.ops.lsnn, "prepared call", "loop" or "reference"
    sizes: dict[str, int]  # T, B, N, as far as they are known
    choices: dict[str, Choice] = field(default_factory=dict)  # by what was decided
    saved_bytes: int = 0  # kept for the backward pass

    def choose(self, what: str, chosen: str, why: str = "") -> None:
        self.choices[what] = Choice(what, chosen, why)

    def __str__(self) -> str:
        sizes = ", ".join(f"{letter} = {size:,}" for letter, size in self.sizes.items())
        saved = f"; saves {bytes_text(self.saved_bytes)}" if self.saved_bytes else ""
        head = f"{self.name}: {self.operator}" + (f", {sizes}" if sizes else "") + saved
        return "\n".join([head, *map(str, self.choices.values())])


@dataclass(frozen=True)
class Plan:
    """The kernels of a call, why they run, and the memory of a training step; str() is the report.

    Memory is counted beyond inputs, parameters and buffers. The peak is an estimate, within a
    share of MARGIN of what a fresh process takes.
    """

    target: str
    device: str
    instruction_set: str  # of the CPU kernels
    threads: int
    layers: tuple[LayerPlan, ...]
    saved_bytes: int  # that autograd keeps for the backward pass, of other operators too
    peak_bytes: int
    memory_bytes: float  # that a step may take, inputs included
    most_steps: int | None  # T that fits with this B; None: not known, as of a PackedSequence
    most_sequences: int | None  # B that fits with this T
    binds: str  # the largest part of the peak, and its share

    def __str__(self) -> str:
        lines = [f"{self.target} on {self.device}, {self.instruction_set}, threads: "
                 f"{self.threads}", *map(str, self.layers),
                 f"saved for the backward pass: {bytes_text(self.saved_bytes)}",
                 f"peak of memory beyond inputs and parameters: about "
                 f"{bytes_text(self.peak_bytes)}, the largest part {self.binds}"]
        if self.most_steps is not None and self.most_sequences is not None:
            lines.append(f"{bytes_text(self.memory_bytes)} hold about T = {self.most_steps:,} with "
                         f"this B, or B = {self.most_sequences:,} with this T, if the same kernels "
                         f"run")
        return "\n".join(lines)


def bytes_text(n: float) -> str:
    """Such as "1.5 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n:.0f} bytes"
