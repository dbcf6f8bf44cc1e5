"""Writes: in place, through views, into lists, and to what the caller owns."""
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Net, OwnLoop, Spike, T, add, fused, loop, refused


class Writer(Net):
    """Programs that write something in each step."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        """Writes to v or z, and returns what becomes the membrane."""
        return v

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x, v, z)
        return self.write(v, z), z

    def forward(self, x: Tensor) -> Any:
        return self.over_with_membrane(x)


@fused
class InPlace(Net):
    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v
        v += self.feed(x)
        v += self.back(z)
        v -= z.detach() * self.threshold
        return v, Spike.apply(v - self.threshold)


@loop
class SameMembrane(Writer):
    """One tensor for the membrane, for all steps."""

    def step(self, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v.mul_(0.5).add_(self.feed(x)).add_(self.back(z))
        z = Spike.apply(v - self.threshold)
        return v.sub_(z.detach()), z


@loop
class ListedThenWritten(OwnLoop):
    """The list holds one tensor, which the loop writes to: all its entries are the last value."""

    learns = False

    def iterate(self, x: Tensor, v: Tensor, z: Tensor) -> Any:
        for x_t in x:
            v.mul_(0.5).add_(self.feed(x_t).detach())
            yield v


class WriterInPlace(Writer):
    """Programs that write to the membrane or the spikes, and return nothing."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x, v, z)
        self.write(v, z)
        return v, z


def write_by_other_name(self: Net, v: Tensor, z: Tensor) -> Tensor:
    """A second name of the membrane sees the write."""
    other = v
    v *= 0.5
    return other


def write_spikes_later(self: Net, v: Tensor, z: Tensor) -> None:
    with torch.no_grad():
        z.mul_(0.5)


def write_through_numpy(self: Net, v: Tensor, z: Tensor) -> Tensor:
    """An array that shares the memory."""
    w = v.detach().clone()
    w.numpy()[:, 0] = 0.5
    return w


def write_by_item(self: Net, v: Tensor, z: Tensor) -> None:
    v[:, 0] = 0.25
    v[0] *= 0.5


def write_parts(self: Net, v: Tensor, z: Tensor) -> Tensor:
    """A reset as in copies of SpyTorch, and a refractory time that is counted down."""
    mask, count = z > 0, torch.zeros_like(v)
    reset = torch.zeros_like(v)
    reset[z > 0] = torch.ones_like(v)[z > 0]
    count[mask] = 2 * torch.ones_like(v)[mask]
    count[count > 0] -= 1.5
    return v - 0.25 * (reset + count) - 0.5 * torch.where(mask, v, 0.0)


def write_out(self: Net, v: Tensor, z: Tensor) -> None:
    """out= of a function."""
    with torch.no_grad():
        torch.mul(v, 0.5, out=v)


def add_masked(self: Net, v: Tensor, z: Tensor) -> None:
    v[z > 0] -= 0.5


def scatter(self: Net, v: Tensor, z: Tensor) -> Tensor:
    index = torch.tensor([0, 3, 3]).expand(len(v), 3)
    return v.scatter_add(1, index, -0.25 * z[:, :3]).index_fill_(1, torch.tensor([1]), 0.0)


def resize(self: Net, v: Tensor, z: Tensor) -> Tensor:
    w = v.detach().clone()
    w.resize_(len(w) + 1, N)
    w[-1] = 0
    return w[:-1]


def zero_scratch(self: Net, v: Tensor, z: Tensor) -> Tensor:
    """A scratch tensor is set to zero in each step, and kept between them."""
    scratch = torch.zeros_like(v)
    scratch.zero_().add_(z.detach()).neg_()
    return v + scratch / 4


add(loop, Writer, "write",
    OtherNameWritten=write_by_other_name,
    ThroughContiguous=lambda self, v, z: v.contiguous().mul_(0.5),  # the tensor itself here
    ThroughNumpy=write_through_numpy,
    MaskedFill=lambda self, v, z: v.masked_fill_(z > 0, 0.25),
    Copied=lambda self, v, z: torch.empty_like(v).copy_(v * 0.5),
    Scattered=scatter,
    DetachedInPlace=lambda self, v, z: v.detach_(),
    LeafInside=lambda self, v, z: v.detach().requires_grad_(),  # a leaf in each step
    Resized=resize,
    Zeroed=zero_scratch)

add(loop, WriterInPlace, "write",
    SpikesWrittenLater=write_spikes_later,
    ThroughView=lambda self, v, z: v[:, :4].mul_(0.5),
    ThroughData=lambda self, v, z: v.data.mul_(0.5),
    ThroughDetached=lambda self, v, z: v.detach().mul_(0.5),
    DataReplaced=lambda self, v, z: setattr(v, "data", v.data * 0.5),
    ByItem=write_by_item,
    Masked=lambda self, v, z: v.__setitem__(z > 0, 0.0),
    Out=write_out)
add(fused, WriterInPlace, "write", MaskedAdd=add_masked,
    MaskedAddOfTensor=lambda self, v, z: v.__setitem__(z > 0, v[z > 0] - self.feed.bias.sum()))


def write_part_of_old(self: Net, v: Tensor, z: Tensor) -> Tensor:
    """The part is that of the membrane before a write to it."""
    mask, w = z > 0, v.clone()
    part = w[mask]
    w *= 0.5
    w[mask] = part - v[mask] / 2 + 0.25
    return w


add(fused, Writer, "write", MaskedParts=write_parts, PartOfOld=write_part_of_old)


