"""Values of tensors that Python reads: a recording would hold them for ever."""
import contextlib
import copy
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fooling.base import N, Net, Spike, add, fused, loop, refused


class Reader(Net):
    """Programs that do something with the spikes of each step."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        """Returns a factor of the membrane."""
        raise NotImplementedError

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x, v, z)
        return v * self.read(z, v), z

    def forward(self, x: Tensor) -> Any:
        return self.over_with_membrane(x)


# ----------------------------------------------------------------------------------------- refused
def read_by_assertion(self: Net, z: Tensor, v: Tensor) -> float:
    assert (z >= 0).all()
    return 1.0


def read_as_length(self: Net, z: Tensor, v: Tensor) -> float:
    factor = 1.0
    for _ in range(z[:, 0].sum().long()):
        factor *= 0.5
    return factor


@torch.jit.script
def scripted(z: Tensor) -> Tensor:
    """A branch on a value inside of a script."""
    return z * 0 + 0.5 if bool(z.sum() > 8) else z * 0 + 1


def write_to_storage(self: Net, z: Tensor, v: Tensor) -> Tensor:
    ones = torch.zeros_like(z)
    ones.untyped_storage().copy_(torch.ones_like(z).untyped_storage())
    return ones / 2


# Other branches than the recorded ones run the original.
add(loop, Reader, "read",
    Branch=lambda self, z, v: 0.5 if z.sum() > 8 else 1.0,
    AnyOf=lambda self, z, v: 0.5 if torch.any(z[:, 0] > 0) else 1.0,
    Asserts=read_by_assertion,
    InList=lambda self, z, v: 0.5 if z.sum() in [z.new_tensor(8.0), z.new_tensor(9.0)] else 1.0,
    BuiltinMax=lambda self, z, v: max(z[0].sum(), z[1].sum()) / 4,
    NeverTrue=lambda self, z, v: 0.5 if torch.isnan(v).any() or v.max() > 1e6 else 1.0)

for name, reason, read in (
    ("Item", "number of a tensor", lambda self, z, v: 0.5 if z.sum().item() > 8 else 1.0),
    ("Float", "float", lambda self, z, v: 1 - float(z.detach().mean())),
    ("Int", "int", lambda self, z, v: 1 / (1 + int(z.sum()))),
    ("AsIndex", "index|getitem", lambda self, z, v: [1.0, 0.5, 0.25, 0.0][z[:, 0].sum().long()]),
    ("AsLength", "range|index|int", read_as_length),
    ("ToList", "number", lambda self, z, v: torch.tensor(z.tolist(), dtype=z.dtype) + 0.5),
    ("Numpy", "number", lambda self, z, v: 1 - torch.from_numpy(z.detach().numpy().copy())),
    ("AsArray", "array|numpy", lambda self, z, v: 1 - torch.as_tensor(
        np.asarray(z.detach()).mean())),
    ("NumpyFunction", "array|numpy|method|ufunc", lambda self, z, v: 1 - np.tanh(z.detach()) / 2),
    ("Dlpack", "dlpack", lambda self, z, v: 1 - torch.from_dlpack(z.detach())),
    ("Prints", "repr|str|format", lambda self, z, v: (
        1.0 if "1." in repr(z.detach()[0, :1]) else 0.5)),
    ("Formats", "format|item", lambda self, z, v: float(f"{z.detach().mean():.2f}")),
    ("Equal", "equal", lambda self, z, v: 0.5 if torch.equal(z[0], z[1]) else 1.0),
    ("AllClose", "allclose", lambda self, z, v: (
        0.5 if torch.allclose(z[0].sum(), z[1].sum()) else 1.0)),
    ("CountsByShape", "nonzero|shape", lambda self, z, v: 1 / (1 + len(torch.nonzero(z)))),
    ("MaskedSelection", "index|getitem|shape", lambda self, z, v: (
        1 / (1 + v.detach()[z > 0].numel()))),
    ("Unique", "unique|shape", lambda self, z, v: 1 / len(torch.unique(z.sum(1)))),
    ("Scripted", "_local_scalar_dense", lambda self, z, v: scripted(z.detach())),
    ("StorageRead", "storage", lambda self, z, v: 1 - z.detach().untyped_storage()[7] / 256),
    ("StorageWrite", "storage", write_to_storage),
    ("PythonOfElements", "apply_|map_", lambda self, z, v: z.detach().clone().apply_(
        lambda number: 1 - number / 2)),
):
    add(refused(reason), Reader, "read", **{name: read})


@refused("grad")
class GradientInside(Net):
    """Eligibility by autograd inside of the loop."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            w = v.detach().requires_grad_()
            (g,) = torch.autograd.grad((w * w).sum(), w)
            return self.step(x, v - g / 8, z)


