"""The picture of the navigation example: the ways of agents before and after training, the time to
each goal, and how both networks learned."""
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from common.plots import ACCENT, ADAPTIVE, INK, MUTED, REGULAR, STYLE, smooth

AGENTS = 2  # whose ways are shown
COLOURS = {"LSNN": ADAPTIVE, "LIF": REGULAR}


def _way(axes: Axes, episodes: Any, agent: int) -> None:
    """One episode in the arena: the way to the first goal in grey, then those back to it, from
    where the agent was put after it had felt the goal."""
    goal = episodes.goal[agent].tolist()
    axes.add_patch(Circle((0, 0), 1, fill=False, color=INK, linewidth=1))
    axes.add_patch(Circle(goal, episodes.radius, color=ACCENT, alpha=0.3, linewidth=0))
    ends = [*((episodes.reward[:, agent] > 0.5).nonzero()[:, 0] + 1).tolist(), None]
    start = 0
    for n, end in enumerate(ends):
        way = episodes.at[start:end, agent]
        if n and len(way) and (way[0] - episodes.goal[agent]).norm() < episodes.radius:
            way = way[(way != way[0]).any(-1)]
        axes.plot(*way.unbind(-1), color=MUTED if not n else ADAPTIVE, linewidth=0.8)
        start = end if end is not None else start
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])
    axes.set_xlabel(f"{len(ends) - 1} goals")


def picture(shown: dict[str, Any], history: list[dict[str, float]],
            found: dict[str, dict[str, Any]], is_dark: bool, path: Path) -> None:
    """shown: episodes of the LSNN before and after training; found: times of both networks;
    is_dark: whether there is darkness after goals."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12 if is_dark else 10, 6.2), layout="constrained")
        above, below = figure.subfigures(2, 1)
        ways = above.subplots(1, 2 * AGENTS)
        for column, name in enumerate(("before", "LSNN")):
            for agent in range(min(AGENTS, shown[name].at.shape[1])):
                axes = ways[AGENTS * column + agent]
                _way(axes, shown[name], agent)
                if not agent:
                    axes.set_title("Before training" if not column else "After it")
        ms, learning, *dark = below.subplots(1, 5 if is_dark else 2)
        for name, row in found.items():
            colour = COLOURS[name]
            ms.plot(range(1, len(row["ms"]) + 1), row["ms"], "o-", color=colour, label=name)
            prefix = "" if name == "LSNN" else "lif_"
            if is_dark:
                dark[0].plot([episode[f"{prefix}gap"] for episode in history], color=colour)
                for axes, values in zip(dark[1:], (row["later"], row["place_error"]), strict=True):
                    axes.plot([int(gap) for gap in values], values.values(), "o-", color=colour)
            goals = torch.tensor([episode[f"{prefix}goals"] for episode in history])
            learning.plot(goals, color=colour, alpha=0.25, linewidth=0.6)
            learning.plot(smooth(goals, 20), color=colour, linewidth=1.8, label=name)
        ms.set(xlabel="goal of an episode", ylabel="ms to it, without the gap", ylim=(0, None))
        ms.set_title("From goal to goal")
        ms.legend()
        learning.set(xlabel="iteration", ylabel="goals an episode", ylim=(0, None))
        learning.set_title("Training")
        if is_dark:
            dark[0].set(xlabel="iteration", ylabel="ms of darkness after a goal", ylim=(0, None))
            dark[0].set_title("Darkness in training")
            dark[1].set(xlabel="ms of darkness after a goal", ylabel="ms to goals after the first",
                        ylim=(0, None))
            dark[1].set_title("Memory over darkness")
            dark[2].axhline(1, color=MUTED, linewidth=0.8)
            dark[2].set(xlabel="ms of darkness after a goal", ylabel="error of the place said then",
                        ylim=(0, None))
            dark[2].set_title("What it knows")
        figure.savefig(path)
        plt.close(figure)