def change_mask(self: Net, x: Tensor, spikes: Tensor) -> Tensor:
    """The mask has as many entries, but others."""
    mask, out = spikes > 0, spikes + 1
    part = spikes.detach()[mask]
    mask.copy_(mask.flip(0))
    out[mask] = part
    return out


def write_other_mask(self: Net, x: Tensor, spikes: Tensor) -> Tensor:
    """The second mask is true where the first one is, by other numbers."""
    out = spikes + 1
    out[spikes > 0.5] = 2 * spikes[spikes > 0]
    return out


def write_other_part(self: Net, x: Tensor, spikes: Tensor) -> Tensor:
    """Both masks are results of one call, and equal in the recorded call."""
    first, second = (torch.stack((spikes, spikes + 1)) > -1).unbind(0)
    out = spikes + 1
    out[first] = 2 * spikes[second]
    return out


def write_by(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function whose gradient need not be finite where the mask is false."""
    def call(self: Net, x: Tensor, spikes: Tensor) -> Tensor:
        out, mask = torch.zeros_like(spikes), spikes > 0
        out[mask] = function(spikes[mask])
        return out

    return call


add(refused("shape depends"), Net, "result", MaskChanged=change_mask,
    PartRoot=write_by(torch.sqrt), PartInverse=write_by(lambda part: 1 / part),
    PartOver0=write_by(lambda part: part / 0), PartSquare=write_by(lambda part: part * part),
    PartTimesTensor=write_by(lambda part: part * torch.tensor(2.0)),
    PartCounted=lambda self, x, spikes: spikes + spikes[spikes > 0].numel() / 16,
    MaskOther=write_other_mask, MaskOfOneCall=write_other_part)
add(refused("origin"), Net, "result",
    PartsJoined=lambda self, x, spikes: torch.cat([spikes[spikes > 0], spikes[spikes == 0]]),
    PartReturned=lambda self, x, spikes: (spikes * torch.arange(1, N + 1))[spikes > 0] * 2)


class Buffered(Net):
    """The membranes of all steps in one tensor, which the next step reads."""

    def put(self, out: Tensor, t: int, v: Tensor) -> None:
        out[:, t] = v

    def get(self, out: Tensor, t: int) -> Tensor:
        return out[:, t]

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out, spikes = v.new_zeros(len(v), len(x), N), []
        for t, x_t in enumerate(x):
            v, z = self.step(x_t, self.get(out, t - 1) * 1, z)
            self.put(out, t, v)
            spikes.append(z)
        return torch.stack(spikes), out


def put_twice(self: Net, out: Tensor, t: int, v: Tensor) -> None:
    out[:, t] = v
    out[:, t - len(out[0])] = 0.5 * v


def put_then_row(self: Net, x: Tensor, spikes: Tensor) -> Any:
    """The second write changes a part of the first one."""
    out = torch.zeros_like(spikes)
    out[:, 1] = spikes[:, 1]
    out[0] = 0.25
    return out[:, 1] * 1, out[1] * 1


def put_then_scale(self: Net, x: Tensor, spikes: Tensor) -> Any:
    """The second result requires a gradient, which is 0."""
    out = torch.zeros_like(spikes)
    out[1] = spikes[1]
    out *= 0.5
    out[2] = torch.ones_like(out[2])
    return out[1] * 1, out[2]


def put_without_gradient(self: Net, x: Tensor, spikes: Tensor) -> Tensor:
    out = torch.zeros_like(spikes)
    out[0] = spikes[0]
    with torch.no_grad():
        out[1] = spikes[1]
        first = out[0]
    return out[1] + first


def put_other_numbers(self: Net, x: Tensor, spikes: Tensor) -> Tensor:
    """A write rounds to the dtype, and broadcasts."""
    out = torch.zeros_like(spikes, dtype=torch.float32)
    out[0], out[1] = spikes[0] / 3, spikes[1, :, :1].float()
    return out[0].double() + out[1]


add(fused, Buffered, "get", ReadBack=lambda self, out, t: out[..., t, :])
add(fused, Buffered, "put", PutTwice=put_twice)
add(fused, Net, "result", PutThenRow=put_then_row, PutThenScaled=put_then_scale,
    PutOtherNumbers=put_other_numbers)
add(fused, Net, "result learns", PutWithoutGradient=(put_without_gradient, False))


# ----------------------------------------------------------------------------------------- refused
def write_to_input(self: Net, x: Tensor) -> Tensor:
    x[0] = 0.5
    return x


add(refused("input|argument"), Net, "order", InputWritten=write_to_input,
    InputScaled=lambda self, x: x.mul_(0.5))


@refused("input|argument|shares")
class InputWrittenThroughView(Net):
    """Each step clears the input that it has read."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x.clone(), v, z)
        x.zero_()
        return v, z


# ------------------------------------------------------------------------------------------ buffers
@loop
class BufferCounted(Net):
    def prepare(self) -> None:
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("trace", torch.zeros(N, dtype=self.dtype))

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x, v, z)
        self.steps += 1
        self.trace.copy_(0.5 * self.trace + z.detach().sum(0))
        return v, z


@loop
class BufferRead(BufferCounted):
    """The buffer is read by the next step and by the next call."""

    def step_at(self, t: int, x: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v, z = self.step(x - self.trace.sum() / 512, v, z)
        self.trace.mul_(0.5).add_(z.detach().sum(0))
        return v, z


@loop
class BufferByIndex(Net):
    """A buffer that holds the last spikes over time."""

    def prepare(self) -> None:
        self.register_buffer("last", torch.zeros(T, N, dtype=self.dtype))

    def result(self, x: Tensor, spikes: Tensor) -> Any:
        for t, z in enumerate(spikes):
            self.last[t] = z.detach().sum(0)
        return spikes * self.last[0]
