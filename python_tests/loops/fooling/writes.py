"""Writes: in place, through views, into lists, and to what the caller owns."""
from typing import Any

import torch
from torch import Tensor

from fooling.base import N, Net, Spike, T, fused, loop, refused


class Writer(Net):
    """Programs that write something in each step."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        """Writes to v or z; returns what becomes the membrane, None for v itself."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            w = self.write(v, z)
            v = v if w is None else w
            out.append(z)
        return torch.stack(out), v


@fused
class InPlace(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v = self.beta * v
            v += self.feed(x_t)
            v += self.back(z)
            v -= z.detach() * self.threshold
            z = Spike.apply(v - self.threshold)
            out.append(z)
        return torch.stack(out)


@loop
class SameMembrane(Net):
    """One tensor for the membrane, for all steps."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v.mul_(0.5).add_(self.feed(x_t)).add_(self.back(z))
            z = Spike.apply(v - self.threshold)
            v.sub_(z.detach())
            out.append(z)
        return torch.stack(out), v


@loop
class ListedThenWritten(Net):
    """The list holds one tensor, which the loop writes to: all its entries are the last value."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v.mul_(0.5).add_(self.feed(x_t).detach())
            out.append(v)
        return torch.stack(out)


@loop
class OtherNameWritten(Writer):
    """A second name of the membrane sees the write."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        other = v
        v *= 0.5
        return other


@loop
class SpikesWrittenLater(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        with torch.no_grad():
            z.mul_(0.5)


@loop
class ThroughView(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        half = v[:, :4]
        half *= 0.5


@loop
class ThroughTranspose(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v.t()[0] *= 0.5


@loop
class ThroughReshape(Writer):
    """reshape is a view here."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        v.reshape(-1)[:5] -= 0.25


@loop
class ThroughContiguous(Writer):
    """contiguous is the tensor itself here."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        v.contiguous().mul_(0.5)


@loop
class ThroughData(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v.data.mul_(0.5)


@loop
class ThroughDetached(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v.detach().mul_(0.5)


@loop
class DataReplaced(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v.data = v.data * 0.5


@loop
class ThroughNumpy(Writer):
    """An array that shares the memory."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        w = v.detach().clone()
        w.numpy()[:, 0] = 0.5
        return w


@loop
class ByItem(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v[:, 0] = 0.25
        v[0] *= 0.5


@loop
class Masked(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v[z > 0] = 0.0


@loop
class MaskedFill(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v.masked_fill_(z > 0, 0.25)


@loop
class MaskedAdd(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v[z > 0] -= 0.5


@loop
class Out(Writer):
    """out= of a function."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        with torch.no_grad():
            torch.mul(v, 0.5, out=v)


@loop
class Copied(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        w = torch.empty_like(v)
        w.copy_(v * 0.5)
        return w


@loop
class Scattered(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        index = torch.tensor([0, 3, 3]).expand(len(v), 3)
        return v.scatter_add(1, index, -0.25 * z[:, :3]).index_fill_(1, torch.tensor([1]), 0.0)


@loop
class DetachedInPlace(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        v.detach_()


@loop
class LeafInside(Writer):
    """The state becomes a leaf in each step."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        return v.detach().requires_grad_()


@loop
class Resized(Writer):
    def write(self, v: Tensor, z: Tensor) -> Any:
        w = v.detach().clone()
        w.resize_(len(w) + 1, N)
        w[-1] = 0
        return w[:-1]


@loop
class Zeroed(Writer):
    """A scratch tensor is set to zero in each step, and kept between them."""

    def write(self, v: Tensor, z: Tensor) -> Any:
        scratch = torch.zeros_like(v)
        scratch.zero_().add_(z.detach()).neg_()
        return v + scratch / 4


@refused("input|argument")
class InputWritten(Net):
    def forward(self, x: Tensor) -> Any:
        x[0] = 0.5
        return self.over(x, x)


@refused("input|argument")
class InputScaled(Net):
    def forward(self, x: Tensor) -> Any:
        return self.over(x, x.mul_(0.5))


@refused("input|argument|shares")
class InputWrittenThroughView(Net):
    """Each step clears the input that it has read."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t.clone(), v, z)
            out.append(z)
            x_t.zero_()
        return torch.stack(out)


@refused("parameter|weight")
class ParameterWritten(Net):
    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.back.weight.fill_diagonal_(0)
        return self.over(x, x)


@refused("parameter|shares")
class ParameterClamped(Net):
    def forward(self, x: Tensor) -> Any:
        self.feed.weight.data.clamp_(-0.25, 0.5)
        return self.over(x, x)


@refused("parameter|weight|data")
class ParameterThroughData(Net):
    def forward(self, x: Tensor) -> Any:
        self.feed.bias.data = self.feed.bias.data * 0.5
        return self.over(x, x)


@loop
class BufferCounted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("trace", torch.zeros(N, dtype=self.dtype))

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t, v, z)
            self.steps += 1
            self.trace.copy_(0.5 * self.trace + z.detach().sum(0))
            out.append(z)
        return torch.stack(out)


@loop
class BufferRead(BufferCounted):
    """The buffer is read by the next step and by the next call."""

    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for x_t in x:
            v, z = self.step(x_t - self.trace.sum() / 512, v, z)
            self.trace.mul_(0.5).add_(z.detach().sum(0))
            out.append(z)
        return torch.stack(out)


@loop
class BufferByIndex(Net):
    """A buffer that holds the last spikes over time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(T, N, dtype=self.dtype))

    def forward(self, x: Tensor) -> Any:
        spikes = self.over(x, x)
        for t, z in enumerate(spikes):
            self.last[t] = z.detach().sum(0)
        return spikes * self.last[0]
