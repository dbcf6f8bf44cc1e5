# %% [markdown]
# # A loop of your own, made fast
#
# `lsnn_ext.convert` takes a model that is written as a Python loop over time and runs its
# recurrence in one compiled kernel. This lesson writes such a model, converts it, checks that
# results and gradients are equal, trains both on the same batches, and shows what keeps a line a
# loop.
#
# Run it as a notebook, or with `python examples/lessons/own_loop.py`. It needs no data.

# %%
import copy
import sys
import time
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import lsnn_ext

QUICK = "--quick" in sys.argv  # a few iterations, as a test runs them
OUT = Path("demo_out")
torch.manual_seed(0)
torch.set_num_threads(2)

# %% [markdown]
# ## The task
#
# Each of ten classes is a fixed pattern of spikes in 40 channels. A sample is the pattern of its
# class with jittered times, a quarter of its spikes missing, and random spikes added.

# %%
CLASSES, CHANNELS, STEPS, BATCH = 10, 40, 100, 64
patterns = torch.rand(CLASSES, CHANNELS, 3) * STEPS  # three spikes per channel


def draw(batch: int) -> tuple[Tensor, Tensor]:
    """Spikes (T, B, channels) and classes (B,)."""
    label = torch.randint(CLASSES, (batch,))
    times = (patterns[label] + 2 * torch.randn(batch, CHANNELS, 3)).round().long()
    times = times.clamp(0, STEPS - 1)
    x = (torch.rand(batch, CHANNELS, STEPS) < 0.01).float()
    x.scatter_(2, times, (torch.rand(times.shape) > 1 / 4).float())
    return x.permute(2, 0, 1).contiguous(), label


# %% [markdown]
# ## The model: plain PyTorch
#
# Recurrent leaky integrate-and-fire neurons with a learned decay, a surrogate gradient, and a
# leaky readout. Nothing in it comes from lsnn_ext.


