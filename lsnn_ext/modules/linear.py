"""A linear map of spikes, a replacement for nn.Linear."""
from torch import Tensor, nn

from .. import functional
from ..functional import PackedSpikes


class Linear(nn.Linear):
    """nn.Linear for whole sequences of spikes: in front of a layer, or as its readout.

    Arguments, parameters, their names and their initialization are those of nn.Linear, so state
    dicts fit both.

    On the CPU long sequences are computed in reused memory, and event by event where the input is
    mostly zero. A gradient that is constant in time, such as that of a mean over time, is written
    once. Short sequences, other devices, autocast and torch.compile use the product of nn.Linear.
    Results agree with nn.Linear up to rounding, since sums have another order.
    """

    def forward(self, input: Tensor | PackedSpikes) -> Tensor:
        """x (..., in_features), or spikes as bits, -> (..., out_features), with gradients of any
        order. Raises as functional.linear."""
        return functional.linear(input, self.weight, self.bias)
