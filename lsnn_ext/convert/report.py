"""What lsnn_ext.convert returns beside the model: what was replaced, how equal it is, how much
faster, and what was left, with the reason."""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Difference:
    """Something that is not what it was before."""

    module: str  # its name in the model; "" for the model itself
    what: str  # spikes, state NAME, gradient of NAME, result NAME of the model, results, calls
    kind: str  # "rounding" or "mapping"
    call: int = 0  # of the calls of this module
    step: int | None = None  # the first one that differs, from 0
    where: tuple[int, ...] = ()  # item and neuron there
    largest: float = 0.0  # share of the entries, of spikes; of the largest magnitude, of numbers
    ulps: int | None = None  # units in the last place by which inputs move to make it equal
    detail: str = ""

    def __str__(self) -> str:
        place = [f"step {self.step}"] if self.step is not None else []
        place += [f"{name} {index}" for name, index in zip(("item", "neuron"), self.where,
                                                           strict=False)]
        where = f" at {', '.join(place)}" if place else ""
        cause = ("another mapping of the settings" if self.kind == "mapping" else
                 f"rounding: equal once the inputs move by {self.ulps} units in the last place")
        of = f"{self.module}: " if self.module else ""
        return f"{of}{self.what} differ first{where}: {cause}; {self.detail}"


