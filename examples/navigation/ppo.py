"""Proximal policy optimization (Schulman et al., 2017), of agents that now and then stand still."""
import torch
from torch import Tensor

TRACE, NEAR = 0.95, 0.2  # lambda of the advantages, and how far a ratio may be from 1


def advantages(reward: Tensor, value: Tensor, moves: Tensor, gamma: float) -> Tensor:
    """How much better (D, B) each action was than expected: temporal differences, summed over what
    follows with the weights (gamma TRACE)^n. What follows the last action is worth what it was
    worth there. While an agent cannot move time stands still: the action before is followed by the
    one after."""
    after = torch.cat([value[1:], value[-1:]])
    discount = torch.where(moves, gamma, 1.0)
    weight = discount * torch.where(torch.cat([moves[1:], moves[-1:]]), TRACE, 1.0)
    difference = reward + discount * after - value
    found, running = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for step in reversed(range(len(reward))):
        running = difference[step] + weight[step] * running
        found[step] = running
    return found


def clipped_objective(ratio: Tensor, advantage: Tensor) -> Tensor:
    """The clipped objective of Schulman et al. (2017), to be made small, of each action."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - NEAR, 1 + NEAR) * advantage)


def mean_where(chosen: Tensor, mine: slice, value: Tensor) -> Tensor:
    """The mean of the chosen ones of values (D, b) of some items; chosen: (D, B), of all items. The
    mean of these means, over the processes that share out the items, is that over all items."""
    return (value * chosen[:, mine]).mean() / chosen.float().mean().clamp(min=1e-6)
