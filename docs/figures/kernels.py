"""Draws kernels_block.png, _gather.png, _cluster.png and _step.png beside itself: `python
docs/figures/kernels.py`."""
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

TEXT, FAINT, PAPER = "#243b53", "#bcccdc", "#f5f7fa"
WEIGHTS, SPIKES, STATE, MEMORY = "#9fb3c8", "#d1495b", "#edae49", "#dde5ed"
HERE = Path(__file__).parent


def sheet(height: float, title: str) -> Axes:
    """A page 100 wide; a unit is as long across as up."""
    figure, ax = plt.subplots(figsize=(9, 9 * height / 100))
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, 100), ylim=(0, height))
    ax.axis("off")
    ax.text(1, height - 1.2, title, va="top", size=13, weight="bold", color=TEXT)
    return ax


def frame(ax: Axes, x: float, y: float, w: float, h: float, label: str,
          colour: str = PAPER) -> None:
    """A place that holds others, its name at the top."""
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=1", fc=colour,
                                ec=FAINT, lw=1.2))
    ax.text(x + 1.2, y + h - 1.1, label, va="top", size=10.5, color=TEXT)


def box(ax: Axes, x: float, y: float, w: float, h: float, label: str, colour: str,
        size: float = 10) -> None:
    """A thing, its name in the middle."""
    ax.add_patch(Rectangle((x, y), w, h, fc=colour, ec=TEXT, lw=0.8))
    ink = "white" if colour == SPIKES else TEXT
    ax.text(x + w / 2, y + h / 2, label, ha="center", va="center", size=size, color=ink)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = TEXT,
          bend: float = 0, both: bool = False) -> None:
    """What moves in a step."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="<|-|>" if both else "-|>",
                                 mutation_scale=13, lw=1.6, color=colour,
                                 connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0))


def say(ax: Axes, x: float, y: float, text: str, colour: str = TEXT, **how: Any) -> None:
    ax.text(x, y, text, **{"size": 10, "color": colour, "va": "center", "ha": "center", **how})


def save(name: str) -> None:
    plt.gcf().savefig(HERE / f"kernels_{name}.png", dpi=200)
    plt.close("all")


def rows(ax: Axes, x: float, y: float, w: float, h: float, n: int, lit: tuple[int, ...]) -> None:
    """A weight matrix, the rows of the neurons that spiked lit."""
    for k in range(n):
        colour = SPIKES if k in lit else WEIGHTS
        ax.add_patch(Rectangle((x, y + h - (k + 1) * h / n), w, h / n, fc=colour, ec="white",
                               lw=0.8))


def item(ax: Axes, x: float, y: float, w: float, name: str, warps: int) -> None:
    """The warps of an item with what its lanes hold."""
    frame(ax, x, y, w, 12.4, name, "white")
    each = (w - 2.4 - (warps - 1)) / warps
    for k in range(warps):
        box(ax, x + 1.2 + k * (each + 1), y + 1.4, each, 6.6, f"warp {k}\n4 neurons a lane", STATE,
            9.5)


def memory(ax: Axes, x: float, y: float, w: float, h: float,
           what: str = "main memory") -> tuple[float, float]:
    """The arrays of a step; returns the heights at which they are read and written."""
    frame(ax, x, y, w, h, what, MEMORY)
    box(ax, x + 1.2, y + h - 12, w - 2.4, 6.4, "current $x_t$", "white")
    written = "spikes $z_t$\n\nsaved: $y_t$,\nwords of bits,\nstate at each\n128th step"
    box(ax, x + 1.2, y + 1.4, w - 2.4, h - 16.2, written, "white")
    return y + h - 8.8, y + 1.4 + (h - 16.2) / 2


def block() -> None:
    ax = sheet(56, "block: the weights in the shared memory of each block")
    read, write = memory(ax, 1, 3, 17, 46)
    frame(ax, 30, 3, 69, 46, "one block on one multiprocessor; it works on a few items, each in "
                             "its own time")
    frame(ax, 32, 24.5, 65, 19.5, "shared memory", MEMORY)
    rows(ax, 34, 26, 24, 12.5, 10, (1, 4, 8))
    say(ax, 47, 40.4, "all rows of $W$", ha="left", size=10)
    for k, name in enumerate(("item 1", "item 2")):
        box(ax, 66 + 15.5 * k, 30, 13.5, 8.5, "ring of\nspike words", SPIKES, 9.5)
        say(ax, 72.75 + 15.5 * k, 40.2, name)
        box(ax, 66 + 15.5 * k, 26, 13.5, 3.4, "lists of rows", "white", 9)
    item(ax, 32, 5, 31.5, "item 1, in registers: $v, a, i, r$", 2)
    item(ax, 65.5, 5, 31.5, "item 2", 2)
    arrow(ax, (18, read), (31.6, 14), bend=0.12)
    arrow(ax, (31.6, 8), (18, write - 6), bend=0.12)
    say(ax, 24.6, 33.5, "prefetched\n8 steps\nahead", size=9)
    arrow(ax, (46, 25.8), (46, 17.6), SPIKES)
    say(ax, 39.2, 21.3, "rows of the\nspikes, added", SPIKES, size=9)
    arrow(ax, (61, 17.6), (68, 25.8), SPIKES, both=True)
    say(ax, 58.2, 21.3, "new word,\nold words", SPIKES, size=9)
    arrow(ax, (84, 17.6), (87, 25.8), SPIKES, both=True)
    save("block")


def gather() -> None:
    ax = sheet(56, "gather: the weights in main memory, served by the caches")
    read, write = memory(ax, 1, 3, 17, 46)
    frame(ax, 30, 25.5, 30, 23.5, "second level cache, for all blocks", MEMORY)
    rows(ax, 33, 27.5, 24, 15.5, 12, (1, 5, 10))
    frame(ax, 64, 25.5, 35, 23.5, "shared memory of the block", MEMORY)
    box(ax, 66, 35, 31, 8, "ring of spike words", SPIKES)
    box(ax, 66, 27.5, 31, 6, "lists of rows", "white")
    frame(ax, 30, 3, 69, 17.2, "one block; four or sixteen neurons a lane")
    for k in range(6):
        box(ax, 32 + 11.2 * k, 5, 9.6, 8.4, f"warp {k}" if k < 5 else "...", STATE)
    arrow(ax, (18, read), (29.6, 15), bend=0.12)
    arrow(ax, (29.6, 8), (18, write - 6), bend=0.12)
    arrow(ax, (45, 27.3), (45, 20.5), SPIKES)
    say(ax, 47, 23, "rows of the spikes, 16 bytes a lane", SPIKES, size=9.5, ha="left")
    arrow(ax, (86, 20.5), (86, 27.3), SPIKES, both=True)
    save("gather")


def cluster() -> None:
    ax = sheet(58, "cluster, backward: each block holds the rows of its neurons; dL/dc goes to all")
    for k in range(4):
        x = 1 + 25 * k
        frame(ax, x, 16.5, 23, 37, f"block {k}")
        rows(ax, x + 13, 40, 7, 11.5, 10, (1, 4, 8))
        say(ax, x + 6.7, 44.5, "its rows\nof $W$, in\nshared memory", size=9)
        box(ax, x + 1.5, 30, 20, 5.6, f"neurons {64 * k} to {64 * k + 63}", STATE, 9.5)
        box(ax, x + 1.5, 18, 20, 6, "$dL/dc$ of all neurons", SPIKES, 9)
        arrow(ax, (x + 16.5, 39.8), (x + 16.5, 35.8), SPIKES)
        arrow(ax, (x + 8, 27.2), (x + 8, 24.2), SPIKES)
    ax.plot([9, 84], [27.2, 27.2], color=SPIKES, lw=1.6)
    ax.plot([40, 40], [27.2, 29.8], color=SPIKES, lw=1.6)
    say(ax, 50, 28.6, "a quad of block 1, stored into every block", SPIKES, size=9.5, ha="left",
        bbox={"fc": PAPER, "ec": "none", "pad": 1.5})
    frame(ax, 1, 1.5, 98, 12.2, "an asynchronous store of 16 bytes", "white")
    box(ax, 3, 3, 36, 5.6, "$dL/dc$ of four neurons", SPIKES)
    say(ax, 42, 5.8, "A barrier in the memory of the receiving block counts the bytes;\n"
        "a warp waits until all bytes of a step have arrived.", ha="left", size=9.5)
    save("cluster")


def step() -> None:
    ax = sheet(48, "step: a matrix product of the library and a kernel, step after step")
    for k, (t, before) in enumerate((("t", "t-1"), ("t+1", "t"))):
        x = 4 + 48 * k
        box(ax, x, 31, 20, 9, f"product\n$c_{{{t}}} = x_{{{t}}} + z_{{{before}}} W$", WEIGHTS)
        box(ax, x + 24, 31, 20, 9, f"kernel, step {t}\na thread to 4 neurons", STATE)
        arrow(ax, (x + 20.2, 35.5), (x + 23.8, 35.5))
        if k == 0:
            arrow(ax, (x + 44.2, 35.5), (x + 47.8, 35.5))
    arrow(ax, (96.2, 35.5), (99.6, 35.5))
    frame(ax, 1, 3, 98, 18, "", MEMORY)
    say(ax, 90, 18, "main memory", size=10.5)
    for x, w, label, colour in ((3, 17, "$W$ [N,N]", WEIGHTS), (23, 17, "$z$ [T,B,N]", SPIKES),
                                (43, 22, "$c$ [B,N]: sum of (1)", "white"),
                                (68, 29, "$v, a, i, r, z$ [B,N]; saved: $y$, bits", STATE)):
        box(ax, x, 5, w, 9, label, colour, 10)
    arrow(ax, (11, 14.2), (11, 30.8))
    arrow(ax, (29, 14.2), (18, 30.8), SPIKES)
    arrow(ax, (22, 30.8), (46, 14.2))
    arrow(ax, (52, 14.2), (35, 30.8))
    arrow(ax, (76, 14.2), (44, 30.8), both=True)
    say(ax, 79, 26.5, "everything passes through\nmain memory or its cache", size=9.5)
    save("step")


if __name__ == "__main__":
    for draw in (block, gather, cluster, step):
        draw()