@refused("backward")
class BackwardInside(Net):
    def result(self, x: Tensor, spikes: Tensor) -> Any:
        if spikes.requires_grad:
            spikes.sum().backward()
        return spikes.detach()


# ------------------------------------------------------------------------------------------- equal
def read_errors(self: Net, z: Tensor, v: Tensor) -> float:
    """An operator that raises for some values, which Python notices."""
    matrix = z[:2, :2] + torch.eye(2, dtype=z.dtype) / 2
    try:
        torch.linalg.cholesky(matrix.detach())
    except RuntimeError:
        return 0.5
    return 1.0


def compute_below_the_mode(self: Net, z: Tensor, v: Tensor) -> Tensor:
    """Under DisableTorchFunction, no call of torch is seen."""
    with torch._C.DisableTorchFunction():
        return 1 - z.detach() / 2


def make_constants(self: Net, z: Tensor, v: Tensor) -> Tensor:
    """Tensors from lists and arrays, the same in each call."""
    part = torch.from_numpy(np.linspace(0.0, 0.5, N).round(1))
    return part + torch.tensor([0.5] * (N - 1) + [0.25], dtype=z.dtype)


def read_shapes_and_flags(self: Net, z: Tensor, v: Tensor) -> float:
    """What does not depend on values may be read."""
    is_plain = z.is_contiguous() and z.dim() == 2 and z.stride(1) == 1 and z.is_floating_point()
    assert is_plain and z.grad_fn is not None or not torch.is_grad_enabled()
    return z.shape[1] / N if z.dtype is torch.float64 and not z.is_cuda else 0.5


def suppress_errors(self: Net, z: Tensor, v: Tensor) -> float:
    """An error of Python that is caught in each step."""
    with contextlib.suppress(RuntimeError):
        z.view(3, 5, 7)
    return 0.5


add(loop, Reader, "read",
    # The shape depends on values, that of the result does not.
    MeanOfMasked=lambda self, z, v: 1 + v.detach()[z > 0].sum() / 64,
    ErrorOnValues=read_errors,
    Data=lambda self, z, v: 1 - z.data / 2,
    DeepCopy=lambda self, z, v: 1 - copy.deepcopy(z.detach()) / 2,
    Pickled=lambda self, z, v: 1 - pickle.loads(pickle.dumps(z.detach())) / 2,
    # torch.ops, below the functions of torch.
    DirectOperator=lambda self, z, v: torch.ops.aten.rsub.Scalar(z.detach() / 2, 1),
    BelowTheMode=compute_below_the_mode,
    FunctionalGradient=lambda self, z, v: 1 - torch.func.grad(
        lambda w: (w * w).sum())(z.detach()) / 4,
    FunctionalVmap=lambda self, z, v: torch.func.vmap(
        lambda row: 1 - row.sum() / 16)(z.detach())[:, None],
    Constants=make_constants,
    ShapesAndFlags=read_shapes_and_flags,
    Versions=lambda self, z, v: 1.0 if z._version == 0 else 0.5,  # the counter of writes
    Suppressed=suppress_errors)

add(loop, Net, "step_at",
    Checkpointed=lambda self, t, *args: checkpoint(self.step, *args, use_reentrant=False))


@loop
class Complex(Net):
    """A complex membrane."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        v = v.to(torch.complex128)
        out = []
        for x_t in x:
            v = (0.5 + 0.5j) * v + self.feed(x_t) + self.back(z)
            z = Spike.apply(v.real - 0.5)
            out.append(z)
        return torch.stack(out), torch.view_as_real(v)


# Constructors that no mode of torch intercepts.
NUMBERS = np.arange(1.0, N + 1) / 8
add(fused, Net, "order",
    OfNumbers=lambda self, x: torch.FloatTensor([1.0, 0.5, 1.0, 0.5, 1.0]).to(x.dtype) * x,
    OfNew=lambda self, x: x.new(len(x), 1, 1).fill_(0.5) * x,
    OfIntegers=lambda self, x: torch.IntTensor([2])[0] * x,
    OfSize=lambda self, x: torch.Tensor(len(x), 1, 1).fill_(0.5) * x,
    OfNothing=lambda self, x: torch.cat([torch.DoubleTensor(), x[0, 0, :1]]) * x,
    OfArray=lambda self, x: torch.tensor(NUMBERS)[:1] * x)
add(refused("from_numpy"), Net, "order",
    SharesArray=lambda self, x: torch.from_numpy(NUMBERS)[0] * x,
    MayShareArray=lambda self, x: torch.Tensor(NUMBERS)[0] * x)
