"""Random layers of neurons as source text, for models with a loop of their own.

The surrogates have a gradient. Without one a parameter has none after the loop of the model, and
zeros after a kernel that reads it.
"""
import re
from typing import NamedTuple

from any_neuron_steps import CLASSIC, CONTEXT, SPIKES, SURROGATES, Choices, draw_step

# Neurons as programs write them: states, and the step of c, the states and z. B, A, TH and G are
# coefficients, SPIKE a surrogate.
WRITTEN = {
    "lif": (1, ["v = B * v + c - TH * z", "z = SPIKE(v - TH)"]),
    "lif_detached": (1, ["v = B * v + c - TH * z.detach()", "z = SPIKE(v - TH)"]),
    "lif_times": (1, ["v = B * v * (1 - z) + c", "z = SPIKE(v - TH)"]),
    "lif_after": (1, ["v = B * v + c", "z = SPIKE(v - TH)", "v = v - z * TH"]),
    "lif_zero": (1, ["v = v + (c - v) * G", "z = SPIKE(v - TH)", "v = (1.0 - z) * v"]),
    "lif_where": (1, ["v = torch.where(z > 0, torch.zeros_like(v), B * v) + c",
                      "z = SPIKE(v - TH)"]),
    "lif_in_place": (1, ["v = B * v", "v += c", "v -= z.detach() * TH", "z = SPIKE(v - TH)"]),
    "lif_masked": (1, ["v = B * v + c", "z = SPIKE(v - TH)",
                       "v = v.masked_fill(z.detach() > 0, 0.0)"]),
    "lif_no_grad": (1, ["with torch.no_grad():", "    r = z * TH", "v = B * v + c - r",
                        "z = SPIKE(v - TH)"]),
    "lif_clamped": (1, ["v = (B * v + c - TH * z).clamp(-2.0, 2.0)", "z = SPIKE(v - TH)"]),
    "lif_data": (1, ["v = B * v + c - TH * z.data", "z = SPIKE(v - TH)"]),
    "synapse": (2, ["i = A * i + c", "v = B * v + i - TH * z.detach()", "z = SPIKE(v - TH)"]),
    "tutorial": (2, ["z = SPIKE(v - TH)", "r = z.detach()", "n = A * i + c",
                     "v = (B * v + i) * (1.0 - r)", "i = n"]),
    "adaptive": (2, ["i = A * i + (1 - A) * z", "v = B * v + (1 - B) * c - TH * z",
                     "z = SPIKE(v - TH - 1.5 * i)"]),
    "normed": (1, ["v = F.layer_norm(B * v + c, (N,)) - TH * z", "z = SPIKE(v - TH)"]),
    "normed_current": (1, ["c = F.layer_norm(c, (N,)) * G + A", "v = B * v + c - TH * z",
                           "z = SPIKE(v - TH)"]),
    "integrator": (1, ["v = B * v + G * c", "z = v"]),
    "integrator_two": (2, ["i = A * i + c", "v = B * v + i", "z = v"]),
    "tanh": (0, ["z = torch.tanh(c)"]),
    "gate": (1, ["g = torch.sigmoid(c)", "v = g * v + (1 - g) * torch.tanh(c)", "z = v"]),
    "straight": (1, ["v = B * v + c - z.detach() * TH", "s = torch.sigmoid(4 * (v - TH))",
                     "z = s + ((v > TH).to(v.dtype) - s).detach()"]),
}
# Forms of a product h (B, n) with weights w (N, n), b (N,) or (n, N) as u.
PRODUCTS = ["LINEAR(h)", "LINEAR(h)", "LINEAR(h)", "F.linear(h, w)", "F.linear(h, w, b)",
            "h @ w.t()", "h @ u", "torch.matmul(h, u)", "torch.mm(h, w.T)", "(w @ h.t()).t()",
            "torch.einsum('bi,ni->bn', h, w)", "torch.einsum('bi,in->bn', (h, u))",
            "torch.addmm(b, h, u)", "(h.unsqueeze(1) * w).sum(-1)", "h @ u + b",
            "torch.einsum('ab,bc->ac', [h, u])", "F.linear(h, w * self.mask_w)",
            "h.mm(u.clone())", "h[:, :2] @ u[:2] - h[:, 2:] @ u[2:]",
            "sum(p @ q for p, q in zip(h.split(3, 1), u.split(3)))",
            "torch.matmul(w, h.unsqueeze(-1)).squeeze(-1)"]


