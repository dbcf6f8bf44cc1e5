"""Episodes of the navigation example, and what is measured of them."""
from typing import NamedTuple

import torch
from torch import Tensor

from navigation.arena import after_a_goal

GOALS = 10  # as many are timed
AFTER_DARK, ASKED = 40, 10  # ms after a darkness, when the place is asked for; as often at least


class Episodes(NamedTuple):
    """Episodes of B agents, of D actions."""

    x: Tensor  # (T, B, I) input spikes
    action: Tensor  # (D, B, 2)
    reward: Tensor  # (D, B)
    value: Tensor  # (D, B) what it was worth, by the network
    log_probability: Tensor  # (D, B) of the action
    dark_rate: Tensor  # (D, B) spikes per ms in the dark after its first action, nan elsewhere
    moves: Tensor  # (D, B) whether the agent could move
    is_lit: Tensor  # (D, B)
    told: Tensor  # (D, B, 2) where the network said that the goal is
    at: Tensor  # (D, B, 2) where the agent was
    goal: Tensor  # (B, 2)
    radius: float  # of the goals

    def knows(self) -> Tensor:
        """(D, B), whether it is light and the agent has come to the goal before."""
        goals = (self.reward > 0.5).int()
        return self.is_lit & (goals.cumsum(0) > goals)

    def place_error(self, told: Tensor, items: slice = slice(None)) -> Tensor:
        """(D, b) squared errors of places (D, b, 2) told of these items' goals; who always says the
        centre errs by 1 in the mean."""
        error = (told - self.goal[items]).square().sum(-1)
        return error / self.goal.square().sum(-1).mean()


def goals_of(reward: Tensor) -> float:
    """Goals that an agent reached, in the mean."""
    return (reward > 0.5).sum(0).float().mean().item()


def times(reward: Tensor, hold: int, gap: float) -> tuple[list[float], list[int]]:
    """Mean ms from one goal to the next, without the stillness between them, and how many agents
    came to the n-th goal."""
    pause = sum(after_a_goal(hold, gap)) * hold
    took: list[list[float]] = [[] for _ in range(GOALS)]
    for agent in reward.t() > 0.5:
        at = hold * (agent.nonzero()[:GOALS, 0] + 1)
        since = torch.diff(at, prepend=at.new_zeros(1))
        since[1:] -= pause
        for n, ms in enumerate(since.tolist()):
            took[n].append(ms)
    return [sum(ms) / len(ms) for ms in took if ms], [len(ms) for ms in took if ms]


def later_goals(reward: Tensor, hold: int, gap: float, episode: float) -> float:
    """Mean ms to all goals but the first, without the gap; those of an episode where there is
    none."""
    ms, agents = times(reward, hold, gap)
    if not agents[1:]:
        return float(episode)
    return sum(a * b for a, b in zip(ms[1:], agents[1:], strict=True)) / sum(agents[1:])


def place_error_after_dark(past: Episodes, hold: int) -> float:
    """The squared error of the place that was said some time after a darkness, of those who have
    not come to the goal again by then. 1 is that of the one place which is best for all of them,
    so that nobody gains who knows where most of those asked have their goal; it is 1 too where
    these are few, or have the same goal."""
    asked = past.moves & ~torch.cat([past.moves[:1], past.moves[:-1]])  # the first action after it
    for _ in range(max(round(AFTER_DARK / hold), 1) - 1):
        asked = past.moves & torch.cat([torch.zeros_like(asked[:1]), asked[:-1]])
    goal = past.goal.expand_as(past.told)[asked]
    if len(goal) < ASKED or bool((goal == goal[0]).all()):
        return 1.0
    error, spread = ((place - goal).square().sum() for place in (past.told[asked], goal.mean(0)))
    return (error / spread).item()
