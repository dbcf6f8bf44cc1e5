"""The arena of the navigation example: a disc with a hidden goal, for many agents at once, and as
an environment of gymnasium for one.

An agent sees where it is, whether it has just reached the goal or run into the wall, and its last
action; never the goal. At the goal it is rewarded and put to a random place, after as many
milliseconds of darkness and stillness as the gap has. The goal stays where it is for an episode,
and is drawn anew for the next.
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
SPEED = 0.02  # per ms, at the most
WALL = 0.02  # what running into the wall costs; a goal is worth 1
WAKING = 50  # the last ms of a darkness, in which nothing is seen or felt
SEEN = 8  # numbers of an observation: lit, x, y, reward, wall, the last action, sleep


class Arena:
    """B agents, each in a disc of its own.

    places: of the goal, on a ring; 0: anywhere. hold: ms that an action lasts. gap: ms of darkness
    after a goal, as whole actions. random: all draws are made of it.
    """

    def __init__(self, B: int, random: torch.Generator, places: int = 4, hold: int = 10,
                 gap: float = 0) -> None:
        self.random, self.hold, self.pause = random, hold, round(gap / hold)
        if places:
            angle = 2 * math.pi * torch.randint(places, (B,), generator=random) / places
            self.goal = RING * torch.stack([angle.cos(), angle.sin()], -1)
        else:
            self.goal = 0.8 * self.anywhere(B)
        self.at = self.anywhere(B)
        self.dark = torch.zeros(B, dtype=torch.long)  # actions until it is light
        self.reached, self.wall, self.action = torch.zeros(B), torch.zeros(B), torch.zeros(B, 2)

    def anywhere(self, B: int) -> Tensor:
        """(B, 2), places that are all equally likely."""
        angle, radius = torch.rand(2, B, generator=self.random)
        return radius.sqrt()[:, None] * torch.stack([(2 * math.pi * angle).cos(),
                                                     (2 * math.pi * angle).sin()], -1)

    def observe(self) -> Tensor:
        """(B, 8) numbers from -1 to 1; all 0 in the dark, which begins after the goal is felt, but
        for the last one, sleep, which is 1 in all of it but its end."""
        lit = ((self.dark == 0) | (self.reached > 0)).float()[:, None]
        sleep = (1 - lit) * (self.dark * self.hold > WAKING)[:, None]
        seen = [torch.ones_like(lit), self.at, self.reached[:, None], self.wall[:, None],
                self.action.clamp(-1, 1)]
        return torch.cat([torch.cat(seen, 1) * lit, sleep], 1)

    def move(self, action: Tensor) -> Tensor:
        """(B, 2) directions, at most of length 1, to rewards (B,)."""
        self.action = action
        awake = self.dark == 0
        step = action / action.norm(dim=1, keepdim=True).clamp(min=1) * SPEED * self.hold
        at = self.at + step * awake[:, None]
        outside = at.norm(dim=1) > 1
        at = torch.where(outside[:, None], self.at, at)
        reached = awake & ((at - self.goal).norm(dim=1) < RADIUS)
        self.dark = torch.where(reached, self.pause, (self.dark - 1).clamp(min=0))
        self.at = torch.where(reached[:, None], self.anywhere(len(at)), at)
        self.reached, self.wall = reached.float(), outside.float()
        return self.reached - WALL * self.wall


class Navigation(gymnasium.Env[np.ndarray, np.ndarray]):
    """One agent of Arena; an episode of ms milliseconds is cut off, it has no end of its own."""

    def __init__(self, places: int = 4, hold: int = 10, gap: float = 0, ms: int = 2000) -> None:
        self.places, self.hold, self.gap = places, hold, gap
        self.steps = ms // hold
        self.observation_space = spaces.Box(-1, 1, (SEEN,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new goal; the observation, and where the goal is."""
        super().reset(seed=seed)
        random = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        self.arena = Arena(1, random, self.places, self.hold, self.gap)
        self.moves = 0
        return self._seen()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """An action, which lasts hold ms."""
        reward = self.arena.move(torch.as_tensor(action, dtype=torch.float32)[None])
        self.moves += 1
        seen, where = self._seen()
        return seen, reward.item(), False, self.moves >= self.steps, where

    def _seen(self) -> tuple[np.ndarray, dict[str, Any]]:
        return self.arena.observe()[0].numpy(), {"goal": self.arena.goal[0].numpy().copy()}


gymnasium.register(NAME, Navigation)
