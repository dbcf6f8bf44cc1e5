"""The one comparison of this test suite, and calls of operators by name."""
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lsnn_ext import _ops

# Views with the shape of a tensor; "swapped": the first two axes are transposed in memory.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "repeated": lambda t: t[..., :1].expand(t.shape), "expanded": lambda t: t[:1].expand(t.shape)}


def assert_same(name: str, got: Tensor | Sequence[Tensor], want: Tensor | Sequence[Tensor], *,
                tolerance: float = 0.0, scale: float | None = None, nonzero: bool = False) -> None:
    """Equal to tolerance times the largest magnitude of want (or times scale); tolerance 0: equal
    in every value; sequences: each of their tensors; nonzero: none of want is all zeros.

    A NaN or an infinity on either side never passes: outputs that nobody wrote must not look like
    agreement.
    """
    if not isinstance(got, Tensor):
        for k, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(f"{name} {k}", one, other, tolerance=tolerance, scale=scale,
                        nonzero=nonzero)
        return
    assert not nonzero or want.any(), f"{name}: expected a number other than 0"
    if got.shape != want.shape or got.dtype != want.dtype or got.device != want.device:
        raise AssertionError(f"{name}: got {tuple(got.shape)} {got.dtype} on {got.device}, "
                             f"expected {tuple(want.shape)} {want.dtype} on {want.device}")
    if want.numel() == 0:
        return
    a, b = got.detach().double(), want.detach().double()
    error = (a - b).abs()
    error[~(torch.isfinite(a) & torch.isfinite(b))] = torch.inf
    largest = float(b[torch.isfinite(b)].abs().max()) if bool(torch.isfinite(b).any()) else 0.0
    limit = tolerance * (largest if scale is None else scale)
    if float(error.max()) <= limit:
        return
    position = tuple(int(index) for index in torch.unravel_index(error.argmax(), error.shape))
    raise AssertionError(
        f"{name}{list(position)}: got {float(a[position])!r}, expected {float(b[position])!r}; off "
        f"by {float(error.max()):.3g}, allowed {limit:.3g}; {int((error > limit).sum())} of "
        f"{error.numel()} values differ")


def assert_all_same(got: dict[str, Tensor], want: dict[str, Tensor], *, tolerance: float = 0.0,
                    scale: float | None = None) -> None:
    """assert_same for every name; the names must be the same too."""
    if got.keys() != want.keys():
        raise AssertionError(f"got {sorted(got)}, expected {sorted(want)}")
    for name, value in want.items():
        assert_same(name, got[name], value, tolerance=tolerance, scale=scale)


Run = tuple[dict[str, Tensor], dict[str, Tensor]]  # outputs and gradients


def assert_same_runs(got: Run, want: Run, *, tolerance: float = 0.0, values: float = 0.0) -> None:
    """Gradients within this tolerance, and outputs within that of values."""
    assert_all_same(got[0], want[0], tolerance=values)
    assert_all_same(got[1], want[1], tolerance=tolerance)


def flat(result: Any) -> list[Tensor]:
    """All tensors of a result, in their order."""
    return [result] if isinstance(result, Tensor) else [leaf for part in result
                                                        for leaf in flat(part)]


