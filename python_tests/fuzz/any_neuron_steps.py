"""Random steps of neurons as source text: what lsnn_ext.Neuron takes, kept finite and bounded."""
import math
import random
import re
from typing import Any, NamedTuple

# The backward of each surrogate, with its saved argument m and the gradient g.
SURROGATES = {
    "fast": "g / (1 + 2.0 * m.abs()) ** 2",
    "triangle": "g * 0.3 * torch.clamp(1 - m.abs(), min=0.0)",
    "box": "g * (m.abs() < 0.5).to(g.dtype)",
    "arctan": "1.0 / (1 + (math.pi * m) ** 2) * g",
    "quadratic": "torch.where(m.abs() < 1, g * (1 - m * m), torch.zeros_like(g))",
    "gaussian": "g * torch.exp(-m * m / 2) / math.sqrt(2 * math.pi)",
    "logistic": "g * 4 * torch.sigmoid(4 * m) * (1 - torch.sigmoid(4 * m))",
    "leaky": "torch.where(m > 0, g, 0.1 * g)",
    "straight": "g",
    "none": "None",
}
# Forms of an autograd.Function: (text, whether the backward is once_differentiable).
CONTEXT = """    @staticmethod
    def forward(m):
        return {forward}

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
"""
CLASSIC = """    @staticmethod
    def forward(ctx, m):
        ctx.save_for_backward(m)
        return {forward}
"""
SPIKES = ("(m > 0).to(m.dtype)", "torch.where(m > 0, 1.0, 0.0).to(m.dtype)",
          "torch.heaviside(m, torch.zeros_like(m))", "m.gt(0).type_as(m)", "(m >= 0).to(m.dtype)")
LARGEST = 12.0  # what feeds back is bounded


class Coefficient(NamedTuple):
    """kind: number, int, default, (), (1,) or (N,); a number cannot enter functions of torch."""

    name: str
    kind: str
    learned: bool
    low: float
    high: float


class Step(NamedTuple):
    """A step as text, and what a call of it needs to know."""

    source: str
    currents: int
    states: int
    coefficients: tuple[Coefficient, ...]
    is_exact: bool  # only operators that round once
    scale: float  # spikes are 0 or scale; 0: numbers


