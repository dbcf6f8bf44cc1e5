"""What the learning-to-learn example is measured by: learners that see the examples of one task.

All take inputs x (E, B, D) and answers y (E, B) of B tasks, from 0 to 1, and give squared
errors."""
import torch
from torch import Tensor

HIDDEN, RATE, PASSES = 20, 0.03, 10  # of the small network; gradient steps after each example


def _with_one(x: Tensor) -> Tensor:
    """(B, E, D + 1), in double precision."""
    return torch.cat([2 * x - 1, torch.ones_like(x[..., :1])], -1).double().transpose(0, 1)


def best_linear(x: Tensor, y: Tensor) -> Tensor:
    """(B,) mean errors of the linear function that is best for all examples of a task: it knows
    the answers beforehand."""
    X, wanted = _with_one(x), y.double().t()[..., None]
    return (X @ torch.linalg.lstsq(X, wanted).solution - wanted).square().mean((1, 2)).float()


def ridge(x: Tensor, y: Tensor, strength: float = 0.05) -> Tensor:
    """(E, B) errors of ridge regression on the examples before each."""
    X, wanted = _with_one(x), y.double().t() - 0.5
    B, E, D = X.shape
    moments, sums = strength * torch.eye(D).double().expand(B, D, D), torch.zeros(B, D).double()
    errors = []
    for e in range(E):
        now = X[:, e]
        guess = (torch.linalg.solve(moments, sums) * now).sum(-1)
        errors.append((guess - wanted[:, e]).square())
        moments = moments + now[:, :, None] * now[:, None]
        sums = sums + now * wanted[:, e, None]
    return torch.stack(errors).float()


@torch.enable_grad()
def backpropagation(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    """(E, B) errors of a small network for each task, trained by Adam on the examples before each,
    in steps that are as many for each task and example."""
    E, B, D = x.shape
    inputs, wanted = 2 * x.transpose(0, 1) - 1, y.t()
    shapes = (B, D, HIDDEN), (B, 1, HIDDEN), (B, HIDDEN, 1), (B, 1, 1)
    scales = 1.0, 1.0, 0.1 * HIDDEN**-0.5, 0.0
    weights = [(scale * torch.randn(shape, generator=random)).requires_grad_()
               for shape, scale in zip(shapes, scales, strict=True)]
    tuned = torch.optim.Adam(weights, lr=RATE)

    def answers(part: Tensor) -> Tensor:
        w1, b1, w2, b2 = weights
        return 0.5 + (torch.tanh(part @ w1 + b1) @ w2 + b2)[..., 0]

    errors = []
    for e in range(E):
        errors.append((answers(inputs[:, e:e + 1])[:, 0] - wanted[:, e]).square().detach())
        for _ in range(PASSES):
            tuned.zero_grad()
            (answers(inputs[:, :e + 1]) - wanted[:, :e + 1]).square().mean(1).sum().backward()
            tuned.step()
    return torch.stack(errors)