def saved_tensors(call: Callable[[], Any]) -> list[Tensor]:
    """The tensors that autograd keeps of a call."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return kept


def saved_storages(call: Callable[[], Any], known: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """The memory that autograd keeps of a call, without that of the known tensors."""
    kept = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
            for tensor in saved_tensors(call)}
    places = {tensor.untyped_storage().data_ptr() for tensor in known}
    return [storage for place, storage in kept.items() if place not in places]


def count_saved_bytes(call: Callable[[], Any], known: Iterable[Tensor]) -> int:
    return sum(storage.nbytes() for storage in saved_storages(call, known))


def through_file(value: Any, save: Callable[..., Any] = torch.save,
                 load: Callable[..., Any] = torch.load, **options: Any) -> Any:
    """The value after it was saved and loaded."""
    file = io.BytesIO()
    save(value, file)
    file.seek(0)
    return load(file, **options)


def through_exported_file(program: Any) -> Any:
    return through_file(program, torch.export.save, torch.export.load)


def weighted_gradients(outputs: Iterable[Tensor], leaves: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of a weighted sum of all outputs that have one."""
    learned = [out for out in outputs if out.requires_grad]
    weights = [torch.linspace(-1, 1.5, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
               for out in learned]
    return torch.autograd.grad(learned, list(leaves), weights)


def outputs_and_gradients(call: Callable[..., Any], parameters: Iterable[Tensor], *args: Any,
                          ) -> list[Tensor]:
    """All outputs, then the gradients of a weighted sum of them."""
    outputs = flat(call(*args))
    return [*(out.detach() for out in outputs), *weighted_gradients(outputs, parameters)]


def run_on_copies(call: Callable[..., Any], *leaves: Tensor) -> list[Tensor]:
    """All outputs of call(*leaves), then the gradients of the leaves, which get none themselves."""
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    return outputs_and_gradients(call, copies, *copies)


def _parts() -> dict[str, tuple[str, ...]]:
    """What stands in the lists that our operators take, by the names of these lists."""
    tensors = {"state": ("v", "a", "i", "r", "z"),
               "recurrence": ("w_rec", "delay", "delay_kernel", "recurrent_mask"),
               "projection": ("w_in", "bias", "x_bits"), "readout": ("w_out", "p", "b_out"),
               "saved": ("y", "bits", "smooth_z", "carry"),
               "g_traces": ("g_trace_v", "g_trace_a", "g_threshold"),
               "g_state": ("g_v", "g_a", "g_i", "g_z"), "g_readout": ("g_p", "g_p_last")}
    return tensors | {"constants": _ops.Constants._fields, "numbers": _ops.Numbers._fields}


def _whole(operator: Any, args: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Arguments and their values; torch leaves out defaults at the end."""
    schema = operator._schema.arguments
    return zip(schema, [*args, *(argument.default_value for argument in schema[len(args):])],
               strict=True)


def named(operator: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of a call of an operator by the names of its schema, those in lists by their
    own.

    requested: the names of the outputs that it is asked for.
    """
    found: dict[str, Any] = {}
    for argument, value in _whole(operator, args):
        names = _parts().get(argument.name)
        if names is None:
            found[argument.name] = value
        else:
            found |= dict(zip(names, [*value, *[None] * (len(names) - len(value))], strict=True))
    if "outputs" in found:
        found["requested"] = {
            name for name in _ops._C.outputs if _ops.has_bit("outputs", found["outputs"], name)}
    return found


def mapped(args: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """The same arguments with all tensors changed, those in lists too."""
    def of(value: Any) -> Any:
        return [of(part) for part in value] if isinstance(value, list) else \
            change(value) if isinstance(value, Tensor) else value

    return tuple(of(value) for value in args)


def detached(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments without their graph."""
    return mapped(args, Tensor.detach)


def cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """The same arguments with all real numbers in this dtype."""
    return mapped(args, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def changed(operator: Any, args: tuple[Any, ...], **changes: Any) -> tuple[Any, ...]:
    """The same with some others."""
    given = named(operator, args)
    assert set(changes) <= set(given), set(changes) - set(given)
    given |= changes
    if "requested" in changes:
        given["outputs"] = _ops.make_mask("outputs", changes["requested"])

    def parts(name: str, value: Any) -> list[Any]:
        """Of a list as long as it was; of one that was empty all, unless they are None still."""
        found = [given[part] for part in _parts()[name]]
        return found[:len(value)] if value or all(part is None for part in found) else found

    return tuple(parts(argument.name, value) if argument.name in _parts()
                 else given[argument.name] for argument, value in _whole(operator, args))
