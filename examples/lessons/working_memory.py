# %% [markdown]
# # Working memory in 41 delays
#
# 512 neurons store sixteen random spike patterns of 1,000 steps. Each pair of neurons has a weight
# for each of 41 delays, so a spike depends on everything that the network did in the last 41 steps.
# The network receives the first 41 steps of a pattern, the cue, and then runs by itself: each step
# has to follow from the steps before.
#
# Run it as a notebook, or with `python examples/lessons/working_memory.py`. It needs no data.
#
# Source of the task: Perrinet, Working Memory in a Recurrent Spiking Neural Networks With
# Heterogeneous Synaptic Delays, 2026 (arXiv 2604.14096). The training below is ours.

# %%
import sys
import time
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lsnn_ext.functional import State, alif

QUICK = "--quick" in sys.argv  # a small network, as a test runs it
OUT = Path("demo_out")
torch.manual_seed(0)
torch.set_num_threads(2)

# %% [markdown]
# ## The patterns
#
# Each neuron spikes in a step with probability 0.01. There is no structure to learn: the network
# has to store 80,000 random spikes.

# %%
N, PATTERNS, DELAYS, WINDOW = (64, 4, 11, 5) if QUICK else (512, 16, 41, 5)
STEPS = DELAYS + WINDOW * (10 if QUICK else 192)
target = (torch.rand(STEPS, PATTERNS, N) < 0.01).float()
print(f"{PATTERNS} patterns of {STEPS} steps and {N} neurons: {int(target.sum()):,} spikes")

# %% [markdown]
# ## The network
#
# `w_rec` has the shape (delays, N, N) and acts on the spikes 1 to 41 steps ago. `State` holds these
# spikes, the newest first, and the membrane; a call that starts from the state of a pattern
# continues that pattern. The mean weight of each neuron is subtracted, so that excitation and
# inhibition balance: what counts is which neurons spiked, not how many.


# %%
def run(w: Tensor, history: Tensor, v: Tensor, steps: int) -> tuple[Tensor, State]:
    """Spikes (steps, B, N) and the state after them, of a history (delays, B, N), newest first."""
    zero = torch.zeros_like(v)
    return alif(v.new_zeros(steps, *v.shape), w - w.mean((0, 1)), alpha=0.5, theta=1.0, kappa=1.0,
                delay=tuple(range(len(w))), dynamics="sj_hard_det", surrogate="triangle", width=1.5,
                state=State(v, zero, zero, zero, history))


def recall(w: Tensor, cue: Tensor) -> Tensor:
    """What follows a cue (delays, B, N), the oldest step first."""
    with torch.no_grad():
        return run(w, cue.flip(0), torch.zeros_like(cue[0]), STEPS - DELAYS)[0]


def f1(z: Tensor, wanted: Tensor) -> float:
    """Harmonic mean of precision and recall of spikes."""
    return float(2 * (z * wanted).sum() / (z.sum() + wanted.sum()).clamp(min=1))


# %% [markdown]
# ## Training
#
# Backpropagation through windows of five steps. Each window starts from the true spikes before it
# and from the membrane that the window before it left in the last iteration. All windows of all
# patterns are one batch of 3,072 sequences. The loss is the number of wrong spikes. Weights start
# at 0. The learning rate is divided by the number of spikes in a history, since the weights of all
# these add up.
# Training ends when two iterations have had no wrong spike.


# %%
def train(delays: int, iterations: int) -> tuple[Tensor, list[float]]:
    """Weights (delays, N, N), and the F1 of the windows in each iteration."""
    windows = range(DELAYS, STEPS, WINDOW)
    wanted = torch.cat([target[at:at + WINDOW] for at in windows], 1)
    history = torch.cat([target[at - delays:at].flip(0) for at in windows], 1)
    w = torch.zeros(delays, N, N, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.4 / float(history.sum((0, 2)).mean()))
    v, first = torch.zeros_like(wanted[0]), torch.zeros(PATTERNS, N)
    scores: list[float] = []
    for _ in range(iterations):
        z, state = run(w, history, v, WINDOW)
        loss = (z - wanted).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        v = torch.cat([first, state.v.detach()[:-PATTERNS]])
        scores.append(f1(z.detach(), wanted))
        if scores[-2:] == [1.0, 1.0]:
            break
    return w.detach(), scores


