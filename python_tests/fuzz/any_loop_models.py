"""Random models with a loop over time of their own, as source text."""
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from any_loop_layers import Layer, draw_layer
from any_neuron_steps import Choices

# Ways to read x in a loop, for x (T, B, I): head and the index of x. H means a loop without t.
READS = ["x[t]", "x[t]", "x[t, :]", "x[t, :, :]", "x[t, ...]", "x.select(0, t)", "x[t:t+1][0]",
         "x.narrow(0, t, 1).squeeze(0)", "x[t].clone()", "torch.select(x, 0, t)"]
READS_BATCH = ["x[:, t]", "x[:, t]", "x[:, t, :]", "x.select(1, t)", "x.transpose(0, 1)[t]",
               "x[:, t:t+1].squeeze(1)", "x[:, t, ...]"]
READS_LAST = ["x[..., t]", "x[:, :, t]", "x.select(2, t)", "x.select(-1, t)", "x[..., t].clone()"]
WHOLE = ["x", "x.unbind(0)", "torch.unbind(x)", "list(x)", "x.unbind(dim=0)", "reversed(x)",
         "x.flip(0)", "[one[0] for one in x.split(1)]", "x[:-1]", "x[1:]", "x[::2]",
         "iter(x)", "tuple(x)"]
WHOLE_BATCH = ["x.unbind(1)", "torch.unbind(x, 1)", "x.transpose(0, 1)", "x.unbind(dim=1)",
               "x.permute(1, 0, 2)", "torch.unbind(x, dim=1)[::-1]"]
# Ranges, and the place that is read: what is odd.
ODD_RANGES = [("reversed(range(T))", "t"), ("range(T - 1, -1, -1)", "t"), ("range(T)", "T - 1 - t"),
              ("range(T)", "-1 - t"), ("range(T // 2)", "2 * t"), ("range(0, T, 2)", "t"),
              ("range(T - 1)", "t"), ("range(1, T)", "t"), ("range(1, T)", "t - 1"),
              ("range(7)", "0"), ("range(T)", "0"), ("range(T)", "T - 1"), ("range(T)", "t // 2"),
              ("range(T)", "(3 * t) % T"), ("range(T)", "min(t, 3)"), ("range(2 * T)", "t % T"),
              ("range(T)", "t - 1"), ("range(min(T, 9))", "t"), ("range(T)", "t // 3 * 3"),
              ("range(3, T)", "t - 3"), ("range(T)", "t if t % 4 else 0")]
ON_INPUT = ["h = h * (1 + 0.01 * t)", "h = h * (0.5, 1.0, 1.5)[t % 3]", "h = h + self.place[t % 4]",
            "h = h - h.mean(0)", "h = h.detach()", "h = h * math.exp(-t / 20)", "h = h / (t + 1)",
            "h = torch.cat([h, h], 1)[:, :I]", "h = h + 0.1 * torch.randn_like(h)",
            "h = F.dropout(h, 0.3, self.training)", "h = self.drop(h)", "h = self.norm_in(h)",
            "h = torch.softmax(h, -1)", "h = torch.softmax(h, 1)", "h = torch.softmax(h, dim=0)",
            "h = F.normalize(h, dim=1)", "h = self.batch_norm(h)", "h = h.clone().mul_(0.5)",
            "h = h * torch.bernoulli(torch.full_like(h, 0.8))", "h = h * self.gain",
            "h = h[:, torch.arange(I - 1, -1, -1)]", "h = h.view(h.shape[0], -1)",
            "h = h.flatten(1)", "h = torch.relu(h)", "h = h if t else torch.zeros_like(h)",
            "h = torch.where(h > 0.5, h, 0.1)", "h = h.T.contiguous().T", "h = h.sort(1).values",
            "h = h.cumsum(1)", "h = h.roll(1, 1)", "h = h.to(torch.float64).to(h.dtype)",
            "h *= 1.5", "h = torch.stack([h, h * 0.5]).sum(0)", "h = h.max(1, keepdim=True)[0] + h",
            "h = self.linear_in(h)", "h = h + torch.rand(()) * 0.1", "h = h.chunk(1, 1)[0]",
            "h = torch.einsum('bi,bi->b', h, h).unsqueeze(1) * h", "h = h.masked_fill(h < 0, t)"]
