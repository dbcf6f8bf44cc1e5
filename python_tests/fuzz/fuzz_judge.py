"""One case of the fuzz: a call is made and changed, run twice on other fresh memory, and judged."""

import ctypes
import hashlib
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fuzz_calls
import fuzz_functions
import fuzz_modules
from fuzz_calls import Call, Draw
from fuzz_mutations import leaves, mapped, mutate

KINDS: dict[str, Callable[[Draw], Call]] = {
    maker.__name__: maker for maker in (
        fuzz_calls.alif_forward, fuzz_calls.alif_backward, fuzz_calls.linear_events,
        fuzz_calls.linear_events_backward, fuzz_calls.leaky_readout_forward,
        fuzz_calls.leaky_readout_backward, fuzz_calls.buffer, fuzz_calls.spike_bits,
        fuzz_functions.alif, fuzz_functions.layer, fuzz_functions.linear,
        fuzz_functions.leaky_readout,
        fuzz_functions.pack_spikes, fuzz_functions.packed_numbers, fuzz_functions.poisson,
        fuzz_modules.module, fuzz_modules.plan, fuzz_modules.prepared_layer,
    )
}
SHARES = {"alif_forward": 6, "alif_backward": 7, "alif": 5, "layer": 6, "module": 6,
          "linear_events": 2, "linear_events_backward": 2, "linear": 2, "leaky_readout": 2}
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, MemoryError,
            OverflowError)
UNCLEAR = ("values to unpack", "local variable", "INTERNAL ASSERT", "object is not iterable")
# Of malloc, whose fresh bytes are the complement of the first number; of the blocks that the
# library keeps.
PATTERNS = ((0xA5, 1e30), (0x01, float("nan")))


class NotMade(Exception):
    """Sizes that no tensor can have."""


class Drawn(NamedTuple):
    """A call; whether it is in order as it is, or but for the layouts of its tensors."""

    call: Call
    in_order: bool
    laid_out: bool


class Outcome(NamedTuple):
    """What a case showed."""

    lines: list[str] | None  # of the results; None: refused
    text: str  # of the refusal
    fault: str  # or ""


def drawn(seed: int, case: int, kinds: list[str]) -> Drawn:
    """The call of a case."""
    d = Draw(seed, case)
    kind = d.random.choices(kinds, [SHARES.get(kind, 1) for kind in kinds])[0]
    torch.set_num_threads(d.one_of(1, 1, 2, 3))
    try:
        call = KINDS[kind](d)
        in_order = not d.odd
        d.odd = True
        same = mutate(d, call)
    except Exception as error:
        raise (NotMade if d.odd else RuntimeError)(
            f"{kind}: {type(error).__name__}: {error}") from error
    return Drawn(call, in_order and not call.changes, in_order and same and bool(call.changes))


