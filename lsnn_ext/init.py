"""Initial weights of the LSNN paper: sparse, and with Dale's law also balanced."""
import math

import torch
from torch import Tensor, nn

from .modules import LSNN
from .modules.checks import check_number, check_whole_number
from .modules.weights import find_synapses

__all__ = ["dale", "dale_", "signs", "sparse", "sparse_"]


def signs(n: int, excitatory: float = 0.75, *, shuffle: bool = False,
          generator: torch.Generator | None = None) -> Tensor:
    """Returns signs (n,) of neurons: first -1 (inhibitory), then 1 (excitatory).

    Args:
        n: number of neurons.
        excitatory: fraction of excitatory neurons; they are int(excitatory * n) + 1, as in the
            paper's code, but at most n. Default 0.75.
        shuffle: whether to shuffle the signs. Default False.
        generator: of the CPU. Default: torch's global one.

    Raises:
        TypeError, ValueError: an argument of the wrong type or range.
    """
    check_whole_number("n", n, 1)
    check_number("excitatory", excitatory, "a fraction from 0 to 1", 1.0)
    found = torch.ones(n)
    found[: n - min(n, int(excitatory * n) + 1)] = -1.0
    return found[torch.randperm(n, generator=generator)] if shuffle else found


@torch.no_grad()
def dale_(weight: Tensor, signs: Tensor, connectivity: float = 1.0, *, mask: Tensor | None = None,
          generator: torch.Generator | None = None) -> Tensor:
    """Fills a weight (N, I), targets first, with random numbers of the signs (I,) of its sources.

    Magnitudes are |N(0, 1)|. For each target the inhibitory ones are scaled so that its weights sum
    to 0. Then all are divided by the spectral radius of a square matrix of such numbers, the weight
    itself if N = I. Last, a random fraction `connectivity` is kept, so the effective radius is
    about sqrt(connectivity). Without inhibitory or without excitatory sources nothing is balanced.

    Args:
        weight: (N, I), written in place.
        signs: (I,) of 1 and -1.
        connectivity: fraction of the places allowed by mask that is not 0. Default 1.
        mask: (N, I) bool, False where there is no synapse. Default: all True.
        generator: of the CPU. Default: torch's global one.

    Returns:
        weight.

    Raises:
        TypeError, ValueError: other signs or shapes, or a connectivity out of range.

    Source: the code of Bellec et al., NeurIPS 2018. There all inhibitory numbers are scaled once
    before each target is balanced, and for more targets than sources the columns of one square
    matrix repeat.
    """
    allowed = _get_mask(weight, mask)
    N, n = weight.shape
    if tuple(signs.shape) != (n,) or not bool((signs.abs() == 1).all()):
        raise ValueError(f"signs: expected 1 and -1 of shape ({n},), got shape "
                         f"{tuple(signs.shape)} or other numbers")
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
    weight.copy_(w * _draw_mask(allowed, connectivity, generator))
    return weight


@torch.no_grad()
def sparse_(weight: Tensor, connectivity: float, *, mask: Tensor | None = None,
            generator: torch.Generator | None = None) -> Tensor:
    """Fills a random fraction of a weight (N, I), targets first, with N(0, 1) / sqrt(I), the
    initialization of the paper without Dale's law. The rest is 0.

    Args:
        weight, connectivity, mask, generator: as of dale_.

    Returns:
        weight.
    """
    allowed = _get_mask(weight, mask)
    w = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    w /= math.sqrt(weight.shape[1])
    weight.copy_(w * _draw_mask(allowed, connectivity, generator))
    return weight


def dale(net: LSNN, connectivity: float = 1.0, excitatory: float = 0.75, *,
         generator: torch.Generator | None = None) -> dict[Tensor, Tensor]:
    """Initializes the weights of an LSNN with Dale's law: all synapses of a neuron, and all of an
    input, have one sign.

    The first neurons are inhibitory, so adaptive ones, which are last, are excitatory if there are
    enough of those. Signs of inputs are shuffled; the readout has the signs of the neurons. This
    holds for each layer and direction. With autapses=False the diagonal stays 0.

    Args:
        net: the LSNN, whose weight matrices are written in place.
        connectivity: fraction of synapses of each matrix that is not 0. Default 1.
        excitatory: fraction of excitatory neurons, and of excitatory inputs. Default 0.75.
        generator: of the CPU. Default: torch's global one.

    Returns:
        For each matrix (N, I) the signs (I,) of its sources, for DeepR and keep_signs.

    Source: as dale_.
    """
    neurons = net.neurons
    of_neurons = signs(neurons.hidden_size, excitatory)
    sources = signs(neurons.input_size, excitatory, shuffle=True, generator=generator)
    of_layers = of_neurons.repeat(1 + neurons.bidirectional)
    found: dict[Tensor, Tensor] = {}
    for suffix in neurons._suffixes:
        is_first = suffix.startswith("_l0")
        found[neurons.get_parameter("weight_ih" + suffix)] = sources if is_first else of_layers
        found[neurons.get_parameter("weight_hh" + suffix)] = of_neurons
    found[net.readout.weight] = of_layers
    masks = find_synapses(net)[1]
    for weight, sign in found.items():
        dale_(weight, sign, connectivity, mask=masks.get(weight), generator=generator)
    return found


def sparse(module: nn.Module, connectivity: float, *,
           generator: torch.Generator | None = None) -> None:
    """Initializes all weight matrices of a module as sparse_ does; without autapses the diagonal
    stays 0.

    Args:
        module: an LSNN, or any module.
        connectivity: fraction of synapses of each matrix that is not 0.
        generator: of the CPU. Default: torch's global one.
    """
    weights, masks = find_synapses(module)
    for weight in weights:
        sparse_(weight, connectivity, mask=masks.get(weight), generator=generator)


def _get_mask(weight: Tensor, mask: Tensor | None) -> Tensor:
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(f"weight: expected shape (N, I), got {tuple(weight.shape)}")
    if mask is None:
        return torch.ones(weight.shape, dtype=torch.bool)
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool of shape {tuple(weight.shape)}, got {mask.dtype} of "
                         f"shape {tuple(mask.shape)}")
    return mask.cpu()


def _draw_mask(allowed: Tensor, connectivity: float, generator: torch.Generator | None) -> Tensor:
    """A random fraction of the allowed places, as a mask."""
    check_number("connectivity", connectivity, "a fraction from 0 to 1", 1.0)
    places = allowed.flatten().nonzero().squeeze(1)
    count = int(len(places) * connectivity + 1e-6)  # as DeepR counts
    drawn = torch.zeros(allowed.numel(), dtype=torch.bool)
    drawn[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return drawn.view(allowed.shape)
