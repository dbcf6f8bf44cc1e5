"""Steps and short calls without gradients take prepared layers, bitwise identical."""
from collections.abc import Callable
from typing import Any

import pytest
import torch

from draws import draw
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, LSNNState, State
from lsnn_ext._core import prepared_layer
from module_kinds import round_weights, run_steps
from operator_calls import Calls
from steps import LAYERS, I, N, agree, assert_equal, flat, needs_prepared_layers, prepared

EVERY: dict[str, Callable[[], Any]] = LAYERS | {
    "batch-first": lambda: ALIF(I, N, batch_first=True, tau_adapt=torch.linspace(20, 300, N)),
    "adlif": lambda: ALIF(I, N, dynamics="adlif", tau_mem=20.0, tau_adapt=700.0, threshold=0.1,
                          p=0.2, q=0.5),
    "norse": lambda: LIF(I, N, dynamics="norse_lif", threshold=0.01)}


@needs_prepared_layers
@pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_steps_equal_the_operator(name: str, batch: tuple[int, ...]) -> None:
    """With gradients: test_recorded_steps.py compares those steps with one call."""
    torch.manual_seed(0)
    module, state, fired = EVERY[name](), None, 0.0
    for x in draw(20, *batch, I, dtype=module.weight_ih_l0.dtype):
        spikes, state = agree(module.step, x, state)
        fired += float(spikes.sum())
    assert fired > 0


@needs_prepared_layers
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("form", ["unbatched", "one", "three"])
@pytest.mark.parametrize("name", EVERY)
def test_short_sequences_equal_the_operator(name: str, form: str, steps: int) -> None:
    torch.manual_seed(0)
    module = EVERY[name]()
    x = draw(steps, 3 if form == "three" else 1, I, dtype=module.weight_ih_l0.dtype)
    x = x[:, 0] if form == "unbatched" else x.transpose(0, 1) if module.batch_first else x
    _, state = agree(module, x)
    agree(module, x, state)


@needs_prepared_layers
def test_dropout_between_layers() -> None:
    module = ALIF(I, N, num_layers=2, dropout=0.5)
    for call, x in ((module.step, draw(2, I)), (module, draw(4, 2, I))):
        torch.manual_seed(3)
        want = call(x)
        torch.manual_seed(3)
        assert_equal(prepared(call, x), want)


def test_unusual_states() -> None:
    """A longer history, parts that are not contiguous, a plain tuple: all as with gradients."""
    module, x = ALIF(I, N, delay=1), draw(2, I)
    with torch.no_grad():
        state = State(*(torch.rand(1, 2, N) for _ in range(3)), torch.zeros(1, 2, N),
                      torch.ones(1, 5, 2, N))
        odd = State(*(leaf.mT.contiguous().mT for leaf in state))
        for given in (state, odd, tuple(state), state._replace(z=state.z[:, :2])):
            got = module.step(x, given)
            with torch.enable_grad():
                assert_equal(got, module.step(x, given))
        strided = x.mT.contiguous().mT
        got = module.step(strided, state)
    assert_equal(got, module.step(strided, state))


def test_results_are_their_own() -> None:
    """Nothing that is returned shares memory with the arguments, the layer or the next result."""
    net = LSNN(I, 20, 17, 3)
    with torch.no_grad():
        first = net.step(draw(1, I))
        tensors = [*flat(first), *flat(net.step(draw(1, I), first[1])), *net.parameters()]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


# -------------------------------------------------------------------------------------- the network
@pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"delay": 3, "bias": True, "dtype": torch.float64}, {"batch_first": True}],
    ids=str)
def test_network(options: dict[str, Any], batch: tuple[int, ...]) -> None:
    """A step equals forward on one step; T of them equal T calls of forward."""
    torch.manual_seed(0)
    net, state, other = LSNN(I, 20, 17, 3, **options), None, None
    first = net.neurons.batch_first and bool(batch)
    with torch.no_grad():
        net.readout.bias.copy_(torch.tensor([0.5, -0.25, 0.0]))
        for x in draw(20, *batch, I, dtype=options.get("dtype", torch.float32)):
            before = state
            y, state = net.step(x, before)
            whole, other = net(x.unsqueeze(1 if first else 0), other)
            assert_equal([y, state], [whole.squeeze(1 if first else 0), other])
            with torch.enable_grad():
                assert_equal([y, state], net.step(x, before))
                assert_equal([whole, other], net(x.unsqueeze(1 if first else 0), before))
    assert isinstance(state, LSNNState) and bool(y.any())


@pytest.mark.parametrize("exact", [True, False], ids=["exact-readout", "any-readout"])
@pytest.mark.parametrize("batch", [2, 300])  # the readout is torch's product, or inside
def test_network_in_one_call(batch: int, exact: bool) -> None:
    """Bitwise identical where all sums are exact, else to the rounding of sums."""
    torch.manual_seed(0)
    net, x = LSNN(I, 20, 17, 3), (draw(30, batch, I) * 2).round()
    with torch.no_grad():
        round_weights(net if exact else net.neurons, matrices_only=False)
        ys, state = run_steps(net, x)
        with Calls() as calls:
            want, after, spikes = net(x, return_spikes=True)
        if prepared_layer._USABLE:
            assert (calls.forward[-1].given["w_out"] is not None) == (batch == 300)
        assert_equal([want, after], net(x))
        assert_equal(state.neurons, after.neurons)
        if exact:
            assert_equal([ys, state], [want, after])
        else:  # of N sums; the filter rounds less than the sum over all outputs allows
            rounding = torch.finfo(want.dtype).eps * N * float(net.readout.weight.abs().sum())
            assert float((ys - want).abs().max()) <= rounding
    with torch.enable_grad():
        assert_equal([want, after, spikes], net(x, return_spikes=True))


def test_readout_step() -> None:
    torch.manual_seed(0)
    for readout in (LeakyReadout(N, 3), LeakyReadout(N, 300, bias=False), LeakyReadout(N, 1),
                    LeakyReadout(N, 3, tau_syn=5.0)):
        for batch in ((), (2,)):
            state = None
            for x in draw(4, *batch, N):
                with torch.no_grad():
                    got = readout.step(x, state)
                assert_equal(got, readout.step(x, state))
                y, end = readout(x.unsqueeze(0), state)
                assert_equal(got, [y[0], end])
                state = got[1]
