"""Results of a replay share memory where those of the original do, and nowhere else."""
import torch
from torch import Tensor

from converted_nets import draw_x
from lsnn_ext.loops import fuse


def test_views_of_results_share_memory() -> None:
    fused = fuse(share, draw_x())
    for _ in range(2):
        turned, detached = fused(draw_x())
        detached.fill_(3.0)
        assert bool((turned == 3.0).all())
    fused = fuse(keep_last, draw_x())
    for _ in range(2):
        out, last = fused(draw_x())
        last.fill_(3.0)
        assert not bool((out == 3.0).any())


def integrate(x: Tensor) -> list[Tensor]:
    v, out = torch.zeros(2, 5), []
    for x_t in x:
        v = 0.9 * v + x_t
        out.append(v)
    return out


def keep_last(x: Tensor) -> tuple[Tensor, Tensor]:
    out = integrate(x)
    return torch.stack(out), out[-1].detach()


def share(x: Tensor) -> tuple[Tensor, Tensor]:
    turned = torch.stack(integrate(x)).transpose(0, 1)
    return turned, turned.detach()
