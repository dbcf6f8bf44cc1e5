"""A linear map of spikes, in place of nn.Linear."""
from torch import Tensor, nn

from .. import functional
from ..functional import PackedSpikes


class Linear(nn.Linear):
    """nn.Linear for whole sequences of spikes: before a layer, or behind it as its readout.

    in_features, out_features, bias, device, dtype: as in nn.Linear, and so are the parameters,
    their names and how they are drawn; a state_dict of one fits the other.

    On the CPU long sequences are computed in reused memory, by events where the input is mostly
    zero, as spikes are; a gradient that is the same at each step, as behind a mean over time, is
    written once. Whatever is short, on another device, under autocast or torch.compile is
    nn.Linear's own product. Sums are made in another order than by nn.Linear: results agree to
    rounding.
    """

    def forward(self, input: Tensor | PackedSpikes) -> Tensor:
        """x (..., in_features), or spikes as bits, -> (..., out_features), with gradients of any
        order. Raises as functional.linear."""
        return functional.linear(input, self.weight, self.bias)