# With s, a state of N numbers, and z, the spike of the same layer.
ON_STATE = ["if t % K == K - 1:\n    s = s.detach()", "if t == K:\n    s = s * 0.5",
            "if t == K:\n    s = torch.zeros_like(s)", "if t < K:\n    s = s * 0.0",
            "if t % 2:\n    s = s + 0.1", "s = s * (1 + 0.001 * t)", "s = F.layer_norm(s, (N,))",
            "s = s.clamp(-1.0, 1.0)", "with torch.no_grad():\n    s = s * 0.9",
            "s = s.clone()\ns[:, 0] = 0.1", "s = s.clone()\ns[:, :2] *= 0.5", "s.data.mul_(0.9)",
            "if z.sum() > 3:\n    s = s * 0.5", "s = s * (1.0 if float(z.mean()) < 0.5 else 0.5)",
            "s = s.masked_fill(s > 1.5, 0.0)", "s = s.clone()\ns[s > 1.0] = 0.5", "s += 0.05",
            "s = s + 0.05 * torch.randn(s.shape, dtype=s.dtype)", "s = s.roll(1, 1)",
            "s = F.dropout(s, 0.2, self.training)", "s = s - s.mean(1, keepdim=True)",
            "s = s.contiguous()", "s = s.to(s.dtype)", "s = self.other(s)", "s = s.detach()",
            "s = torch.where(self.holds, s, s * 0.5)", "s = s - 0.1 * s.mean()",
            "s = s.view_as(z)", "s = torch.add(s, z, alpha=0.1)",
            "s = s * 0.5 + 0.5 * old\nold = s",
            "self.count += 1", "self.log.append(z)", "self.last = z", "self.kept = z.detach()",
            "self.mean.mul_(0.9).add_(z.detach().mean())", "self.mean = 0.9 * self.mean + 0.1",
            "self.mean += 0.5", "self.total += z.sum().item()", "self.total = s.mean().item() / T",
            "self.rates.append(z.detach().numpy().mean())", "self.array = s.detach().numpy()",
            "self.total += 1\nif self.total > K:\n    s = s * 0.5",
            "if t % 5 == 4:\n    continue", "if t > 10:\n    break",
            "s = self.scale_of(s)", "s = s * SCALES[0]", "s = s.requires_grad_()",
            "past.append(s)\nif len(past) > K:\n    s = past[-K]",
            "past.append(z)\nz = past[t // 2]",
            "past.append(s)\ns = past.pop(0) if len(past) > K else s",
            "if t == T - 1:\n    s = s + 1.0", "assert not torch.isnan(s).any()", "s = s / (t + 1)",
            "s = torch.minimum(s, torch.tensor(1.5, dtype=s.dtype))",
            "s = (s * 1).view(-1)\ns *= 0.9\ns = s.view(z.shape)",
            "u = s * 1\ns = u.unsqueeze(0)[0]\nu.add_(s)\ns = s * 0.5",
            "s = s.clone()\ns[-1][:2] *= 0.5\ns[:] += 0.1 * z\ns[..., 0].add_(z[..., -1])",
            "u = s * 1\nu[0] -= 0.1 * z[0]\ns = u[:, None]\ns *= 0.9\ns = s[:, 0] + u",
            "u = s * 1\ns = u.t().t()\nu.mul_(0.5)", "s = torch.cat([s[None], z[None]]).mean(0)"]
HOLDERS = ("locals", "locals", "locals", "dict", "list", "tuple", "attributes", "persistent",
           "object")
STARTS = ["torch.zeros(B, N, dtype=x.dtype)"] * 4 + [
    "x.new_zeros(B, N)", "torch.zeros((B, N), dtype=x.dtype, device=x.device)",
    "torch.zeros(N, dtype=x.dtype)", "torch.zeros(1, N, dtype=x.dtype)", "0.0",
    "self.start.expand(B, N)", "self.start", "torch.full((B, N), 0.2, dtype=x.dtype)",
    "torch.rand(B, N, dtype=x.dtype)", "0.1 * torch.randn(B, N).to(x.dtype)", "None",
    "torch.zeros(B, N, dtype=x.dtype).requires_grad_()", "torch.zeros(B, N)"]