class Layer(NamedTuple):
    """Text that the program consists of; step: lines with h and the states as locals."""

    name: str  # of the neuron
    before: list[str]  # classes and functions
    init: list[str]  # of __init__
    fixed: list[str]  # before the loop
    step: list[str]
    states: list[str]  # names of local variables; the last is the spike
    inputs: int
    size: int


def draw_surrogate(d: Choices, name: str) -> tuple[list[str], str, list[str]]:
    """Classes, the name of the function that is called, and lines of __init__."""
    backward = SURROGATES[d.one_of(*(each for each in SURROGATES if each != "none"))]
    form = CONTEXT if d.chance(0.3) else CLASSIC
    text = (f"class {name}(torch.autograd.Function):\n"
            f"{form.format(forward=d.random.choice(SPIKES))}\n"
            f"    @staticmethod\n    def backward(ctx, g):\n"
            f"        (m,) = ctx.saved_tensors\n        return {backward}\n")
    kind = d.one_of("apply", "apply", "early", "attribute", "function", "module")
    if kind == "early":
        return [text, f"{name}_early = {name}.apply\n"], f"{name}_early", []
    if kind == "attribute":
        return [text], f"self.{name}", [f"self.{name} = {name}.apply"]
    if kind == "function":
        return [text, f"def call_{name}(x):\n    return {name}.apply(x)\n"], f"call_{name}", []
    if kind == "module":
        module = (f"class Module{name}(nn.Module):\n    def forward(self, x):\n"
                  f"        return {name}.apply(x)\n")
        return [text, module], f"self.{name}", [f"self.{name} = Module{name}()"]
    return [text], f"{name}.apply", []


def _coefficient(d: Choices, i: int, name: str, low: float, high: float, size: int,
                 init: list[str], fixed: list[str]) -> str:
    """An expression, of a number or of what is learned."""
    value = round(d.random.uniform(low, high), 3)
    kind = d.one_of("literal", "literal", "number", "number", "scalar", "each", "each", "exp",
                    "fixed", "buffer")
    at = f"self.{name}{i}"
    if kind == "literal":
        return repr(value)
    if kind == "number":
        init.append(f"{at} = {value}")
    elif kind == "scalar":
        init.append(f"{at} = nn.Parameter(torch.tensor({value}))")
        return d.one_of(at, f"{at}.clamp(0.0, 1.0)", f"{at}.clamp(0.0, 1.0)")
    elif kind == "buffer":
        init.append(f"self.register_buffer('{name}{i}', torch.full(({size},), {value}))")
    else:
        init.append(f"{at} = nn.Parameter({value} + 0.1 * torch.rand({size}))")
        if kind == "exp":
            return f"torch.exp(-0.2 / {at}.abs())"
        if kind == "fixed":
            fixed.append(f"k_{name}{i} = {d.one_of('torch.sigmoid', 'torch.abs')}({at})")
            return f"k_{name}{i}"
    return at


def draw_product(d: Choices, i: str, h: str, inputs: int, size: int, init: list[str],
                 gain: float) -> str:
    """An expression (B, size) of h (B, inputs)."""
    text = d.one_of(*PRODUCTS)
    if "LINEAR" in text:
        bias = d.chance(0.6)
        init += [f"self.l{i} = nn.Linear({inputs}, {size}, bias={bias})",
                 f"self.l{i}.weight.data.mul_({gain})"]
        return text.replace("LINEAR(h)", f"self.l{i}({h})")
    for name, shape in (("w", (size, inputs)), ("u", (inputs, size))):
        if re.search(rf"\b{name}\b", text):
            init.append(f"self.{name}{i} = nn.Parameter({gain} * torch.randn{shape}"
                        f" / {inputs} ** 0.5)")
    if re.search(r"\bb\b", text):
        init.append(f"self.b{i} = nn.Parameter(0.2 * torch.rand({size}))")
    if "mask_w" in text:
        init.append(f"self.register_buffer('mask_w{i}', (torch.rand({size}, {inputs}) < 0.7)"
                    f".float())")
        text = text.replace("self.mask_w", f"self.mask_w{i}")
    text = re.sub(r"\b([wub])\b", rf"self.\g<1>{i}", text)
    return re.sub(r"\bh\b", h, text)


