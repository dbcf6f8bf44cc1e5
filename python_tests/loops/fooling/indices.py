"""Which input a step reads, and how many steps there are."""
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fooling.base import I, Net, T, add, fused, loop


@fused
class Plain(Net):
    def forward(self, x: Tensor) -> Any:
        v, z = self.zeros(x)
        out = []
        for t in range(len(x)):
            v, z = self.step(x[t], v, z)
            out.append(z)
        return torch.stack(out)


add(fused, Net, "order",
    Reversed=lambda self, x: (x[t] for t in reversed(range(len(x)))),
    Flipped=lambda self, x: x.flip(0),
    Negative=lambda self, x: (x[-1 - t] for t in range(len(x))),
    EverySecondInput=lambda self, x: (x[2 * t] for t in range(len(x) // 2)),
    EverySecondFromOne=lambda self, x: (x[t] for t in range(1, len(x), 2)),
    FirstInput=lambda self, x: (x[0] for _ in range(len(x))),
    OverArangeOfNumPy=lambda self, x: (x[t] for t in np.arange(len(x))),
    RowsByNumPy=lambda self, x: (x[t, : np.int64(2)].repeat(np.int32(2), 1)[: x.shape[1]]
                                 for t in range(len(x))),
    LastInput=lambda self, x: (x[-1] for _ in range(len(x))),
    FixedSteps=lambda self, x: (x[t] for t in range(6)),
    AllButLast=lambda self, x: (x[t] for t in range(len(x) - 1)),
    Part=lambda self, x: (x[t] for t in range(3, 9)),
    WithNext=lambda self, x: (x[t] - x[t + 1] for t in range(len(x) - 1)),
    WithMirrored=lambda self, x: (x[t] + x[len(x) - 1 - t] for t in range(len(x))),
    Unbound=lambda self, x: x.unbind(0),
    UnboundBackwards=lambda self, x: reversed(x.unbind(0)),
    Selected=lambda self, x: (x.select(0, t) for t in range(len(x))),
    Sliced=lambda self, x: (x[t:t + 1].squeeze(0) for t in range(len(x))))

add(loop, Net, "order",
    Permuted=lambda self, x: (x[t] for t in (3, 0, 7, 1, 1, 5, 2, 10, 9, 4)),
    AlmostInOrder=lambda self, x: (x[t] for t in [*range(6), 7, 6, *range(8, len(x))]),
    Twice=lambda self, x: (x[t // 2] for t in range(len(x))),
    Modulo=lambda self, x: (x[t % 4] for t in range(len(x))),
    AcrossZero=lambda self, x: (x[t - 4] for t in range(len(x))),  # t < 4: from the end
    WithPrevious=lambda self, x: (x[t] - x[t - 1] for t in range(len(x))),  # first: x[-1]
    SplitInput=lambda self, x: (part.squeeze(0) for part in x.split(1)),
    SplitUnevenly=lambda self, x: (part.sum(0) for part in x.split(3)),  # 3, 3, ... and the rest
    Chunked=lambda self, x: (part[0] for part in x.chunk(5)),
    TensorIndex=lambda self, x: (x[torch.tensor(t)] for t in range(len(x))),
    OverArange=lambda self, x: (x[t] for t in torch.arange(len(x))),
    Narrowed=lambda self, x: (x.narrow(0, t, 1)[0] for t in range(len(x))),
    Window=lambda self, x: (x[t:t + 3].sum(0) for t in range(len(x))),  # shorter at the end
    GrowingWindow=lambda self, x: (x[:t + 1].sum(0) for t in range(len(x))),
    TwoAxes=lambda self, x: (x[t] + x[t, :, t % I, None] for t in range(len(x))),
    DiagonalIndex=lambda self, x: (x[t] + x[t, 0, t] for t in range(min(x.shape))))


def put_batch_first(x: Tensor, call: int) -> tuple[Any, ...]:
    return (x.transpose(0, 1).contiguous(),)


add(fused, Net, "forward given",
    BatchFirst=(lambda self, x: self.over(
                    x.transpose(0, 1), (x[:, t] for t in range(x.size(1)))).transpose(0, 1),
                put_batch_first),
    TimeLast=(lambda self, x: self.over(
                  x.permute(2, 0, 1), (x[..., t] for t in range(x.shape[-1]))),
              lambda x, call: (x.permute(1, 2, 0).contiguous(),)),
    Transposed=(lambda self, x: Net.forward(self, x.transpose(0, 1)), put_batch_first))


@fused
class Recursive(Net):
    """No statement of Python loops."""

    def go(self, x: Tensor, t: int, v: Tensor, z: Tensor) -> list[Tensor]:
        if t == len(x):
            return []
        v, z = self.step(x[t], v, z)
        return [z, *self.go(x, t + 1, v, z)]

    def forward(self, x: Tensor) -> Any:
        return torch.stack(self.go(x, 0, *self.zeros(x)))


add(loop, Net, "prepare order",
    # A parameter with a row for each step, and another layer at each step.
    BiasOverTime=(lambda self: setattr(self, "bias", nn.Parameter(torch.zeros(T + 2, I))),
                  lambda self, x: (x[t] + self.bias[t] for t in range(len(x)))),
    LayerOverTime=(lambda self: setattr(self, "layers", nn.ModuleList(
                       [nn.Linear(I, I) for _ in range(T)])),
                   lambda self, x: (layer(x_t) for layer, x_t in zip(
                       self.layers, x, strict=False))))
