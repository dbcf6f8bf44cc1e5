"""One run of a model, forward and backward, with everything that is to be compared."""
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Given: TypeAlias = Tensor | tuple[Any, ...] | Callable[[nn.Module], Any]
Named: TypeAlias = dict[str, Tensor]


@dataclass
class Call:
    """One call of a module: its arguments, and the tensors of its result and of the state that it
    keeps, by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: Named
    state: Named
    random: Tensor  # the state of the random generator before it


@dataclass
class Run:
    """What came of a run."""

    outputs: Named
    gradients: dict[str, Tensor | None]
    calls: dict[str, list[Call]] = field(default_factory=dict)  # in the order of the first ones


def check_given(given: Any) -> None:
    """Raises TypeError for what no model can be run on."""
    if not isinstance(given, Tensor | tuple) and not callable(given) or isinstance(given,
                                                                                   nn.Module):
        raise TypeError(f"verify: expected a tensor, a tuple of arguments or a function of the "
                        f"model that runs it, got {type(given).__name__}")


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a result with their places, "0" or "1.v"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from named_tensors(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        fields = getattr(value, "_fields", range(len(value)))
        for key, part in zip(fields, value, strict=True):
            yield from named_tensors(part, f"{name}.{key}".lstrip("."))


def state_of(module: nn.Module) -> Named:
    """What a module keeps between calls: buffers, tensors that are its attributes, and those in a
    dict of memories."""
    found = {name: buffer for name, buffer in module.named_buffers() if buffer.numel()}
    for name, part in module.named_modules():
        own = vars(part)
        memories = own.get("_memories")
        kept = memories if isinstance(memories, dict) else {}
        plain = {key: value for key, value in own.items() if not key.startswith("_")}
        found |= {f"{name}.{key}".lstrip("."): value for key, value in (plain | kept).items()
                  if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)}
    return {name: value.detach().clone() for name, value in found.items()}


def detached(value: Any, dtype: torch.dtype | None = None, *, leaves: bool = False) -> Any:
    """The same without a history, in another dtype if one is given; leaves: tensors of real
    numbers ask for a gradient."""
    if isinstance(value, Tensor):
        value = value.detach()
        if not value.is_floating_point():
            return value
        return value.to(dtype or value.dtype, copy=True).requires_grad_(leaves)
    if isinstance(value, dict):
        return {key: detached(part, dtype, leaves=leaves) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [detached(part, dtype, leaves=leaves) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def parameters_of(model: nn.Module) -> Named:
    """Whatever is trained: parameters, and tensors that modules keep beside them and that ask for
    a gradient, as Norse's time constants do."""
    found: Named = {name: parameter for name, parameter in model.named_parameters()
                    if parameter.requires_grad}
    seen = {id(tensor) for tensor in model.parameters()}
    for name, part in model.named_modules():
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            for path, tensor in named_tensors(value, key):
                if tensor.requires_grad and tensor.is_leaf and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[f"{name}.{path}".lstrip(".")] = tensor
    return found


def cotangents(outputs: Iterable[Tensor], moved: int = 0) -> list[Tensor]:
    """Fixed numbers from -1 to 1 for each output, whose products with them are the loss; moved: a
    seed, with which each of them changes by at most a unit in the last place, or 0."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for output in outputs:
        draw = torch.rand(output.shape, generator=generator, dtype=torch.float64) * 2 - 1
        made.append(draw.to(output))
    if not moved:
        return made
    generator.manual_seed(moved)
    signs = [torch.randint(-1, 2, value.shape, generator=generator) for value in made]
    return [value * (1 + sign.to(value) * torch.finfo(value.dtype).eps)
            if value.is_floating_point() else value
            for value, sign in zip(made, signs, strict=True)]


def call(model: nn.Module, given: Given, dtype: torch.dtype | None = None, *,
         leaves: bool = False, times: int = 1) -> tuple[Any, Named]:
    """The result of a model, or the results of so many calls one after the other, and the inputs
    that ask for a gradient."""
    if callable(given) and not isinstance(given, Tensor):
        results = [given(model) for _ in range(times)]
        return results[0] if times == 1 else results, {}
    arguments = detached(given if isinstance(given, tuple) else (given,), dtype, leaves=leaves)
    inputs = {f"input {name}": tensor for name, tensor in named_tensors(arguments)
              if tensor.requires_grad}
    results = [model(*arguments) for _ in range(times)]
    return results[0] if times == 1 else results, inputs


@contextmanager
def _without_autocast() -> Iterator[None]:
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@_without_autocast()
def run(model: nn.Module, given: Given, watched: dict[str, nn.Module], *,
        dtype: torch.dtype | None = None, backward: bool = True, times: int = 1,
        moved: int = 0) -> Run:
    """Runs a model, so many times on from the state before, with the random generator at 0 and
    without autocast, which would round what is to be equal; watched: modules whose calls are
    recorded. moved: as of cotangents."""
    calls: dict[str, list[Call]] = {}
    handles = []
    for name, module in watched.items():
        before, after = _recorder(calls, name)
        handles += [module.register_forward_pre_hook(before),
                    module.register_forward_hook(after, with_kwargs=True)]
    devices = sorted({parameter.get_device() for parameter in model.parameters()
                      if parameter.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(backward):
            torch.manual_seed(0)
            result, inputs = call(model, given, dtype, leaves=backward, times=times)
            outputs = dict(named_tensors(result))
    finally:
        for handle in handles:
            handle.remove()
    gradients: dict[str, Tensor | None] = {}
    if backward:
        gradients = _gradients(outputs, parameters_of(model) | inputs, moved)
    return Run({name: value.detach() for name, value in outputs.items()}, gradients, calls)


def record(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, module: nn.Module,
           random: Tensor) -> Call:
    """What is kept of a call that was just made."""
    return Call(detached(args), detached(kwargs),
                {name: value.detach() for name, value in named_tensors(result)}, state_of(module),
                random)


def _recorder(calls: dict[str, list[Call]],
              name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks before and after a call."""
    running: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        running.append(torch.get_rng_state())

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
              result: Any) -> None:
        calls.setdefault(name, []).append(record(args, kwargs, result, module, running.pop()))

    return before, after


def _gradients(outputs: Named, wanted: Named, moved: int) -> dict[str, Tensor | None]:
    """Of the outputs times fixed numbers; None: it does not act on them."""
    # drawn for all of them, whether or not both models have a gradient of one
    weights = cotangents(outputs.values(), moved)
    pairs = [(value, weight) for value, weight in zip(outputs.values(), weights,
                                                      strict=True) if value.requires_grad]
    if not pairs or not wanted:
        return {}
    loss = sum(((value * weight).sum() for value, weight in pairs), torch.zeros(()))
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return dict(zip(wanted, found, strict=True))