ITERATIONS = 12 if QUICK else 25
begin = time.perf_counter()
w, scores = train(DELAYS, ITERATIONS)
for iteration, score in enumerate(scores):
    print(f"iteration {iteration + 1:2d}: F1 of the windows {score:.4f}")
print(f"{w.numel():,} weights, trained in {time.perf_counter() - begin:.0f} s")

# %% [markdown]
# ## Recall
#
# From the cue on the network gets no input. One wrong spike enters all later steps.

# %%
cue, rest = target[:DELAYS], target[DELAYS:]
recalled = recall(w, cue)
each = [f1(recalled[:, one], rest[:, one]) for one in range(PATTERNS)]
right = int((recalled == rest).flatten(1).all(1).cumprod(0).sum())
print(f"recall of {STEPS - DELAYS} steps: F1 {f1(recalled, rest):.4f}, of the worst pattern "
      f"{min(each):.4f}; every spike of all patterns right in the first {right} steps")

# %% [markdown]
# A damaged cue: a share of its spikes is missing.

# %%
by_share = {0.0: recalled}
for share in (0.05, 0.1, 0.2, 0.4):
    by_share[share] = recall(w, cue * (torch.rand_like(cue) >= share))
    each = [f1(by_share[share][:, one], rest[:, one]) for one in range(PATTERNS)]
    print(f"{100 * share:2.0f} % of the cue missing: F1 {f1(by_share[share], rest):.3f}, "
          f"{sum(one > 0.99 for one in each)} of {PATTERNS} patterns above 0.99")

# %% [markdown]
# ## How many delays are needed?
#
# The same training with fewer delays. F1 near 1 in windows of five steps is not enough: a recall is
# 192 windows long, and each starts from the errors of the one before.

# %%
by_delays = {DELAYS: scores}
for delays in (1, 5, 10) if QUICK else (1, 5, 10, 20):
    fewer, by_delays[delays] = train(delays, ITERATIONS)
    z = recall(fewer, cue[-delays:])
    print(f"delays: {delays:2d}, F1 of the windows {by_delays[delays][-1]:.3f}, "
          f"of the recall {f1(z, rest):.3f}")

# %% [markdown]
# ## Picture
#
# A pattern, its recall, the training, and the recall over time.

# %%
figure, axes = plt.subplot_mosaic([["pattern", "pattern"], ["recall", "recall"],
                                   ["training", "time"]], figsize=(10, 9), layout="constrained")
wrong = recalled[:, 0] != rest[:, 0]
for name, spikes in (("pattern", rest), ("recall", recalled)):
    axes[name].scatter(*target[:DELAYS, 0].nonzero(as_tuple=True), s=1, color="0.7")
    at, neuron = spikes[:, 0].nonzero(as_tuple=True)
    axes[name].scatter(at + DELAYS, neuron, s=1, color="C0")
    axes[name].set(xlim=(0, STEPS), ylim=(-1, N), ylabel="neuron")
at, neuron = wrong.nonzero(as_tuple=True)
axes["recall"].scatter(at + DELAYS, neuron, s=4, color="C3")
axes["pattern"].set_title(f"Pattern 1 of {PATTERNS}; the cue is grey")
axes["recall"].set(title=f"Recall; {len(at)} wrong spikes, red", xlabel="step")
for delays, found in sorted(by_delays.items()):
    axes["training"].plot(range(1, len(found) + 1), found, label=f"delays: {delays}")
axes["training"].set(title="Training", xlabel="iteration", ylabel="F1 of the windows")
axes["training"].legend()
for share, z in by_share.items():
    blocks = zip(z.split(WINDOW * 2), rest.split(WINDOW * 2), strict=True)
    found = [f1(one, other) for one, other in blocks]
    axes["time"].plot([DELAYS + WINDOW * (2 * block + 1) for block in range(len(found))], found,
                      label=f"{100 * share:.0f} % of the cue missing")
axes["time"].set(title="Recall over time, all patterns", xlabel="step", ylabel="F1")
axes["time"].legend()
OUT.mkdir(exist_ok=True)
figure.savefig(OUT / "working_memory.png", dpi=150)
print(OUT / "working_memory.png")
