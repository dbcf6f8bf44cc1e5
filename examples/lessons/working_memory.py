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
N, PATTERNS, CUE, WINDOW = (64, 4, 11, 5) if QUICK else (512, 16, 41, 5)  # a delay per step of cue
STEPS = CUE + WINDOW * (10 if QUICK else 192)
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
def run(w: Tensor, history: Tensor, v: Tensor, current: Tensor) -> tuple[Tensor, State]:
    """Spikes (T, B, N) and the last state, of a history (delays, B, N), the newest step first."""
    zero = torch.zeros_like(v)
    return alif(current, w - w.mean((0, 1)), alpha=0.5, theta=1.0, kappa=1.0,
                delay=tuple(range(len(w))), dynamics="sj_hard_det", surrogate="triangle", width=1.5,
                state=State(v, zero, zero, zero, history))


def recall(w: Tensor, cue: Tensor) -> Tensor:
    """The spikes (T, B, N) that follow a cue (steps, B, N), the oldest step first."""
    with torch.no_grad():
        return run(w, cue[-len(w):].flip(0), torch.zeros_like(cue[0]), torch.zeros_like(rest))[0]


def f1(z: Tensor, wanted: Tensor) -> float:
    """Harmonic mean of precision and recall of spikes."""
    return float(2 * (z * wanted).sum() / (z.sum() + wanted.sum()).clamp(min=1))


# %% [markdown]
# ## Training
#
# Backpropagation through windows of five steps. Each window starts from the true spikes before it
# and from the membrane that the window before it left in the last iteration. All windows of all
# patterns are one batch of 3,072 sequences. The loss is the number of wrong spikes. All weights
# start at 0. The learning rate is divided by the number of spikes in a history, whose weights add
# up.
#
# In the first iterations the neurons receive a random current. They learn to answer correctly with
# a margin, so a few missing spikes do no harm later. Training ends after two iterations without a
# wrong spike.

# %%
NOISY, ITERATIONS = (6, 16) if QUICK else (10, 25)


def train(delays: int) -> tuple[Tensor, list[int]]:
    """Weights (delays, N, N), and the wrong spikes of each iteration."""
    windows = range(CUE, STEPS, WINDOW)
    wanted = torch.cat([target[at:at + WINDOW] for at in windows], 1)
    history = torch.cat([target[at - delays:at].flip(0) for at in windows], 1)
    w = torch.zeros(delays, N, N, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.5 / float(history.sum((0, 2)).mean()))
    v, first = torch.zeros_like(wanted[0]), torch.zeros(PATTERNS, N)
    wrong: list[int] = []
    for iteration in range(ITERATIONS):
        noise = 0.3 if iteration < NOISY else 0.0
        z, state = run(w, history, v, noise * torch.randn_like(wanted))
        loss = (z - wanted).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        v = torch.cat([first, state.v.detach()[:-PATTERNS]])
        wrong.append(int(loss))
        if wrong[-2:] == [0, 0]:
            break
    return w.detach(), wrong


begin = time.perf_counter()
w, wrong = train(CUE)
print("wrong spikes in each iteration:", *wrong)
print(f"{w.numel():,} weights, trained in {time.perf_counter() - begin:.0f} s")

# %% [markdown]
# ## Recall
#
# After the cue the network receives no input. A wrong spike acts on the next 41 steps, and these on
# all later ones.

# %%
cue, rest = target[:CUE], target[CUE:]
recalled = recall(w, cue)
each = [f1(recalled[:, one], rest[:, one]) for one in range(PATTERNS)]
print(f"recall of {len(rest)} steps: F1 {f1(recalled, rest):.4f}, of the worst pattern "
      f"{min(each):.4f}, {int((recalled != rest).sum())} wrong spikes")

# %% [markdown]
# ## How many delays are needed?
#
# The same training with fewer delays. The recall starts from the whole cue, and from cues of which
# a share of the spikes is missing.

# %%
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)
damaged = [cue * (torch.rand_like(cue) >= share) for share in SHARES]
curves, scores = {CUE: wrong}, {CUE: [f1(recall(w, one), rest) for one in damaged]}
for delays in (5,) if QUICK else (10, 20):
    fewer, curves[delays] = train(delays)
    scores[delays] = [f1(recall(fewer, one), rest) for one in damaged]
print("F1 of the recall, missing spikes: ", *(f"{100 * share:5.0f} %" for share in SHARES))
for delays, found in sorted(scores.items()):
    print(f"{delays:2d} of {CUE} delays                   ", *(f"{one:7.3f}" for one in found))

# %% [markdown]
# ## Picture
#
# A pattern, its recall, the training, and the recall from damaged cues.

# %%
figure, axes = plt.subplot_mosaic([["pattern", "pattern"], ["recall", "recall"],
                                   ["training", "damage"]], figsize=(10, 9), layout="constrained")
for name, spikes in (("pattern", rest), ("recall", recalled)):
    axes[name].scatter(*cue[:, 0].nonzero(as_tuple=True), s=1, color="0.7")
    at, neuron = spikes[:, 0].nonzero(as_tuple=True)
    axes[name].scatter(at + CUE, neuron, s=1, color="C0")
    axes[name].set(xlim=(0, STEPS), ylim=(-1, N), ylabel="neuron")
at, neuron = (recalled[:, 0] != rest[:, 0]).nonzero(as_tuple=True)
axes["recall"].scatter(at + CUE, neuron, s=4, color="C3")
axes["pattern"].set_title(f"Pattern 1 of {PATTERNS}; the cue is grey")
axes["recall"].set(title=f"Recall; {len(at)} wrong spikes, red", xlabel="step")
for delays in sorted(curves):
    iterations = range(1, len(curves[delays]) + 1)
    axes["training"].plot(iterations, curves[delays], label=f"delays: {delays}")
    axes["damage"].plot([100 * share for share in SHARES], scores[delays], marker="o")
axes["training"].axvspan(0.5, NOISY + 0.5, color="0.93")
axes["training"].set(title="Training; with noise in grey", xlabel="iteration",
                     ylabel="wrong spikes in windows", yscale="symlog", ylim=(0, None))
axes["training"].legend()
axes["damage"].set(title="Recall from damaged cues", xlabel="missing spikes / %", ylabel="F1")
OUT.mkdir(exist_ok=True)
figure.savefig(OUT / "working_memory.png", dpi=150)
print(OUT / "working_memory.png")