# %%
class Spike(torch.autograd.Function):
    """A step function whose derivative is 1 / (1 + 5 |u|)^2."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        return gradient / (1 + 5 * u.abs()) ** 2


class Classifier(nn.Module):
    """(T, B, channels) -> logits (B, classes)."""

    def __init__(self, neurons: int = 128) -> None:
        super().__init__()
        self.w_in = nn.Linear(CHANNELS, neurons)
        self.w_rec = nn.Linear(neurons, neurons, bias=False)
        self.w_out = nn.Linear(neurons, CLASSES)
        self.decay = nn.Parameter(torch.full((neurons,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.decay)
        v = z = x.new_zeros(x.shape[1], len(alpha))
        y = x.new_zeros(x.shape[1], CLASSES)
        answers = []
        for x_t in x:
            v = self.membrane(alpha * v * (1 - z), x_t, z)
            z = Spike.apply(v - 0.3)
            y = 0.95 * y + self.w_out(z)
            answers.append(y)
        return torch.stack(answers).mean(0)

    def membrane(self, v: Tensor, x_t: Tensor, z: Tensor) -> Tensor:
        return v + self.w_in(x_t) + self.w_rec(z)


# %% [markdown]
# ## Convert it
#
# `convert` needs an example input. It records one call, finds the recurrence, compiles it, and
# compares the result with the original. The report names what runs in a kernel (`fused`) and what
# is computed for all steps at once.

# %%
loop = Classifier()
fast, report = lsnn_ext.convert(copy.deepcopy(loop), draw(BATCH)[0])
print(report)

# %% [markdown]
# ## Equal results, equal gradients
#
# The converted model has the same parameters under the same names. Sums may be rounded in another
# order, so results agree to rounding.

# %%
x, label = draw(BATCH)
results, gradients = [], []
for model in loop, fast:
    logits = model(x)
    results.append(logits.detach())
    gradients.append(torch.autograd.grad(nn.functional.cross_entropy(logits, label),
                                         model.parameters()))
difference = (results[0] - results[1]).abs().max() / results[0].abs().max()
print(f"largest difference of the logits: {difference:.1e} of the largest logit")
for (name, _), one, other in zip(loop.named_parameters(), *gradients, strict=True):
    difference = (one - other).abs().max() / one.abs().max()
    print(f"  gradient of {name:12s} {difference:.1e} of its largest")

# %% [markdown]
# ## Train both, in turns
#
# The same batches, the same optimizer. The two models take turns within each iteration, so a busy
# machine slows both. Rounding grows over a training: the losses agree at first, and later they are
# two runs of the same training.

# %%
ITERATIONS = 3 if QUICK else 150
models = {"loop": loop, "converted": fast}
optimizers = {name: torch.optim.Adam(model.parameters(), 5e-3) for name, model in models.items()}
schedules = [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, ITERATIONS)
             for optimizer in optimizers.values()]
losses: dict[str, list[float]] = {name: [] for name in models}
seconds: dict[str, list[float]] = {name: [] for name in models}
for _ in range(ITERATIONS):
    x, label = draw(BATCH)
    for name, model in models.items():
        begin = time.perf_counter()
        loss = nn.functional.cross_entropy(model(x), label)
        optimizers[name].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[name].step()
        seconds[name].append(time.perf_counter() - begin)
        losses[name].append(loss.item())
    for schedule in schedules:
        schedule.step()


# %%
x, label = draw(20 if QUICK else 1000)
for name, model in models.items():
    with torch.no_grad():
        accuracy = (model(x).argmax(-1) == label).float().mean()
    print(f"{name:9s} {100 * accuracy:5.1f} % of new samples right, "
          f"{1000 * sum(seconds[name]) / ITERATIONS:6.1f} ms per iteration")
ratio = sum(seconds["loop"]) / sum(seconds["converted"])
print(f"the converted training is {ratio:.1f} times as fast ({torch.get_num_threads()} threads)")

# %% [markdown]
# ## What keeps a line a loop
#
# A number of a tensor in Python cannot be recorded: the next input may have another one. Such a
# model is not converted, and the reason names the line.


# %%
class Decides(Classifier):
    """Skips the recurrent product while no neuron spikes."""

    def membrane(self, v: Tensor, x_t: Tensor, z: Tensor) -> Tensor:
        v = v + self.w_in(x_t)
        return v + self.w_rec(z) if z.sum().item() else v


x, label = draw(BATCH)
print(lsnn_ext.convert(Decides(), x)[1])

# %% [markdown]
# The remedy: compute the product in every step, as `Classifier` does. The kernel skips zeros.
#
# An operator along the neurons, such as `LayerNorm` of the membrane, mixes the states of all
# neurons in each step. That recurrence stays a loop, and the report names the line. The rest of the
# model, here the readout, is converted.


# %%
class NormalizesMembrane(Classifier):
    """LayerNorm of the membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(128)

    def membrane(self, v: Tensor, x_t: Tensor, z: Tensor) -> Tensor:
        return self.norm(super().membrane(v, x_t, z))


print(lsnn_ext.convert(NormalizesMembrane(), x)[1])

# %% [markdown]
# The remedy, where the model allows it: normalize the current. It does not depend on the state, so
# it is computed for all steps at once, and the recurrence is fused.


# %%
class NormalizesCurrent(NormalizesMembrane):
    """LayerNorm of the input current."""

    def membrane(self, v: Tensor, x_t: Tensor, z: Tensor) -> Tensor:
        return v + self.norm(self.w_in(x_t)) + self.w_rec(z)


print(lsnn_ext.convert(NormalizesCurrent(), x)[1])

# %% [markdown]
# ## Picture

# %%
OUT.mkdir(exist_ok=True)
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
x, label = draw(1)
left.scatter(*x[:, 0].nonzero(as_tuple=True), s=3, color="0.2")
left.set(title=f"A sample of class {int(label)}", xlabel="step", ylabel="channel")
for name, colour in (("loop", "C0"), ("converted", "C1")):
    middle.plot(losses[name], color=colour, label=name, alpha=0.7)
    right.plot(torch.tensor(seconds[name]).cumsum(0), losses[name], color=colour, label=name)
middle.set(title="The same training ...", xlabel="iteration", ylabel="loss", yscale="log")
right.set(title=f"... {ratio:.1f} times as fast", xlabel="seconds", yscale="log")
middle.legend()
figure.savefig(OUT / "own_loop.png", dpi=150)
print(OUT / "own_loop.png")
