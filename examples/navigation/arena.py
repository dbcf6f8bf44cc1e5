"""The arena of the navigation example: a disc with a hidden goal, for many agents at once, and as
an environment of gymnasium for one.

An agent sees where it is, whether it has just reached the goal or run into the wall, and its last
action; never the goal. At the goal it is rewarded and put to a random place. With a gap it first
stands still and feels the goal for 100 ms; then it is dark for as many milliseconds as the gap has.
The goal stays where it is for an episode, and is drawn anew for the next.
"""
import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

NAME = "lsnn_ext/Navigation-v0"
RADIUS, RING = 0.3, 0.7  # of the goal, and of the ring of its places; the arena's is 1
FELT = 100  # ms for which an agent feels a goal before a darkness
SPEED = 0.02  # per ms, at the most
WALL = 0.02  # what running into the wall costs; a goal is worth 1
SEEN = 8  # numbers of an observation: lit, x, y, reward, wall, the last action, sleep


def after_a_goal(hold: int, gap: float) -> tuple[int, int]:
    """Actions for which a goal is felt, and of the darkness that follows."""
    dark = round(gap / hold)
    return (max(round(FELT / hold), 1) if dark else 0), dark


class Arena:
    """B agents, each in a disc of its own.

    places: of the goal, on a ring; 0: anywhere. hold: ms that an action lasts. gap: ms of darkness
    after a goal, as whole actions. radius: of the goal. random: all draws are made of it.
    """

    def __init__(self, B: int, random: torch.Generator, places: int = 4, hold: int = 10,
                 gap: float = 0, radius: float = RADIUS) -> None:
        self.random, self.hold, self.radius = random, hold, radius
        self.felt, self.dark = after_a_goal(hold, gap)
        if places:
            angle = 2 * math.pi * torch.randint(places, (B,), generator=random) / places
            self.goal = RING * torch.stack([angle.cos(), angle.sin()], -1)
        else:
            self.goal = 0.8 * self.anywhere(B)
        self.at = self.anywhere(B)
        self.still = torch.zeros(B, dtype=torch.long)  # actions until it can move
        self.reached, self.wall, self.action = torch.zeros(B), torch.zeros(B), torch.zeros(B, 2)

    def anywhere(self, B: int) -> Tensor:
        """(B, 2), places that are all equally likely."""
        angle, radius = torch.rand(2, B, generator=self.random)
        return radius.sqrt()[:, None] * torch.stack([(2 * math.pi * angle).cos(),
                                                     (2 * math.pi * angle).sin()], -1)

    def observe(self) -> Tensor:
        """(B, 8) numbers from -1 to 1; in the dark all are 0 but the last one, sleep: 1, and -1 in
        the last action of it, when the agent wakes."""
        feels = (self.reached > 0) | (self.still > self.dark)
        lit = (feels | (self.still == 0)).float()[:, None]
        is_dark = ~feels & (self.still > 0)
        sleep = torch.where(is_dark & (self.still == 1), -1.0, is_dark.float())
        seen = [torch.ones_like(lit), self.at, feels.float()[:, None], self.wall[:, None],
                self.action.clamp(-1, 1)]
        return torch.cat([torch.cat(seen, 1) * lit, sleep[:, None]], 1)

    def move(self, action: Tensor) -> Tensor:
        """(B, 2) directions, at most of length 1, to rewards (B,)."""
        self.action = action
        awake = self.still == 0
        step = action / action.norm(dim=1, keepdim=True).clamp(min=1) * SPEED * self.hold
        at = self.at + step * awake[:, None]
        outside = at.norm(dim=1) > 1
        at = torch.where(outside[:, None], self.at, at)
        reached = awake & ((at - self.goal).norm(dim=1) < self.radius)
        self.still = torch.where(reached, self.felt + self.dark, (self.still - 1).clamp(min=0))
        leaves = ~awake & (self.still == self.dark) if self.dark else reached
        self.at = torch.where(leaves[:, None], self.anywhere(len(at)), at)
        self.reached, self.wall = reached.float(), outside.float()
        return self.reached - WALL * self.wall


class Navigation(gymnasium.Env[np.ndarray, np.ndarray]):
    """One agent of Arena; an episode of ms milliseconds is cut off, it has no end of its own."""

    def __init__(self, places: int = 4, hold: int = 10, gap: float = 0, ms: int = 2000,
                 radius: float = RADIUS) -> None:
        self.places, self.hold, self.gap, self.radius = places, hold, gap, radius
        self.steps = ms // hold
        self.observation_space = spaces.Box(-1, 1, (SEEN,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new goal; the observation, and where the goal is."""
        super().reset(seed=seed)
        random = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        self.arena = Arena(1, random, self.places, self.hold, self.gap, self.radius)
        self.actions = 0
        return self._seen()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """An action, which lasts hold ms."""
        reward = self.arena.move(torch.as_tensor(action, dtype=torch.float32)[None])
        self.actions += 1
        seen, where = self._seen()
        return seen, reward.item(), False, self.actions >= self.steps, where

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        return self.arena.observe()[0].numpy(), {"goal": self.arena.goal[0].numpy().copy()}


gymnasium.register(NAME, Navigation)
