"""Few sequences and many neurons on several threads: bitwise identical."""
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import lsnn_ext
from compare import assert_same, outputs_and_gradients
from lsnn_ext import LSNN, _ops

pytestmark = pytest.mark.usefixtures("own_threads")


def _network(batch: int) -> tuple[LSNN, Tensor]:
    torch.manual_seed(0)
    net = LSNN(700, 256, 256, 5)
    # So large that no part of it is left to torch's own products.
    return net, (torch.rand(30, batch, 700) < 0.05).float()


def _results(net: LSNN, x: Tensor) -> list[Tensor]:
    return outputs_and_gradients(net, net.parameters(), x)


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("team_size", ["automatic", 2, 3, 16])
def test_a_team_computes_the_same_bits(batch: int, team_size: int | str) -> None:
    net, x = _network(batch)
    torch.set_num_threads(1)
    wanted = _results(net, x)
    assert wanted[0].abs().sum() > 0
    torch.set_num_threads(4)
    with _ops.forced(team_size=team_size):
        assert_same("results", _results(net, x), wanted)


def test_neurons_are_shared_out() -> None:
    net, x = _network(3)
    # A thread that another program keeps from its core comes too late for its team.
    small = lsnn_ext.ALIF(4, 5), torch.ones(20, 3, 4)
    torch.set_num_threads(2)
    # five neurons are not shared out
    for layer, inputs, members, tries in ((net, x, 3 * 2, 50), (*small, 3 * 1, 5)):
        most = 0
        with _ops.forced(team_size=2):
            for _ in range(tries):
                report = lsnn_ext.profile(layer, inputs, repeats=3, file=io.StringIO())
                assert report.calls == 1 and report.tiles == 3  # one for each sequence
                most = max(most, report.counters["members"])
                if most == 3 * 2:
                    break
        assert most == members


def test_teams_of_several_callers() -> None:
    """More threads than cores, all of them waiting for others."""
    net, x = _network(2)
    torch.set_num_threads(1)
    wanted = _results(net, x)[0]

    def call(_: int) -> bool:
        torch.set_num_threads(3)
        with torch.no_grad(), _ops.forced(team_size=3):  # each thread for itself
            return all(torch.equal(net(x)[0], wanted) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))
