"""Uses the installed package as a user would, away from its sources: python .ci/smoke_test.py.

What it computes is compared with the reference: spikes, state and gradients of a layer and of a
network, compiled, exported, saved and loaded; and a neuron that is written as a step. Ends with an
AssertionError where something is wrong.
"""
import copy
import io
import os
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]
# Python puts the folder of a program in front; the sources must not be found from there.
sys.path[:] = [path for path in sys.path if Path(path or os.getcwd()).resolve() not in
               (SOURCES, SOURCES / ".ci")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import lsnn_ext  # noqa: E402
from lsnn_ext.tools import info  # noqa: E402
from lsnn_ext.zoo import tc_lif  # noqa: E402


def results(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The readout, the state and the gradients of all parameters."""
    parameters = list(net.parameters())
    readout, state = net(x)
    return [readout, *state.neurons, state.readout,
            *torch.autograd.grad(readout.square().sum(), parameters)]


def main() -> None:
    assert info.main() == 0
    where = Path(lsnn_ext.__file__).resolve()
    assert "site-packages" in where.parts, f"expected what is installed, got the sources: {where}"
    assert lsnn_ext._ops.available, f"no compiled part: {lsnn_ext._ops.load_error}"

    torch.manual_seed(0)
    net = lsnn_ext.LSNN(20, 15, 15, 4, learn=("tau_mem", "beta"), dtype=torch.float64)
    x = (torch.rand(60, 5, 20) < 0.2).double()
    got = results(net, x)
    with lsnn_ext.use_reference():
        want = results(net, x)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert all(float(gradient.abs().max()) > 0 for gradient in got[-len(list(net.parameters())):])

    replica = copy.deepcopy(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    replica.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(replica(x)[0], got[0])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x)[0], got[0])
    program = torch.export.export(net, (x,))
    assert torch.equal(program.module()(x)[0], got[0])
    z, state = lsnn_ext.ALIF(20, 30).step(torch.ones(5, 20))
    assert z.shape == state.v[0].shape == (5, 30)
    neuron, current = tc_lif.neuron, torch.randn(20, 3, 7).cumsum(0)
    spikes, _ = lsnn_ext.functional.recurrent(current, None, neuron)
    with lsnn_ext.use_reference():
        assert torch.equal(lsnn_ext.functional.recurrent(current, None, neuron)[0], spikes)
    print("smoke test: passed")


if __name__ == "__main__":
    main()
