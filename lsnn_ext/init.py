"""Weights of the LSNN paper: with signs of Dale's law, balanced, or without, both sparse."""
import math

import torch
from torch import Tensor, nn

from .modules import LSNN
from .modules.checks import check_number
from .modules.neuron import check_whole_number
from .modules.weights import find_synapses

__all__ = ["dale", "dale_", "signs", "sparse", "sparse_"]


def signs(n: int, excitatory: float = 0.75, *, shuffle: bool = False,
          generator: torch.Generator | None = None) -> Tensor:
    """Signs (n,) of neurons: -1 of the inhibitory ones, which come first, 1 of the excitatory ones.

    Args:
        n: how many neurons.
        excitatory: their share; int(excitatory * n) + 1 are, as in the paper's code, n at most.
        shuffle: in random order.
        generator: of the CPU, for the order. Default torch's global one.
    """
    check_whole_number("n", n, 1)
    check_number("excitatory", excitatory, "a share from 0 to 1", 1.0)
    found = torch.ones(n)
    found[: n - min(n, int(excitatory * n) + 1)] = -1.0
    return found[torch.randperm(n, generator=generator)] if shuffle else found


@torch.no_grad()
def dale_(weight: Tensor, signs: Tensor, connectivity: float = 1.0, *, mask: Tensor | None = None,
          generator: torch.Generator | None = None) -> Tensor:
    """Fills a weight (N, I), target first, with numbers of the signs (I,) of its sources.

    Magnitudes |N(0, 1)|; for each target the inhibitory ones are scaled so that its weights sum to
    0; then all are divided by the spectral radius that a square matrix of such numbers has, that of
    the weight itself where N = I. Last, a random share `connectivity` of them is kept, so the
    radius that acts is about sqrt(connectivity). Without inhibitory sources, or without excitatory
    ones, nothing is balanced.

    Args:
        weight: is written to.
        signs: (I,) of 1 and -1.
        connectivity: the share that is not 0, of the places that the mask allows.
        mask: (N, I) bool, False where there is no synapse. Default: all are.
        generator: of the CPU. Default torch's global one.

    Returns:
        weight.

    Raises:
        ValueError: other signs or shapes, or a connectivity that is no share.

    Source: the code of Bellec et al., NeurIPS 2018, which scales all inhibitory numbers once before
    it balances each target, and takes columns of one square matrix several times for more targets
    than sources.
    """
    N, n = _shape(weight)
    if tuple(signs.shape) != (n,) or not bool((signs.abs() == 1).all()):
        raise ValueError(f"signs: expected 1 and -1 of shape ({n},), got shape "
                         f"{tuple(signs.shape)} or other numbers")
    allowed = _allowed(weight, mask)
    sign = signs.to("cpu", torch.float64)
    # (targets, sources): as many targets as a square has, or more
    w = torch.randn(max(N, n), n, generator=generator, dtype=torch.float64).abs() * sign
    if N == n:
        w *= allowed
    negative, positive = -w.clamp(max=0).sum(1), w.clamp(min=0).sum(1)
    both = (negative > 0) & (positive > 0)
    scale = torch.where(both, positive / negative.where(both, 1.0), 1.0)
    w = torch.where(w < 0, w * scale[:, None], w)
    radius = float(torch.linalg.eigvals(w[:n]).abs().max())
    w = w[:N] / (radius if radius > 0 else 1.0)
    weight.copy_(w * _drawn(allowed, connectivity, generator))
    return weight


@torch.no_grad()
def sparse_(weight: Tensor, connectivity: float, *, mask: Tensor | None = None,
            generator: torch.Generator | None = None) -> Tensor:
    """Fills a weight (N, I), target first, with N(0, 1) / sqrt(I) at a random share of its places:
    the paper's start of networks without Dale's law.

    Args:
        weight, connectivity, mask, generator: as of dale_.

    Returns:
        weight.
    """
    N, n = _shape(weight)
    allowed = _allowed(weight, mask)
    w = torch.randn(N, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    weight.copy_(w * _drawn(allowed, connectivity, generator))
    return weight


def dale(net: LSNN, connectivity: float = 1.0, excitatory: float = 0.75, *,
         generator: torch.Generator | None = None) -> dict[Tensor, Tensor]:
    """Draws the weights of an LSNN anew, with Dale's law: all synapses of a neuron, and all of an
    input, have one sign.

    The first neurons are inhibitory, so the adaptive ones, which are last, are excitatory as long
    as they are not more than those. Signs of inputs are in random order; the readout has those of
    the neurons. So it is in each layer and direction. autapses=False leaves the diagonal at 0.

    Args:
        net: whose weight matrices are written to.
        connectivity: the share of synapses that are not 0, of each matrix. Default 1.
        excitatory: the share of excitatory neurons, and of excitatory inputs.
        generator: of the CPU. Default torch's global one.

    Returns:
        For each matrix (N, I) the signs (I,) of its sources, as DeepR and keep_signs take them.

    Source: as dale_.
    """
    neurons = net.neurons
    of_neurons = signs(neurons.hidden_size, excitatory)
    sources = signs(neurons.input_size, excitatory, shuffle=True, generator=generator)
    directions = ("", "_reverse")[:1 + neurons.bidirectional]
    found: dict[Tensor, Tensor] = {}
    for layer in range(neurons.num_layers):
        for direction in directions:
            found[neurons.get_parameter(f"weight_ih_l{layer}{direction}")] = sources
            found[neurons.get_parameter(f"weight_hh_l{layer}{direction}")] = of_neurons
        sources = of_neurons.repeat(len(directions))
    found[net.readout.weight] = sources
    masks = find_synapses(net)[1]
    for weight, sign in found.items():
        dale_(weight, sign, connectivity, mask=masks.get(weight), generator=generator)
    return found


def sparse(module: nn.Module, connectivity: float, *,
           generator: torch.Generator | None = None) -> None:
    """Draws all weight matrices of a module anew, as sparse_ does; diagonals that do not act stay
    0.

    Args:
        module: an LSNN, or any module.
        connectivity: the share of synapses that are not 0, of each matrix.
        generator: of the CPU. Default torch's global one.
    """
    weights, masks = find_synapses(module)
    for weight in weights:
        sparse_(weight, connectivity, mask=masks.get(weight), generator=generator)


def _shape(weight: Tensor) -> tuple[int, int]:
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(f"weight: expected shape (N, I), got {tuple(weight.shape)}")
    return weight.shape[0], weight.shape[1]


def _allowed(weight: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(weight.shape, dtype=torch.bool)
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool of shape {tuple(weight.shape)}, got {mask.dtype} of "
                         f"shape {tuple(mask.shape)}")
    return mask.cpu()


def _drawn(allowed: Tensor, connectivity: float, generator: torch.Generator | None) -> Tensor:
    """A random share of the allowed places, as a mask."""
    check_number("connectivity", connectivity, "a share from 0 to 1", 1.0)
    places = allowed.flatten().nonzero().squeeze(1)
    count = int(len(places) * connectivity + 1e-6)  # as DeepR counts
    kept = torch.zeros(allowed.numel(), dtype=torch.bool)
    kept[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return kept.view(allowed.shape)
