# %% [markdown]
# # An LSNN that remembers
#
# STORE-RECALL: a bit is shown with STORE, other bits follow, and seconds later the network has to
# name it at RECALL. The membrane forgets within tens of milliseconds. Adaptive neurons remember: a
# spike raises their threshold, which falls back slowly. This lesson trains 20 neurons of which half
# adapt, and on the same batches 20 neurons without adaptation.
#
# Run it as a notebook, or with `python examples/lessons/remembers.py`. It needs no data.
# `examples/store_recall/train.py` is the same task as a program with options and checkpoints.
#
# Source: Bellec et al., NeurIPS 2018 (arXiv 1803.09574).

# %%
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

# examples/; a notebook has no __file__ and starts in its own folder
sys.path.insert(0, str(Path(globals().get("__file__", "remembers.py")).resolve().parents[1]))
import lsnn_ext
from store_recall import train as task
from store_recall.plots import picture

QUICK = "--quick" in sys.argv  # a few iterations, as a test runs them
OUT = Path("demo_out")
torch.manual_seed(0)
torch.set_num_threads(2)

# %% [markdown]
# ## The task
#
# Twelve symbols of 200 ms, in steps of 2 ms. Each symbol is a bit: 25 input neurons spike for 0,
# 25 for 1. STORE and RECALL have 25 each.

# %%
SYMBOLS, DT, BATCH = 12, 2.0, 8 if QUICK else 128
options = task.arguments(["--symbols", str(SYMBOLS), "--dt", str(DT), "--batch", str(BATCH)])
random = torch.Generator().manual_seed(0)
batch = task.symbols(SYMBOLS, BATCH, random)
x = task.spikes(batch, options, random)
print("input spikes (time, batch, neurons):", tuple(x.shape))
for name, row in (("bit", batch.shown), ("STORE", batch.store), ("RECALL", batch.recall)):
    print(f"{name:7s}", *(int(value) for value in row[:, 0]))

# %% [markdown]
# ## The networks
#
# `LSNN` is the paper's network: regular neurons, adaptive neurons, and a leaky readout. A spike
# lifts the threshold of an adaptive neuron by an amount that decays with `tau_adapt`, 1,200 ms
# here.


# %%
def network(regular: int, adaptive: int) -> lsnn_ext.LSNN:
    torch.manual_seed(0)
    return lsnn_ext.LSNN(x.shape[2], regular, adaptive, 2, tau_mem=20.0, tau_adapt=1200.0, beta=1.7,
                         refractory=2, delay=torch.randint(5, (20, 20)), dt=DT)


nets = {"LSNN": network(10, 10), "LIF": network(20, 0)}

# %% [markdown]
# ## Training
#
# The answer is the readout averaged over the symbol of RECALL. The loss is its cross entropy, and a
# penalty keeps the neurons near 10 spikes per second. The gradient passes through all 1,200 steps.


# %%
def answer(net: lsnn_ext.LSNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (symbols, B, 2) and spikes (T, B, N)."""
    y, _, z = net(x, return_spikes=True, readout_every=len(x) // SYMBOLS)
    return y, z


ITERATIONS = 2 if QUICK else 150
optimizers = {name: torch.optim.Adam(net.parameters(), 0.02) for name, net in nets.items()}
history: list[dict[str, float]] = []
for iteration in range(ITERATIONS):
    batch = task.symbols(SYMBOLS, BATCH, random)
    x, wanted = task.spikes(batch, options, random), batch.target[batch.recall]
    errors = {}
    for name, net in nets.items():
        y, z = answer(net, x)
        logits, rate = y[batch.recall], z.mean((0, 1)) / DT  # spikes per ms
        loss = nn.functional.cross_entropy(logits, wanted) + 0.01 * (rate - 0.01).square().sum()
        optimizers[name].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizers[name].param_groups:
            group["lr"] = 0.02 * 0.3 ** (iteration // 100)
        optimizers[name].step()
        errors[name] = (logits.argmax(-1) != wanted).float().mean().item()
    history.append({"error": errors["LSNN"], "lif_error": errors["LIF"]})
    if iteration % 10 == 9:
        print(iteration + 1, *(f"{name} {100 * error:.0f} %" for name, error in errors.items()))
    if iteration >= 9 and sum(row["error"] for row in history[-10:]) < 0.1:
        break

# %% [markdown]
# ## Test
#
# Five batches that the networks have not seen. Guessing gives an error of 50 %.

# %%
asked = torch.zeros(SYMBOLS)
wrong = {name: torch.zeros(SYMBOLS) for name in nets}  # for each wait, in symbols
for _ in range(5):
    batch = task.symbols(SYMBOLS, BATCH, random)
    x, symbol = task.spikes(batch, options, random), torch.arange(SYMBOLS)[:, None]
    stored = torch.where(batch.store, symbol, 0).cummax(0).values
    wait = (symbol - stored)[batch.recall]
    asked += wait.bincount(minlength=SYMBOLS)
    for name, net in nets.items():
        with torch.no_grad():
            is_wrong = (answer(net, x)[0].argmax(-1) != batch.target)[batch.recall]
        wrong[name] += wait[is_wrong].bincount(minlength=SYMBOLS)

errors = {name: float(each.sum() / asked.sum()) for name, each in wrong.items()}
for name, each in wrong.items():
    early, late = (float(each[span].sum() / asked[span].sum().clamp(min=1))
                   for span in (slice(0, 6), slice(6, None)))
    print(f"{name:5s} error {100 * errors[name]:4.1f} %: {100 * early:4.1f} % in the first second "
          f"after STORE, {100 * late:4.1f} % later")

# %% [markdown]
# ## Where the bit is
#
# The thresholds just before RECALL, averaged over the sequences that stored 0 and those that stored
# 1. The neurons whose thresholds differ hold the bit.

# %%
net = nets["LSNN"]
with torch.no_grad():
    _, _, traces = net.neurons(x, trace=True)
before = traces.threshold[::len(x) // SYMBOLS][batch.recall][:, net.n_regular:]
for bit in (0, 1):
    mean = 1000 * before[batch.target[batch.recall] == bit].mean(0)
    print(f"stored {bit}, threshold / 0.001:", *(f"{value:5.0f}" for value in mean))

# %% [markdown]
# ## Picture
#
# One sequence from top to bottom: input, spikes, thresholds, readout. STORE is grey, RECALL green.

# %%
OUT.mkdir(exist_ok=True)
picture(net, x, batch, None, history, errors, DT, OUT / "remembers.png")
print(OUT / "remembers.png")