@dataclass(frozen=True)
class Comparison:
    """Original and converted model side by side, on the same inputs, both with weights of few
    bits, whose sums are exact in any order."""

    verdict: str  # "equal", "rounding" or "mapping"
    dtype: str  # of the computation: float64 where the original can
    bits: int  # that weights and inputs were rounded to
    spikes: int  # entries that were compared
    rates: dict[str, float]  # share of the entries with a spike, by module
    states: dict[str, float]  # largest difference as a share of the largest magnitude, by name
    outputs: dict[str, float]  # the same
    gradients: dict[str, float]  # the same; empty where none was asked for, or spikes differ
    first: Difference | None = None
    # whose gradients are rounding and nothing else, on both sides; they are not in gradients
    but_rounding: tuple[str, ...] = ()
    # share of the spikes that differ with the model's own weights and dtype, where sums are rounded
    own_weights: float | None = None

    def lines(self) -> list[str]:
        """The lines of the report."""
        found = {"equal": "equal", "rounding": "equal but for rounding",
                 "mapping": "NOT EQUAL"}[self.verdict]
        text = [f"verified in {self.dtype}, weights of {self.bits} bits: {found}"]
        if self.first is not None:
            text.append(f"  {self.first}")
        rates = ", ".join(f"{name or 'model'} {rate:.2%}" for name, rate in self.rates.items())
        if self.first is None or self.first.what != "spikes":
            text.append(f"  spikes     equal in all {self.spikes:,} entries (firing: {rates})")
        for title, values in (("states", self.states), ("results", self.outputs),
                              ("gradients", self.gradients)):
            if values:
                worst = max(values, key=values.__getitem__)
                text.append(f"  {title:10} of {len(values)} the farthest apart is "
                            f"{worst or 'the result'}: {values[worst]:.1e} of its largest")
        if self.but_rounding:
            text.append(f"  gradients  of {', '.join(self.but_rounding)}: nothing but rounding, "
                        f"in the original too, as of a bias that a normalization takes away")
        silent = [name for name, rate in self.rates.items() if not rate]
        if silent:
            text.append(f"  WARNING: no neuron of {', '.join(silent)} fired, so its spikes show "
                        f"nothing; verify on other inputs")
        if not self.gradients and self.verdict != "mapping":
            reason = ("spikes differ" if self.verdict == "rounding"
                      else "nothing asks for one")
            text.append(f"  gradients  not compared, as {reason}")
        if self.own_weights is not None:
            text.append(f"  with your own weights {self.own_weights:.3%} of the spikes differ"
                        + (", by rounding" if self.own_weights else ""))
        return text


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward and backward pass, both timed in turns."""

    before: float  # median
    after: float
    before_least: float
    after_least: float
    repeats: int
    threads: int

    @property
    def gain(self) -> float:
        """How many times as fast: the ratio of the medians."""
        return self.before / self.after

    def __str__(self) -> str:
        return (f"{self.before * 1e3:.1f} ms before, {self.after * 1e3:.1f} ms now "
                f"({self.before_least * 1e3:.1f} and {self.after_least * 1e3:.1f} at best): "
                f"{self.gain:.1f} times as fast")


@dataclass(frozen=True)
class Replaced:
    """A module in whose place another one is now."""

    names: tuple[str, ...]  # all its names in the model
    original: str  # class
    ours: str

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Left:
    """A spiking module that stays as it was."""

    names: tuple[str, ...]
    original: str  # class
    reason: str

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class InLoop:
    """A module that the model calls once a step, and what it would gain from one call for all."""

    names: tuple[str, ...]
    original: str
    ours: str
    steps: int  # calls that were seen
    comparison: Comparison | None  # None: nothing was run, see note
    speed: Speed | None
    code: tuple[str, ...]  # what to write in place of the loop
    note: str = ""  # why nothing was measured

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Report:
    """What convert has done; str() is the report for people."""

    model: str  # class
    changed: bool  # whether the model was converted
    replaced: tuple[Replaced, ...] = ()
    left: tuple[Left, ...] = ()
    in_loop: tuple[InLoop, ...] = ()
    comparison: Comparison | None = None  # None: not verified
    speed: Speed | None = None  # None: not verified, or not timed
    notes: tuple[str, ...] = field(default=())
    linears: tuple[Replaced, ...] = ()  # of torch, that take spikes

    def __str__(self) -> str:
        everything = len(self.replaced) + len(self.left) + len(self.in_loop)
        if not everything:
            text = [f"{self.model}: no spiking module of a package that lsnn_ext knows"]
            return "\n".join([*text, *(f"note: {note}" for note in self.notes)])
        done = "replaced" if self.changed else "would be replaced; the model is as it was"
        text = [f"{self.model}: {len(self.replaced)} of {everything} spiking modules {done}"]
        if self.linears:
            text[0] += (f", and {len(self.linears)} Linear{'s' * (len(self.linears) > 1)} of torch "
                        f"that take{'s' * (len(self.linears) == 1)} spikes")
        rows = [(_names(one.names), one.original, one.ours)
                for one in (*self.replaced, *self.linears)]
        text += [f"  {line}" for line in _table([("module", "was", "is"), *rows])] if rows else []
        if self.replaced and self.comparison is None:
            text.append("NOT VERIFIED: give verify= an input of the model")
        if self.comparison is not None:
            text += self.comparison.lines()
        if self.speed is not None:
            text.append(f"forward and backward, {self.speed.repeats} rounds in turns, "
                        f"{self.speed.threads} thread{'s' * (self.speed.threads > 1)}: "
                        f"{self.speed}")
            if self.speed.gain < 1:
                text.append("  slower than before, as where a call has one step or few: hand the "
                            "layers whole sequences, or lsnn_ext.revert")
        for one in self.in_loop:
            text += self._loop(one)
        if self.left:
            text.append("left as they are:")
            text += [f"  {_names(one.names)} ({one.original}): {one.reason}" for one in self.left]
        return "\n".join([*text, *(f"note: {note}" for note in self.notes)])

    def _loop(self, one: InLoop) -> list[str]:
        calls = f", {one.steps} times here," if one.steps else ""
        text = [f"{_names(one.names)} ({one.original}) is called once a step{calls} and stays in "
                f"its loop; as one call of {one.ours}:"]
        if one.comparison is not None:
            text += [f"  {line}" for line in one.comparison.lines()]
        if one.note:
            text.append(f"  not measured: {one.note}")
        if one.speed is not None:
            text.append(f"  this layer, forward and backward: {one.speed}")
        lines = [f"    {line}" for line in one.code]
        return [*text, "  what to write in place of the loop:", *lines] if lines else text


def _names(names: tuple[str, ...]) -> str:
    return " = ".join(name or "the model" for name in names)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths,
                                                               strict=True)).rstrip()
            for row in rows]