def draw_layer(d: Choices, seed: object, i: int, inputs: int, size: int) -> Layer:
    """A layer of neurons, with or without a recurrent product of its past spikes."""
    init: list[str] = []
    fixed: list[str] = []
    h = "h"
    is_recurrent = d.chance(0.6)
    lines: list[str] = []
    if is_recurrent and d.chance(0.2):
        order = d.one_of("h, z", "z, h")
        axis = d.one_of("1", "-1", "dim=1", "dim=-1")
        lines.append(f"h = torch.cat([{order}], {axis})")
        currents = [draw_product(d, f"{i}", h, inputs + size, size, init, 2.0)]
    else:
        currents = [draw_product(d, f"{i}", h, inputs, size, init, 2.0)]
        if is_recurrent:
            z = d.one_of("z", "z", "z", "z", "z.detach()")
            currents.append(draw_product(d, f"r{i}", z, size, size, init, 0.7))
    if d.chance(0.5):
        return _written(d, i, inputs, size, init, fixed, lines, currents)
    return _drawn(d, seed, i, inputs, size, init, lines, currents)


def _written(d: Choices, i: int, inputs: int, size: int, init: list[str], fixed: list[str],
             lines: list[str], currents: list[str]) -> Layer:
    name = d.one_of(*WRITTEN)
    count, step = WRITTEN[name]
    before, spike, more = draw_surrogate(d, f"H{i}")
    init += more
    total = " + ".join(currents)
    is_turned = len(currents) == 2 and d.chance(0.3)  # the product for the iteration after
    if is_turned:
        lines.append(f"c = {currents[0]} + back")
    elif len(currents) == 2 and d.chance(0.3):
        lines += [f"c = {currents[0]}", f"c = c + {currents[1]}"]
    else:
        lines.append(f"c = {total}")
    text = "\n".join(step)
    for symbol, low, high in (("B", 0.5, 0.95), ("A", 0.5, 0.9), ("TH", 0.3, 1.0), ("G", 0.2, 0.9)):
        if re.search(rf"\b{symbol}\b", text):
            one = _coefficient(d, i, symbol.lower() * 2, low, high, size, init, fixed)
            text = re.sub(rf"\b{symbol}\b", one, text)
    text = text.replace("SPIKE", spike).replace("(N,)", f"({size},)")
    lines += text.split("\n")
    states = [["v"], ["v"], ["v", "i"]][count] if count else []
    if is_turned:
        lines.append(f"back = {currents[1]}")
        states = [*states, "back"]
    return _renamed(Layer(name, before, init, fixed, lines, [*states, "z"], inputs, size), i)


def _drawn(d: Choices, seed: object, i: int, inputs: int, size: int, init: list[str],
           lines: list[str], currents: list[str]) -> Layer:
    step = draw_step(f"{seed}/{i}", d.chance(0.5))
    text = re.sub(r"\bS(\d+)\b", rf"L{i}S\1", step.source)
    text = text.replace("        return None\n", "        return 0.0 * g\n")
    text = text.replace("import math\n\nimport torch\n", "").replace("def step(", f"def step{i}(")
    names = []
    if step.currents == 1 or len(currents) == 1:
        currents = [" + ".join(currents)]
    for k in range(step.currents):
        lines.append(f"c{k} = {currents[k % len(currents)]}" if k < len(currents) else
                     f"c{k} = {d.one_of('c0 * 0.5', 'c0', 'c0.detach()', 'torch.tanh(c0)')}")
        names.append(f"c{k}")
    states = [f"s{k}" for k in range(step.states)]
    keywords = []
    for one in step.coefficients:
        at, value = f"self.{one.name}_{i}", round(d.random.uniform(one.low, one.high), 3)
        if one.kind == "default":
            continue
        if one.kind == "int":
            value = d.random.randrange(2, 9)
        if one.kind in ("number", "int"):
            init.append(f"{at} = {value}")
        else:
            shape = {"()": "()", "(1,)": "(1,)", "(N,)": f"({size},)"}[one.kind]
            tensor = f"{value} + 0.0 * torch.rand({shape})"
            init.append(f"{at} = nn.Parameter({tensor})" if one.learned else
                        f"self.register_buffer('{one.name}_{i}', {tensor})")
        keywords.append(f"{one.name}={at}")
    results = ", ".join([*states, "z"])
    lines.append(f"{results} = step{i}({', '.join([*names, *states, 'z', *keywords])})")
    layer = Layer("drawn", [text], init, [], lines, [*states, "z"], inputs, size)
    return _renamed(layer, i)


def _renamed(layer: Layer, i: int) -> Layer:
    """Local variables with the number of the layer, but for h."""
    names = "|".join({*layer.states, "c", "n", "r", "g", "s", *(f"c{k}" for k in range(4))})
    lines = [re.sub(rf"(?<![\w.'])({names})(?![\w('])", rf"\1_{i}", line) for line in layer.step]
    return layer._replace(step=lines, states=[f"{name}_{i}" for name in layer.states])