def poison(number: int) -> None:
    """Fills what the next allocations get."""
    byte, value = PATTERNS[number]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-6, byte)  # M_PERTURB
    torch.set_num_threads(1)
    like = torch.zeros(1)
    blocks = [torch.ops.lsnn.buffer(like, mb, 1 << 18) for mb in (2, 2, 2, 2, 4, 4, 6, 8, 12)]
    for block in blocks:
        block.fill_(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def _given(call: Call) -> list[Tensor]:
    return list(_tensors([value for _, value in leaves(call.args)]))


def _digest(tensors: list[Tensor], contents: bool = True) -> list[str]:
    """A line for each tensor, the same where all bits are; a NaN is a NaN."""
    lines = []
    for t in tensors:
        t, line = t.detach(), f"{t.device} {t.dtype} {tuple(t.shape)}"
        if t.device.type == "cpu" and t.layout == torch.strided and contents and t.numel():
            if 0 in t.stride():  # as much of it as has memory
                t = t[tuple(slice(1) if stride == 0 else slice(None) for stride in t.stride())]
            t = t.resolve_neg().clone(memory_format=torch.contiguous_format).reshape(-1)
            if t.is_floating_point():
                t = torch.where(t.isnan(), torch.full((), float("nan"), dtype=t.dtype), t)
            line += " " + hashlib.sha1(t.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        lines.append(line)
    return lines


def _difference(first: list[str], second: list[str]) -> str:
    pairs = list(zip(first, second, strict=False))
    texts = [f"tensor {k} of {len(pairs)}: {a.rsplit(' ', 1)[0]}" for k, (a, b) in enumerate(pairs)
             if a != b]
    return "; ".join(texts)


def _gradients(call: Call, out: Any) -> list[Tensor | None]:
    """Of all that is differentiable, for all that wants one, by a sum with weights of several
    layouts."""
    wanted = [leaf for leaf in _given(call) if leaf.requires_grad]
    wanted += [t for t in call.also(out) if t.requires_grad]
    ends = [t for t in _tensors(out) if t.requires_grad and t.is_floating_point() and not t.is_leaf]
    if not ends or not wanted:
        return []
    weights = []
    for k, t in enumerate(ends):
        one = torch.ones((), dtype=t.dtype, device=t.device).expand(t.shape)
        dense = one.clone(memory_format=torch.contiguous_format)
        weights.append((one, dense, one.mT.contiguous().mT if t.dim() > 1 else dense)[k % 3])
    return list(torch.autograd.grad(ends, wanted, weights, allow_unused=True))


def _run(call: Call, in_order: bool) -> Outcome:
    """Runs it once."""
    given = _given(call)
    some_meta, before = any(t.is_meta for t in given), _digest(given)
    try:
        out = call.function(**call.args)
        gradients = _gradients(call, out) if call.gradients else []
    except REFUSALS as error:
        text = f"{type(error).__name__}: {error}"
        wrong = "refused, though in order" if in_order else ""
        wrong = "unclear" if not call.raw and any(words in text for words in UNCLEAR) else wrong
        wrong = "refused without a word" if not str(error).strip() else wrong
        return Outcome(None, text, f"{wrong}: {text}" if wrong else "")
    except Exception as error:  # a crash in Python, whose words are about something else
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        return Outcome(None, "", f"unclear: {type(error).__name__} at {where}: {error}")
    found = list(_tensors(out))
    lines, own = _digest([*found, *_tensors(gradients)],
                         call.contents), {id(t) for t in call.also(out)}
    if some_meta and not all(t.is_meta for t in found if id(t) not in own):
        return Outcome(lines, "", "a result in memory, though an argument has none (meta)")
    if _digest(given) != before:
        return Outcome(lines, "", "an argument was changed")
    return Outcome(lines, "", "")


def _dense(t: Tensor) -> Tensor:
    return t.detach().clone(memory_format=torch.contiguous_format).requires_grad_(t.requires_grad)


def judge(seed: int, case: int, kinds: list[str], say: Callable[[str], None]) -> Outcome:
    """Runs a case twice, with other bytes in fresh memory; once more with dense tensors where only
    layouts differ.

    say gets the call in words before it is run.
    """
    outcomes, given = [], []
    for number in range(len(PATTERNS)):
        poison(number)
        try:
            call, in_order, laid_out = drawn(seed, case, kinds)
        except NotMade as error:
            return Outcome(None, f"not made: {error}", "")
        except Exception as error:
            return Outcome(None, "", f"not made: {error}")
        if not number:
            say(describe(call))
        given.append(_digest(_given(call)))
        outcomes.append(_run(call, in_order))
        if outcomes[-1].fault:
            return outcomes[-1]
    first, second = outcomes
    if given[0] != given[1]:
        fault = f"what was saved for it has memory that nobody wrote: {_difference(*given)}"
    elif first.lines is None or second.lines is None:
        fault = "" if first.lines is second.lines else (
            f"refused or not, by chance: {first.text or second.text}")
    elif first.lines != second.lines:
        fault = f"a result has memory that nobody wrote: {_difference(first.lines, second.lines)}"
    else:
        # The gradient of inputs is a product of torch's, whose bits follow from layouts.
        fixed = call.raw and (call.args.get("w_in") is None or not call.name.endswith("backward"))
        fault = _other_layouts(seed, case, kinds, first.lines) if laid_out and fixed else ""
    return first._replace(fault=fault)


def _other_layouts(seed: int, case: int, kinds: list[str], lines: list[str]) -> str:
    call = drawn(seed, case, kinds).call
    call.args = mapped(call.args, _dense)
    dense = _run(call, False)
    if dense.lines is None:
        return f"refused where dense, not otherwise: {dense.text}"
    return "" if dense.lines == lines else (
        f"other results where dense: {_difference(lines, dense.lines)}")


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    kind = str(value.dtype).removeprefix("torch.")
    layout = f" {value.layout}"
    if value.layout == torch.strided:
        layout = "" if value.is_contiguous() else f" strides {value.stride()}"
    where = "" if value.device.type == "cpu" else f" {value.device}"
    return f"{kind}{tuple(value.shape)}{layout}{where}{' grad' if value.requires_grad else ''}"


def describe(call: Call) -> str:
    """The call in words."""
    shown = ", ".join(f"{'.'.join(map(str, path))}={_described(value)}"
                      for path, value in leaves(call.args))
    return f"{call.name}({shown}) changed: {call.changes or 'nothing'}"
