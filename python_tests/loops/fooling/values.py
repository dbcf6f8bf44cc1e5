"""Values of tensors that Python reads: a recording would hold them for ever."""
import contextlib
import copy
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fooling.base import N, Net, Spike, loop, refused


class Reader(Net):
    """Programs that do something with the spikes of each step."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        """Returns a factor of the membrane."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            v = v * self.read(z, v)
            out.append(z)
        return torch.stack(out), v


@refused("bool")
class Branch(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 0.5 if z.sum() > 8 else 1.0


@refused("bool")
class AnyOf(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 0.5 if torch.any(z[:, 0] > 0) else 1.0


@refused("bool")
class Asserts(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        assert (z >= 0).all()
        return 1.0


@refused("bool")
class InList(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 0.5 if z.sum() in [z.new_tensor(8.0), z.new_tensor(9.0)] else 1.0


@refused("bool")
class BuiltinMax(Reader):
    """max of Python compares."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        return max(z[0].sum(), z[1].sum()) / 4


@refused("item")
class Item(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 0.5 if z.sum().item() > 8 else 1.0


@refused("float")
class Float(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - float(z.detach().mean())


@refused("int")
class Int(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 / (1 + int(z.sum()))


@refused("index|getitem")
class AsIndex(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return [1.0, 0.5, 0.25, 0.0][z[:, 0].sum().long()]


@refused("range|index|int")
class AsLength(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        factor = 1.0
        for _ in range(z[:, 0].sum().long()):
            factor *= 0.5
        return factor


@refused("tolist")
class ToList(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return torch.tensor(z.tolist(), dtype=z.dtype) + 0.5


@refused("numpy")
class Numpy(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - torch.from_numpy(z.detach().numpy().copy())


@refused("array|numpy")
class AsArray(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - torch.as_tensor(np.asarray(z.detach()).mean())


@refused("array|numpy|method|ufunc")
class NumpyFunction(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - np.tanh(z.detach()) / 2


@refused("dlpack")
class Dlpack(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - torch.from_dlpack(z.detach())


@refused("repr|str|format")
class Prints(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1.0 if "1." in repr(z.detach()[0, :1]) else 0.5


@refused("format|item")
class Formats(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return float(f"{z.detach().mean():.2f}")


@refused("equal")
class Equal(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 0.5 if torch.equal(z[0], z[1]) else 1.0


@refused("allclose")
class AllClose(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 0.5 if torch.allclose(z[0].sum(), z[1].sum()) else 1.0


@refused("nonzero|shape")
class CountsByShape(Reader):
    """The number of spikes is a size."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 / (1 + len(torch.nonzero(z)))


@refused("index|getitem|shape")
class MaskedSelection(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 / (1 + v.detach()[z > 0].numel())


@refused("unique|shape")
class Unique(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 / len(torch.unique(z.sum(1)))


@loop
class MeanOfMasked(Reader):
    """The shape depends on values, that of the result does not."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 + v.detach()[z > 0].sum() / 64


@loop
class ErrorOnValues(Reader):
    """An operator that raises for some values, which Python notices."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        matrix = z[:2, :2] + torch.eye(2, dtype=z.dtype) / 2
        try:
            torch.linalg.cholesky(matrix.detach())
        except RuntimeError:
            return 0.5
        return 1.0


@loop
class Data(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - z.data / 2


@loop
class DeepCopy(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - copy.deepcopy(z.detach()) / 2


@loop
class Pickled(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - pickle.loads(pickle.dumps(z.detach())) / 2


@torch.jit.script
def scripted(z: Tensor) -> Tensor:
    """A branch on a value inside of a script."""
    return z * 0 + 0.5 if bool(z.sum() > 8) else z * 0 + 1


@refused("_local_scalar_dense")
class Scripted(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return scripted(z.detach())


@loop
class DirectOperator(Reader):
    """torch.ops, below the functions of torch."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        return torch.ops.aten.rsub.Scalar(z.detach() / 2, 1)


@loop
class BelowTheMode(Reader):
    """Under DisableTorchFunction, no call of torch is seen."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return 1 - z.detach() / 2


@refused("grad")
class GradientInside(Net):
    """Eligibility by autograd inside of the loop."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        with torch.enable_grad():
            for x_t in x:
                w = v.detach().requires_grad_()
                (g,) = torch.autograd.grad((w * w).sum(), w)
                v, z = self.step(x_t, v - g / 8, z)
                out.append(z)
        return torch.stack(out)


@refused("backward")
class BackwardInside(Net):
    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        if spikes.requires_grad:
            spikes.sum().backward()
        return spikes.detach()


@loop
class FunctionalGradient(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - torch.func.grad(lambda w: (w * w).sum())(z.detach()) / 4


@loop
class FunctionalVmap(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return torch.func.vmap(lambda row: 1 - row.sum() / 16)(z.detach())[:, None]


@loop
class Checkpointed(Net):
    def forward(self, x: Tensor) -> Any:
        from torch.utils.checkpoint import checkpoint

        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = checkpoint(self.step, x_t, v, z, use_reentrant=False)
            out.append(z)
        return torch.stack(out)


@refused("storage")
class StorageRead(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1 - z.detach().untyped_storage()[7] / 256


@refused("storage")
class StorageWrite(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        ones = torch.zeros_like(z)
        ones.untyped_storage().copy_(torch.ones_like(z).untyped_storage())
        return ones / 2


@refused("apply_|map_")
class PythonOfElements(Reader):
    def read(self, z: Tensor, v: Tensor) -> Any:
        return z.detach().clone().apply_(lambda number: 1 - number / 2)


@loop
class Constants(Reader):
    """Tensors from lists and arrays, the same in each call."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        part = torch.from_numpy(np.linspace(0.0, 0.5, N).round(1))
        return part + torch.tensor([0.5] * (N - 1) + [0.25], dtype=z.dtype)


@loop
class ShapesAndFlags(Reader):
    """What does not depend on values may be read."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        is_plain = z.is_contiguous() and z.dim() == 2 and z.stride(1) == 1 and z.is_floating_point()
        assert is_plain and z.grad_fn is not None or not torch.is_grad_enabled()
        return z.shape[1] / N if z.dtype is torch.float64 and not z.is_cuda else 0.5


@loop
class Versions(Reader):
    """Reads the counter of writes."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        return 1.0 if z._version == 0 else 0.5


@loop
class Suppressed(Reader):
    """An error of Python that is caught in each step."""

    def read(self, z: Tensor, v: Tensor) -> Any:
        with contextlib.suppress(RuntimeError):
            z.view(3, 5, 7)
        return 0.5


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