AFTER = ["{o}"] * 4 + ["self.readout({o})", "F.linear({o}, self.readout.weight)", "{o}.mean(0)",
                       "{o}.sum(0)", "torch.softmax({o}, -1)", "{o} * 2", "{o}.transpose(0, 1)",
                       "{o}.max(0).values", "{o}[-1]", "{o}.flatten(1)", "{o}.clone()",
                       "F.log_softmax(self.readout({o}), dim=-1)", "{o}.detach()",
                       "{o}.cumsum(0)", "{o}.mean()", "{o}.permute(1, 2, 0)"]


class Program(NamedTuple):
    """layout: of x, among "tbi", "bti", "bit" and "bi"."""

    source: str
    layout: str
    inputs: int


def _indented(lines: Sequence[str], by: int) -> list[str]:
    return [" " * by + line for text in lines for line in text.split("\n")]


class Model:
    """Writes one model."""

    def __init__(self, seed: object) -> None:
        self.seed = seed
        self.d = d = Choices(f"loop {seed}")
        sizes = (1, 2, 3, 5, 7, 8, 16, 17)
        self.inputs = d.random.choice(sizes)
        self.layers: list[Layer] = []
        inputs = self.inputs
        for i in range(d.random.choice((1, 1, 2, 2, 3))):
            size = d.random.choice(sizes)
            self.layers.append(draw_layer(d, seed, i, inputs, size))
            inputs = size
        self.layout = d.one_of("tbi", "tbi", "tbi", "bti", "bti", "bit")
        if d.chance(0.05):
            self.layout = "bi"
        self.init = [line for layer in self.layers for line in layer.init]
        self.odd = d.random.choice((0, 0, 1, 1, 2, 3))
        self.loops = 0
        self.body: list[str] = []
        self.results: list[str] = []

    def source(self) -> str:
        d = self.d
        kind = d.one_of("one", "one", "one", "each", "each", "twice")
        if len(self.layers) == 1 and kind == "each":
            kind = "one"
        self.body += [text for layer in self.layers for text in layer.fixed]
        sizes = {"tbi": "T, B = x.shape[:2]", "bti": "B, T = x.shape[:2]",
                 "bit": "B, T = x.shape[0], x.shape[-1]", "bi": "B, T = len(x), 12"}
        self.body.insert(0, sizes[self.layout])
        if kind == "each":
            name, layout = "x", self.layout
            for layer in self.layers:
                name, layout = self.loop([layer], name, layout, layer is self.layers[-1]), "tbi"
        else:
            self.loop(self.layers, "x", self.layout, True)
            if kind == "twice":
                self.loop(self.layers, "x", self.layout, True)
        return self.text()

    # -------------------------------------------------------------------------------- loops
    def _read(self, name: str, layout: str) -> tuple[str, str]:
        """The head of the loop, and the input of an iteration."""
        d = self.d
        reads, whole = {"tbi": (READS, WHOLE), "bti": (READS_BATCH, WHOLE_BATCH),
                        "bit": (READS_LAST, ["x.unbind(-1)", "x.permute(2, 0, 1)"]),
                        "bi": (["x"], ["T * [x]"])}[layout]
        if d.chance(0.3):
            sequence = d.one_of(*whole).replace("x", name)
            sequence = sequence.replace(f"inde{name}", "index")
            return f"for t, h in enumerate({sequence}):", ""
        head, index = "range(T)", "t"
        if self.odd and d.chance(0.25):
            head, index = d.random.choice(ODD_RANGES)
            self.odd -= 1
        read = re.sub(r"\bx\b", name, d.one_of(*reads))
        if index != "t":
            read = re.sub(r"\bt\b", f"({index})", read)
        return f"for t in {head}:", f"h = {read}"

    def _start(self, layer: Layer) -> tuple[list[str], list[str]]:
        """Lines before the loop, and of its first iteration."""
        d = self.d
        start = d.one_of(*STARTS)
        if "self.start" in start:
            name = f"self.start{layer.states[-1]}"
            self.init.append(f"{name} = nn.Parameter(0.1 * torch.rand({layer.size}))")
            start = start.replace("self.start", name)
        first = []
        if start == "None":
            first = [f"if {name} is None:\n    {name} = torch.zeros(B, {layer.size}, dtype=x.dtype)"
                     for name in layer.states]
        start = re.sub(r"\bN\b", str(layer.size), start)
        if d.chance(0.3) and "rand" not in start:
            return [f"{' = '.join(layer.states)} = {start}"], first
        return [f"{name} = {start}" for name in layer.states], first

    def _hold(self, layer: Layer, number: int) -> tuple[list[str], list[str], list[str], list[str]]:
        """Lines before the loop, at the start and the end of an iteration, and after the loop."""
        d, names = self.d, layer.states
        kind = d.one_of(*HOLDERS)
        before, first = self._start(layer)
        place = f"kept{number}_{layer.states[-1]}"
        if kind == "dict":
            return ([*before, f"{place} = {{{', '.join(f'{n!r}: {n}' for n in names)}}}"],
                    [f"{n} = {place}[{n!r}]" for n in names] + first,
                    [f"{place}[{n!r}] = {n}" for n in names], [])
        if kind in ("list", "tuple"):
            pack = f"[{', '.join(names)}]" if kind == "list" else f"({', '.join(names)},)"
            return ([*before, f"{place} = {pack}"], [f"{', '.join(names)}, = {place}", *first],
                    [f"{place} = {pack}"], [])
        if kind == "object":
            pack = ", ".join(f"{n}={n}" for n in names)
            return ([*before, f"{place} = types.SimpleNamespace({pack})"],
                    [f"{n} = {place}.{n}" for n in names] + first,
                    [f"{place}.{n} = {n}" for n in names], [])
        if kind in ("attributes", "persistent"):
            stored = [f"self.{n} = {n}" for n in names]
            loaded = [f"{n} = self.{n}" for n in names]
            self.init += [f"self.{n} = None" for n in names]
            if kind == "attributes":
                return [*before, *stored], loaded + first, stored, []
            last = names[-1]
            reset = "\n".join(_indented([*before, *stored], 4))
            after = [f"self.{n} = self.{n}.detach()" for n in names]
            return ([f"if self.{last} is None or self.{last}.shape != (B, {layer.size}):\n{reset}"],
                    loaded + first, stored, after)
        return before, first, [], []

    def loop(self, layers: Sequence[Layer], name: str, layout: str, is_last: bool) -> str:
        """Writes a loop, and returns the name of its sequence of spikes."""
        d, number = self.d, self.loops
        self.loops += 1
        head, read = self._read(name, layout)
        before, step, after = [], [read] if read else [], []
        ends: list[str] = []
        inputs = self.inputs if layers[0] is self.layers[0] else layers[0].inputs
        if self.odd and d.chance(0.5):
            step += self._on_input(inputs)
        couple = self._couple(layers, number, before)
        for layer in layers:
            start, first, end, last = self._hold(layer, number)
            before += start
            lines = list(layer.step)
            if self.odd and d.chance(0.15):
                self.odd -= 1
                lines = ["for _ in range(2):", *_indented(lines, 4)] if not any(
                    "h = torch.cat" in line for line in lines) else lines
            if self.odd and d.chance(0.4):
                lines += self._on_state(layer)
            step += [*first, *couple.get(layer.states[-1], []), *lines]
            if layer is not layers[-1]:
                step.append(f"h = {layer.states[-1]}")
                if self.odd and d.chance(0.3):
                    step += self._on_input(layer.size)
            ends += end
            after += last
        made = [layer.states[-1] for layer in layers[-1:]]
        made += [s for layer in layers for s in layer.states if d.chance(0.2) and s not in made]
        step += [line for line in ends if not line.startswith("if ")]
        step += couple.get("", [])
        if self.odd and read and d.chance(0.15):
            self.odd -= 1
            before += ["for t in range(2):", *_indented(step, 4)]
        for one in made if is_last else made[:1]:
            self._collect(one, layers, before, step, after, is_last, number)
        self.body += [*before, head, *_indented(step, 4), *after]
        return f"out{number}_{made[0]}"

    def _couple(self, layers: Sequence[Layer], number: int,
                before: list[str]) -> dict[str, list[str]]:
        """Lets the last layer act on one in front of it in the next iteration. Returns lines in
        front of the step of that one, by the name of its spike, and at the end of an iteration."""
        d = Choices(f"loop {self.seed} coupled {number}")
        if len(layers) < 2 or not d.chance(0.25):
            return {}
        to, last = d.random.choice(layers[:-1]), layers[-1]
        on_input, is_early = d.chance(0.5), d.chance(0.5)
        size = to.inputs if on_input else to.size
        self.init.append(f"self.couple{number} = nn.Linear({last.size}, {size}, "
                         f"bias={d.chance(0.3)})")
        z, product = last.states[-1], f"self.couple{number}({{}})"
        before.append(f"back = torch.zeros(B, {size if is_early else last.size}, dtype=x.dtype)")
        added = "back" if is_early else product.format("back")
        name = "h" if on_input else d.one_of(*to.states[:-1] or to.states)
        found = {to.states[-1]: [f"{name} = {name} + {added}"],
                 "": [f"back = {product.format(z) if is_early else z}"]}
        for one, after in itertools.pairwise(layers) if d.chance(0.7) else ():
            past = f"past{number}_{after.states[-1]}"  # what a layer gives to the next waits
            before.append(f"{past} = torch.zeros(B, {one.size}, dtype=x.dtype)")
            found.setdefault(after.states[-1], []).append(f"h, {past} = {past}, h")
        return found

    def _on_input(self, size: int) -> list[str]:
        self.odd -= 1
        line = self.d.one_of(*ON_INPUT)
        number = len(self.init)
        for name, made in (("place", f"nn.Parameter(torch.rand(4, {size}))"),
                           ("drop", "nn.Dropout(0.3)"), ("norm_in", f"nn.LayerNorm({size})"),
                           ("batch_norm", f"nn.BatchNorm1d({size})"),
                           ("linear_in", f"nn.Linear({size}, {size})"),
                           ("gain", f"nn.Parameter(torch.rand({size}))")):
            if f"self.{name}" in line:
                self.init.append(f"self.{name}{number} = {made}")
                line = line.replace(f"self.{name}", f"self.{name}{number}")
        return [re.sub(r"\bI\b", str(size), line)]

    def _on_state(self, layer: Layer) -> list[str]:
        d = self.d
        self.odd -= 1
        line = d.one_of(*ON_STATE)
        state, number = d.one_of(*layer.states), len(self.init)
        for name, made in (("other", f"nn.Linear({layer.size}, {layer.size})"),
                           ("count", "0"), ("log", "[]"), ("total", "0"), ("rates", "[]"),
                           ("array", "None"), ("last", "None"), ("kept", "None"),
                           ("mean", "torch.zeros(())")):
            if re.search(rf"\bself\.{name}\b", line):
                self.init.append(f"self.{name}{number} = {made}")
                line = re.sub(rf"\bself\.{name}\b", f"self.{name}{number}", line)
        if "holds" in line:
            self.init.append(f"self.register_buffer('holds', torch.rand({layer.size}) < 0.5)")
        if "old" in line:
            self.body.append(f"old = torch.zeros(B, {layer.size}, dtype=x.dtype)")
        if "past" in line:
            self.body.append("past = []")
        line = re.sub(r"(?<![\w.'])s(?![\w('=])", state, line)
        line = re.sub(r"(?<![\w.'])z(?![\w('=])", layer.states[-1], line)
        line = re.sub(r"\bN\b", str(layer.size), line)
        return [re.sub(r"\bK\b", d.one_of("2", "3", "5", "12"), line)]

    # ------------------------------------------------------------------------------ results
    def _collect(self, one: str, layers: Sequence[Layer], before: list[str], step: list[str],
                 after: list[str], is_last: bool, number: int) -> None:
        d, out = self.d, f"out{number}_{one}"
        size = next(layer.size for layer in layers if one in layer.states)
        kinds = ["list", "list", "list", "list 1", "write", "write 1", "cat", "grow"]
        if is_last:
            kinds += ["sum", "sum in place", "weighted", "last", "max", "list as it is", "tuple",
                      "dict", "sum of list", "part", "list, last"]
        kind = d.one_of(*kinds)
        is_sequence = kind in ("list", "write", "cat", "grow")
        if kind.startswith("write"):
            shape = f"T, B, {size}" if kind == "write" else f"B, T, {size}"
            make = d.one_of("torch.zeros({}, dtype=x.dtype)", "x.new_zeros({})")
            before.append(f"{out} = {make.format(shape)}")
            place = "[t]" if kind == "write" else "[:, t]"
            step.append(f"{out}{place} {d.one_of('=', '=', '+=')} {one}")
        elif kind in ("sum", "sum in place", "weighted", "max"):
            start = "0" if kind == "sum" and d.chance(0.5) else (
                f"torch.zeros(B, {size}, dtype=x.dtype)")
            before.append(f"{out} = {start}")
            step.append({"sum": f"{out} = {out} + {one}", "sum in place": f"{out} += {one}",
                         "weighted": f"{out} = {out} + {one} * (t + 1)",
                         "max": f"{out} = torch.maximum({out}, {one})"}[kind])
        elif kind == "grow":
            before.append(f"{out} = torch.empty(0, B, {size}, dtype=x.dtype)")
            step.append(f"{out} = torch.cat([{out}, {one}[None]])")
        elif kind == "last":
            after.append(f"{out} = {one}")
        elif kind == "dict":
            before.append(f"{out} = {{'all': []}}")
            step.append(f"{out}['all'].append({one})")
            after.append(f"{out} = torch.stack({out}['all'])")
        else:
            before.append(f"{out} = []")
            step.append(f"{out}.append({one})")
            after.append({"list": f"{out} = torch.stack({out})",
                          "list 1": f"{out} = torch.stack({out}, dim=1)",
                          "cat": f"{out} = torch.cat([a.unsqueeze(0) for a in {out}])",
                          "list as it is": f"{out} = {out}", "tuple": f"{out} = tuple({out})",
                          "sum of list": f"{out} = sum({out})",
                          "list, last": f"{out} = {out}[-1]",
                          "part": f"{out} = torch.stack({out}[1::2] or {out})"}[kind])
        if not is_last:
            if kind in ("list 1", "write 1"):
                after.append(f"{out} = {out}.transpose(0, 1)")
            return
        text = out
        if is_sequence:
            form = d.one_of(*AFTER)
            if "readout" in form:
                name = f"readout{len(self.init)}"
                self.init.append(f"self.{name} = nn.Linear({size}, 3)")
                form = form.replace("self.readout", f"self.{name}")
            text = form.format(o=out)
        self.results.append(text)

    def text(self) -> str:
        d, results = self.d, self.results
        joined = ", ".join(results)
        kind = d.one_of("tuple", "tuple", "list", "dict", "nested", "named")
        if len(results) == 1 and d.chance(0.7):
            returned = joined
        elif kind == "dict":
            returned = "{" + ", ".join(f"'r{i}': {one}" for i, one in enumerate(results)) + "}"
        elif kind == "named":
            returned = f"Result({results[0]}, [{', '.join(results[1:])}])"
        else:
            returned = {"tuple": f"({joined},)", "list": f"[{joined}]",
                        "nested": f"({results[0]}, {{'rest': [{joined}], 'T': T}}, None)"}[kind]
        before = [text for layer in self.layers for text in layer.before]
        self.body.append(f"return {returned}")
        return "\n".join([
            "import math", "import types", "from collections import namedtuple", "", "import torch",
            "import torch.nn.functional as F", "from torch import nn", "",
            "Result = namedtuple('Result', 'first rest')", "SCALES = [0.9]", "", "", *before, "",
            "class Model(nn.Module):", "    def __init__(self):", "        super().__init__()",
            *_indented(self.init, 8), "",
            "    def scale_of(self, s):", "        return s * 0.9", "",
            "    def forward(self, x):", *_indented(self.body, 8), ""])


def draw_program(seed: object) -> Program:
    """A program; equal seeds, equal text."""
    model = Model(seed)
    source = model.source()
    return Program(source, model.layout, model.inputs)
