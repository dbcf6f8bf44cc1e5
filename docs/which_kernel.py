"""Writes docs/which_kernel.md: what computes a call. Everything in its tables is found by making
the calls: python docs/which_kernel.py."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lsnn_ext import _ops, functional, reference
from lsnn_ext.models import MODELS

T, B, I, N, O = 60, 64, 40, 96, 10
K: dict[str, Any] = {"alpha": 0.9375, "theta": 0.25, "rho": 0.96875}
PAGE = Path(__file__).with_name("which_kernel.md")
NONE = "none"


class Seen(TorchDispatchMode):
    """The names of our operators in the order of their first call."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lsnn" and func._opname not in ("buffer", *self.names):
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def _written(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or NONE


def _tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"dense": torch.randn(T, B, I), "spikes": (torch.rand(T, B, I) < 0.05).float(),
            "current": torch.rand(T, B, N), "w_in": torch.randn(N, I) / 4,
            "w_rec": torch.randn(N, N) / 16, "w_out": torch.randn(O, N) / 16,
            "w_decay": torch.full((N,), 0.9)}


Call = Callable[[dict[str, Tensor]], Any]
CALLS: dict[str, Call] = {
    "`alif` of a current": lambda t: functional.alif(t["current"], t["w_rec"], **K)[0],
    "the same, sequences of unequal length": lambda t: functional.alif(
        t["current"], t["w_rec"], **K, lengths=[T - k % 9 for k in range(B)])[0],
    "`layer`, dense inputs": lambda t: functional.layer(t["dense"], t["w_in"], t["w_rec"],
                                                        **K).spikes,
    "`layer`, inputs that are mostly zero": lambda t: functional.layer(
        t["spikes"], t["w_in"], t["w_rec"], **K).spikes,
    "the same with a readout": lambda t: functional.layer(
        t["spikes"], t["w_in"], t["w_rec"], w_out=t["w_out"], k_out=0.9, spikes=False,
        **K).readout,
    "`linear`, inputs that are mostly zero": lambda t: functional.linear(t["spikes"], t["w_in"]),
    "`leaky_readout`": lambda t: functional.leaky_readout(t["spikes"], t["w_in"], 0.9)[0],
    "the same with a decay that learns": lambda t: functional.leaky_readout(
        t["spikes"], t["w_in"], t["w_decay"])[0],
}


def _passes(call: Call) -> tuple[list[str], list[str], list[str]]:
    """Operators of the forward pass, of the backward pass, and of a graph of torch.compile."""
    leaves = {name: value.requires_grad_(name.startswith("w")) for name, value in
              _tensors().items()}
    with Seen() as forward:
        y = call(leaves)
    with Seen() as backward:
        y.square().sum().backward()
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.extend(str(node.target).split(".")[1] for node in graph.graph.nodes
                     if str(node.target).startswith("lsnn."))
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(call, fullgraph=True, backend=backend)(_tensors())
    return forward.names, backward.names, found


def _agrees(model: str, dtype: torch.dtype, compiled: bool = False, **more: Any) -> bool:
    """Whether spikes of the operator are those of the reference, and a gradient comes back;
    compiled: as one graph of torch.compile, forward and backward."""
    torch.manual_seed(0)
    x = torch.randint(0, 9, (30, 3, 12)).to(dtype) / 4
    w = (torch.randint(-8, 9, (12, 12)).to(dtype) / 64).requires_grad_()
    torch._dynamo.reset()
    operator: Any = functional.alif
    if compiled:
        operator = torch.compile(operator, fullgraph=True, backend="aot_eager")
    made = [alif(x, w, alpha=0.9375, theta=0.5, rho=0.96875, beta=0.5, dynamics=model, **more)[0]
            for alif in (operator, reference.alif)]
    (gradient,) = torch.autograd.grad(made[0].sum(), w)
    return bool(made[1].any()) and torch.equal(*made) and bool(gradient.isfinite().all())


CASES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}), "float64": (torch.float64, {}),
    "bfloat16 inputs": (torch.bfloat16, {}), "lengths": (torch.float32, {"lengths": [30, 9, 0]}),
    "delays": (torch.float32, {"delay": torch.arange(144).view(12, 12) % 3}),
    "checkpoints": (torch.float32, {"checkpoint_every": 16}),
    "torch.compile": (torch.float32, {"compiled": True}),
}


def _design(N: int, dtype: str, device: str) -> str:
    options = _ops.Options(design=_ops._C.designs.index("automatic"))
    try:
        plan = _ops._C.plan(500, 64, N, dtype=dtype, device=device, options=list(options))
    except ValueError:
        return NONE
    return f"{plan['forward']['design']} / {plan['backward']['design']}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def page() -> str:
    """The text of docs/which_kernel.md."""
    calls = [[what, *map(_written, _passes(call))] for what, call in CALLS.items()]
    models = [[f"`{name}`", *("yes" if _agrees(name, dtype, **more) else "**no**"
                              for dtype, more in CASES.values())] for name in MODELS]
    designs = [[str(size), *(_design(size, dtype, card) for card in ("h100", "a100", "rtx4090")
                             for dtype in ("float32", "float64"))]
               for size in (64, 128, 220, 512, 1024, 2048)]
    return "\n".join([
        "# Which kernel does what", "",
        "Made by `python docs/which_kernel.py`, which makes the calls and looks at what runs.", "",
        f"## Operators of a call on the CPU, T = {T}, B = {B}, I = {I}, N = {N}, float32", "",
        *_table(["call of `lsnn_ext.functional`", "forward", "backward",
                 "inside of `torch.compile`, without gradients"], calls), "",
        "The operators have no gradient of the decay of a readout, so one that learns, `tau_out` "
        "of an `LSNN`, is computed behind the recurrence, by the operator of the recurrence: as "
        "neurons whose spikes do nothing. It is a call over all steps, as all others are.", "",
        f"Where {NONE} stands PyTorch's own operators do all. `ALIF`, `LIF` and `LSNN` call "
        "`layer`. Their `step`, and short sequences without gradients on the CPU, take no operator "
        "but a prepared layer: the same kernels, with what follows from the parameters kept. On "
        "CUDA the projection stands in front as a product of PyTorch, or of `linear_events` where "
        "inputs are bits in float32. On other devices, and "
        "inside of `lsnn_ext.use_reference()`, `lsnn_ext.reference` computes everything.", "",
        "## Models on the CPU: spikes equal to the reference, gradients finite", "",
        *_table(["model", *CASES], models), "",
        "## Designs of the CUDA kernels, forward / backward, T = 500, B = 64", "",
        *_table(["N", *(f"{card} {dtype}" for card in ("H100", "A100", "RTX 4090")
                        for dtype in ("float32", "float64"))], designs), "",
        "As `lsnn_ext._C.plan` chooses them, [kernels.md](kernels.md) explains how.", ""])


if __name__ == "__main__":
    PAGE.write_text(page())