class Choices:
    """Random choices; equal seeds, equal choices."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def one_of(self, *values: Any) -> Any:
        return self.random.choice(values)


class Writer(Choices):
    """Writes one step line by line; each value is bounded by the number beside its name."""

    def __init__(self, seed: object, is_exact: bool) -> None:
        super().__init__(f"step {seed}")
        self.is_exact = is_exact
        self.lines: list[str] = []
        self.values: list[tuple[str, float]] = []  # (B, N)
        self.fixed: list[tuple[str, float]] = []  # of coefficients only
        self.masks: list[str] = []
        self.surrogates: list[str] = []
        self.number = 0
        self.indent = "    "

    # ------------------------------------------------------------------------------------ values
    def name(self, prefix: str = "a") -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    def write(self, line: str) -> None:
        self.lines.append(self.indent + line)

    def value(self) -> tuple[str, float]:
        recent = self.values[-4:] if self.chance(0.5) else self.values
        return self.random.choice(recent)

    def literal(self) -> tuple[str, float]:
        x = self.random.choice((0.5, 0.25, -0.75, 0.9, 0.1, 1.5, -1.0, 0.3, 2, 1 / 3))
        return repr(x), abs(x)

    def operand(self) -> tuple[str, float]:
        """Anything that arithmetic takes."""
        kind = self.random.random()
        if kind < 0.2:
            return self.literal()
        if kind < 0.5 and self.fixed:
            return self.random.choice(self.fixed)
        return self.value()

    def mask(self) -> str:
        if self.masks and self.chance(0.5):
            return self.random.choice(self.masks)
        a, b = self.value()[0], self.one_of(self.literal(), self.value(), self.operand())[0]
        symbol = self.one_of(">", "<", ">=", "<=", ">", "<", "!=", "==")
        text = f"{a} {symbol} {b}"
        if self.masks and self.chance(0.4):
            other = self.random.choice(self.masks)
            text = self.one_of(f"({text}) & {other}", f"({text}) | ~{other}", f"({text}) ^ {other}",
                               f"torch.logical_and({text}, {other})", f"torch.logical_not({text})")
        name = self.name("m")
        self.write(f"{name} = {text}")
        self.masks.append(name)
        return name

    def keep(self, text: str, bound: float) -> tuple[str, float]:
        """Assigns a value, and limits it where it may be large."""
        name = self.name()
        if not bound <= LARGEST:
            if self.is_exact or self.chance(0.5):
                text, bound = f"({text}).clamp(-3.0, 3.0)", 3.0
            else:
                text, bound = f"torch.tanh({text})", 1.0
        self.write(f"{name} = {text}")
        self.values.append((name, bound))
        return name, bound

    # -------------------------------------------------------------------------------- statements
    def expression(self) -> tuple[str, float]:
        (a, p), (b, q) = self.value(), self.operand()
        c, r = self.value()
        k, s = self.literal()
        texts = [
            (f"{a} + {b}", p + q), (f"{a} - {b}", p + q), (f"{b} - {a}", p + q),
            (f"{a} * {b}", p * q), (f"{b} * {a}", p * q), (f"{a} / ({c}.abs() + 0.5)", 2 * p),
            (f"{b} / ({a}.abs() + 0.5)", 2 * q), (f"{a} * (1 - {c})", p * (1 + r)),
            (f"torch.add({a}, {c}, alpha={k})", p + r * s),
            (f"torch.sub({a}, {c}, alpha={k})", p + r * s),
            (f"torch.addcmul({a}, {a}, {c}, value={k})", p + p * r * s),
            (f"torch.lerp({a}, {c}, {self.one_of(0.3, 0.8)})", p + r),
            (f"-{a}", p), (f"{a}.abs()", p), (f"torch.relu({a})", p), (f"torch.sign({a})", 1.0),
            (f"{a} ** 2", p**2), (f"{a}.square()", p**2), (f"{a} ** 3", p**3),
            (f"({a}.abs() + 0.5) ** -1", 2.0), (f"torch.reciprocal({a}.abs() + 0.5)", 2.0),
            (f"{a}.clamp(-1.0, 1.5)", 1.5), (f"{a}.clamp(min={k})", p + s),
            (f"torch.clamp({a}, max={k})", p + s), (f"torch.maximum({a}, {c})", p + r),
            (f"torch.minimum({a}, {c})", p + r), (f"{a}.detach()", p),
            (f"{a}.detach() * {b}", p * q), (f"torch.where(MASK, {a}, {c})", p + r),
            (f"torch.where(MASK, {a}, {k})", p + s),
            (f"{a}.masked_fill(MASK, {k})", p + s), (f"MASK * {a}", p),
            (f"{a} * MASK.to({a}.dtype)", p), (f"torch.zeros_like({a}) + {b}", q),
            (f"{a}.detach().float().to({a}.dtype)", p), (f"torch.full_like({a}, {k}) * {c}", r * s),
            (f"torch.nn.functional.leaky_relu({a}, 0.1)", p),
        ]
        texts += [
            (f"torch.where({a} > {b}, {b}, {c})", q + r), (f"{a}.clamp(min={b})", p + q),
            (f"torch.where(~({b} <= {a}), {c}, {k})", r + s), (f"{c} + MASK * {b}", r + q),
            (f"{c} - MASK * {k}", r + s), (f"{a}.mul({b}).add_({c})", p * q + r),
            (f"torch.empty_like({a}).copy_({c})", r), (f"torch.ones_like({a}).mul_({b})", q),
            (f"{a}.new_zeros({a}.shape) + {b}", q), (f"{a}.view_as({c})", p),
            (f"{a}.reshape({c}.shape).expand_as({c})", p), (f"{a}.bool().to({a}.dtype)", 1.0),
            (f"({a} > {b}).float().to({a}.dtype) * {c}", r), (f"({a} > 0).int() * {c}", r),
            (f"{a} - {c}.detach() + {c}", p + 2 * r), (f"({b} > {a}) * {c}", r),
            (f"torch.logical_xor({a} > 0, {c} > 0) * {a}", p), (f"{a}.masked_fill({a} > {b}, {k})",
                                                              p + s),
        ]
        if not self.is_exact:
            texts += 2 * [
                (f"torch.sqrt({a}.abs() + 0.25)", p + 1), (f"({a}.abs() + 0.25) ** 0.5", p + 1),
                (f"torch.rsqrt({a}.square() + 1)", 1.0), (f"torch.exp(-{a}.abs())", 1.0),
                (f"{a} * torch.exp(-{c}.square())", p),
                (f"torch.tanh({a})", 1.0), (f"torch.sigmoid({a})", 1.0), (f"torch.sin({a})", 1.0),
                (f"torch.cos({a})", 1.0), (f"torch.atan({a})", 2.0), (f"torch.erf({a})", 1.0),
                (f"torch.log({a}.abs() + 0.5)", p + 1), (f"({a}.abs() + 0.5) ** 1.5", (p + 1) ** 2),
                (f"torch.nn.functional.silu({a})", p),
                (f"torch.exp({a}.clamp(max=1.0))", 3.0),
                (f"torch.nn.functional.layer_norm({a} + c0, {a}.shape[-1:], eps=0.1)", 9.0),
            ]
        return self.fill(*self.random.choice(texts))

    def fill(self, text: str, bound: float) -> tuple[str, float]:
        """Writes what the text names MASK and SPIKE."""
        if "MASK" in text:
            text = text.replace("MASK", self.mask())
        if "SPIKE" in text:
            text = text.replace("SPIKE", self.spike())
        return text, bound

    def statement(self) -> None:
        kind = self.random.random()
        if kind < 0.62:
            self.keep(*self.expression())
        elif kind < 0.72:
            self.in_place()
        elif kind < 0.79:
            text, bound = self.expression()
            self.write("with torch.no_grad():")
            self.indent += "    "
            self.keep(text, bound)
            self.indent = self.indent[4:]
        elif kind < 0.9:
            self.keep(self.spike(), 1.0)
        else:
            a, bound = self.keep(*self.expression())
            self.values.append((a, bound))

    def in_place(self) -> None:
        (a, p), (b, q), k = self.value(), self.value(), self.literal()[0]
        mask = self.mask()
        name = self.name()
        self.write(f"{name} = {a}.clone()")
        text, bound = self.random.choice([
            (f"{name}[{mask}] = {k}", p + 2), (f"{name} += {b}", p + q), (f"{name} -= {b}", p + q),
            (f"{name}.mul_({k})", 2 * p), (f"{name} *= {k}", 2 * p),
            (f"{name}.masked_fill_({mask}, {k})", p + 2), (f"{name}.clamp_(-1.0, 1.0)", 1.0),
            (f"{name}.copy_({b})", q), (f"{name}.zero_()", 0.0), (f"{name}.add_({b}, alpha={k})",
                                                                  p + 2 * q)])
        self.write(text)
        self.keep(f"{name} + {b}" if self.chance(0.3) else name, bound + q)

    def spike(self) -> str:
        """The spike of a random membrane, with a surrogate."""
        fits = [name for name in SURROGATES
                if not (self.is_exact and name in ("gaussian", "logistic"))]
        name = f"S{len(self.surrogates)}"
        backward = SURROGATES[self.random.choice(fits)]
        form = CONTEXT if self.chance(0.3) else CLASSIC
        once = "    @torch.autograd.function.once_differentiable\n" if self.chance(0.3) else ""
        self.surrogates.append(f"class {name}(torch.autograd.Function):\n"
                               f"{form.format(forward=self.random.choice(SPIKES))}\n"
                               f"    @staticmethod\n{once}    def backward(ctx, g):\n"
                               f"        (m,) = ctx.saved_tensors\n        return {backward}\n")
        return f"{name}.apply({self.value()[0]} - {self.one_of(0.1, 0.3, 0.5)})"

    # ------------------------------------------------------------------------------- coefficients
    def coefficients(self, count: int) -> list[Coefficient]:
        found = []
        for i in range(count):
            kind = str(self.one_of("number", "int", "default", "()", "(1,)", "(N,)", "(N,)"))
            low, high = self.random.choice([(0.2, 0.9), (2.0, 9.0), (-1.0, 1.0)])
            one = Coefficient(f"k{i}", kind, kind[0] == "(" and self.chance(0.6), low, high)
            found.append(one)
            bound = 9.0 if kind == "int" else max(abs(low), high)
            self.fixed.append((one.name, bound))
            if low > 0 and kind != "int":
                self.fixed.append((f"(1 / {one.name})", 1 / low))
            if kind[0] == "(" and low > 0 and not self.is_exact:
                self.fixed += [(f"torch.exp(-1 / {one.name})", 1.0),
                               (f"{one.name}.sqrt()", 3.0), (f"(-1 / {one.name}).exp()", 1.0)]
            if kind[0] == "(":
                self.fixed += [(f"{one.name}.clamp(-0.5, 0.8)", 0.8),
                               (f"{one.name}.detach()", bound)]
            self.fixed.append((f"(1 - {one.name})", 1 + bound))
            if i and self.chance(0.5):
                other, size = self.fixed[0]
                self.fixed.append((f"({one.name} * {other})", bound * size))
        return found

    def new_state(self, s: str) -> str:
        (a, p), z = self.value(), "z"
        k = float(self.one_of(0.5, 0.75, 0.9, 0.25))
        limited = a if p <= 3 else f"{a}.clamp(-3.0, 3.0)"
        texts = [f"{k} * {s} + {1 - k} * {limited}", f"({k} * {s} - 0.5 * {z}).clamp(-2.0, 2.0)",
                 f"{k} * {s} * (1 - {z}.clamp(0.0, 1.0)) + 0.5 * {limited}",
                 f"({k} * {s} + {limited} - 0.3 * {z}.detach()).clamp(-3.0, 3.0)", s,
                 f"torch.where({z} > 0, 0.1, {k} * {s} + 0.5 * {limited})", f"{limited}"]
        texts += [] if self.is_exact else [f"torch.tanh({k} * {s} + {a})"]
        return str(self.random.choice(texts))

    def join_unread(self) -> None:
        """Adds up the values that no statement reads; mostly new states and spikes read the sum."""
        text = "\n".join(self.lines)
        unread = [(name, bound) for name, bound in dict.fromkeys(self.values)
                  if name[0] == "a" and len(re.findall(rf"\b{name}\b", text)) == 1]
        if unread:
            total = self.keep(" + ".join(f"0.25 * {name}" for name, _ in unread),
                              sum(bound / 4 for _, bound in unread))
            self.values += 4 * [total]

    def output(self) -> tuple[str, float]:
        """The spike, and its scale."""
        a = self.value()[0]
        soft = f"torch.sigmoid({a})"
        mask = f"{a} > {self.one_of(0.0, 0.2, 0.4)}"
        kind = self.random.random()
        if kind < 0.45:
            return self.spike(), 1.0
        scale = float(self.one_of(2.0, 0.5, -1.0))
        texts = [(f"{scale} * SPIKE", scale), (f"({mask}).to({a}.dtype)", 1.0),
                 (f"torch.where({mask}, torch.ones_like({a}), torch.zeros_like({a}))", 1.0),
                 (f"torch.heaviside({a}.detach(), torch.zeros_like({a}))", 1.0),
                 (f"SPIKE * ({mask}).to({a}.dtype)", 1.0),
                 (f"SPIKE * (z <= 0).to({a}.dtype)", 1.0),
                 (f"torch.zeros_like({a}).masked_fill({mask}, 1.0)", 1.0),
                 ("1 - SPIKE", 1.0)]
        if not self.is_exact:
            texts += 2 * [(f"torch.tanh({a})", 0.0), (soft, 0.0),
                          (f"{soft} + (({mask}).to({a}.dtype) - {soft}).detach()", 0.0)]
        return self.fill(*self.random.choice(texts))


def draw_step(seed: object, is_exact: bool) -> Step:
    """A step; equal seeds, equal text."""
    w = Writer(seed, is_exact)
    counts = (1, 1, 2, 3), (0, 1, 1, 2, 2, 3, 5), (0, 1, 2, 2, 3, 5)
    K, S, C = (w.random.choice(count) for count in counts)
    currents = [f"c{k}" for k in range(K)]
    states = [f"s{s}" for s in range(S)]
    w.values = [*((name, 8.0) for name in currents), *((name, 3.0) for name in states), ("z", 2.0)]
    coefficients = w.coefficients(C)
    if w.chance(0.15):  # writes to an argument
        name = w.random.choice(w.values)[0]
        w.write(w.random.choice([f"{name}.mul_(0.5)", f"{name} += 0.25", f"{name}[c0 > 0.5] = 0.5",
                                 f"{name}.clamp_(-0.5, 0.5)", f"{name}.copy_(c0)"]))
        w.values = [(one, bound + 8.0) for one, bound in w.values]
    for _ in range(w.random.choice((1, 3, 5, 8, 12, 20))):
        w.statement()
    w.join_unread()
    new = [w.new_state(s) for s in states]
    z, scale = w.output()
    for name, text in zip(states, new, strict=True):
        w.write(f"n{name} = {text}")
    w.write(f"nz = {z}")
    results = [f"n{name}" for name in states]
    if S > 1 and w.chance(0.2):
        w.random.shuffle(results)
    if S > 1 and w.chance(0.1):
        results[0] = results[-1]
    if S and w.chance(0.05):
        results[0] = "nz"
    w.write(f"return {', '.join([*results, 'nz'])}")
    names = [f"{c.name}={w.random.uniform(c.low, c.high)!r}" if c.kind == "default" else c.name
             for c in coefficients]
    head = ", ".join([*currents, *states, "z", *(["*", *names] if names else [])])
    source = "\n\n".join(["import math\n\nimport torch\n", *w.surrogates,
                          "\n".join([f"def step({head}):", *w.lines])]) + "\n"
    assert math.isfinite(scale)
    return Step(source, K, S, tuple(coefficients), is_exact, scale)
