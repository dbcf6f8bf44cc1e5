"""Calls that nothing reads do not run; those that a loop reads in any iteration do."""
import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import loops
from lsnn_ext.loops.plan import Plan


class Peeled(nn.Module):
    """Another input in the first iteration, whose results are not read."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        first = torch.zeros_like(x[0])
        results, states = [], []
        for t, h in enumerate(x.unbind(0)):
            h = h if t else first
            v = 0.9 * v + torch.tanh(x[t])
            results.append(torch.tanh(2.0 * h))
            states.append(v)
        return torch.stack(results[1::2]) + torch.stack(states)[-1]


@pytest.mark.parametrize("verify", [False, True])
def test_an_iteration_that_nothing_reads_has_its_inputs(verify: bool,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that raises would run the original."""
    monkeypatch.setenv("LSNN_COMPILE", "0")
    x = torch.randn(12, 3, 4, dtype=torch.float64)
    model, report = loops.convert(Peeled(), x, verify=verify)
    assert report.converted
    replayed = []
    run = Plan.__call__

    def call(plan: Plan, leaves: dict[int, Tensor]) -> object:
        result = run(plan, leaves)
        replayed.append(plan)
        return result

    monkeypatch.setattr(Plan, "__call__", call)
    model(x)
    y = torch.randn_like(x)
    torch.testing.assert_close(model(y), Peeled()(y), rtol=1e-12, atol=0)
    assert replayed
