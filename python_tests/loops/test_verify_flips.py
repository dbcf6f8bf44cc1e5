"""What verify counts as rounding at a threshold."""
from typing import Any

import pytest
import torch

from lsnn_ext.loops.expected import Expected
from lsnn_ext.loops.functions import Apply
from lsnn_ext.loops.ir import Call, Loop
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.rounding import VerificationError
from lsnn_ext.loops.verify import verify
from small_loops import prepare, random, spike

T, B, N = 9, 3, 5


def near_threshold() -> tuple[Plan, Any, Loop, int]:
    """A plan in whose step 4 the argument of neuron (1, 2) is an ulp above the threshold."""
    x, w = random(T, B, N), torch.zeros(N, N).double()

    def leaky(x, w):
        v, z = torch.full((B, N), 0.1).double(), torch.zeros(B, N).double()
        out = []
        for x_t in x.unbind(0):
            v = 0.9 * v + x_t + z @ w
            z = spike(v - 1.0)
            out.append(z)
        return torch.stack(out)

    v = torch.full((B, N), 0.1).double()
    for t in range(T):
        if t == 4:
            x[t, 1, 2] = 1 + 2e-16 - 0.9 * v[1, 2]
        v = 0.9 * v + x[t]
        if t == 4:
            assert 0 < v[1, 2] - 1 < 1e-15
    plan, result = prepare(leaky, [x, w])
    loop = next(part[0] for part in plan.parts if not isinstance(part, Call))
    z = next(q for q, one in enumerate(loop.body) if isinstance(one.call.function, Apply))
    return plan, result, loop, z


def test_flip_at_the_threshold_counts():
    plan, _, loop, z = near_threshold()
    expected = Expected(plan)
    got = torch.stack([expected.numbers[made[z][0]] for made in loop.made])
    got[4, 1, 2] = 0

    def calls(t):
        return [expected.makers[values[0]] for values in loop.made[t]]

    expected.compare(loop, (z, 0), got, 0, calls)
    assert expected.flips == 1
    got[7, 0, 3] = 1 - got[7, 0, 3]
    with pytest.raises(VerificationError) as error:
        expected.compare(loop, (z, 0), got, 0, calls)
    assert (error.value.step, error.value.neuron) == (7, (0, 3))


def test_flip_in_a_run():
    """An input current of a kernel moves by an ulp, and a spike with it."""
    plan, result, _, _ = near_threshold()
    i, (loop, stages) = next((i, part) for i, part in enumerate(plan.parts)
                             if not isinstance(part, Call))
    k = next(k for k, stage in enumerate(stages) if stage.kind == "fused")
    component = stages[k].run.__self__
    current = component.currents.make_current

    def moved(*args):
        return current(*args) * (1 - 1e-15)

    component.currents.make_current = moved
    found = verify(plan, result)
    assert found.flips >= 1
    assert found.replayed >= 1
    assert found.gradients == 0
    assert "flip" in found.reason
    assert "flip" in str(found)
