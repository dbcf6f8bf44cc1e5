"""functional.recurrent names what is wrong with an argument."""
from typing import Any

import pytest
import torch
from torch import Tensor

import lsnn_ext
from any_neurons import ADAPTIVE, BRANCHES, adaptive
from lsnn_ext import Neuron, NeuronState
from lsnn_ext.functional import Delays, recurrent

T, B, N, I = 11, 3, 5, 4


def zeros(*shape: int, **more: Any) -> Tensor:
    return torch.zeros(shape, **more)


STATE = NeuronState({"v": zeros(B, N), "w": zeros(B, N)}, zeros(1, B, N))
WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "neuron: expected a Neuron, got function", {"neuron": adaptive}),
    (TypeError, "x: expected a tensor or PackedSpikes, got list", {"x": [1.0]}),
    (TypeError, "x: expected a floating point dtype", {"x": zeros(T, B, N, dtype=torch.int64)}),
    (ValueError, "x: expected shape", {"x": zeros(T, N)}),
    (ValueError, r"x: expected shape \(T, B, N\), got", {"x": zeros(T, B, 2, N)}),
    (ValueError, "x: expected one neuron or more", {"x": zeros(T, B, 0), "w_rec": None}),
    (ValueError, r"w_rec: expected shape \(5, 5\) or \(S, 5, 5\)", {"w_rec": zeros(N, 4)}),
    (TypeError, "w_rec: expected torch.float32", {"w_rec": zeros(N, N, dtype=torch.float64)}),
    (ValueError, "w_in: expected shape", {"w_in": zeros(N, 7)}),
    (TypeError, "w_in: expected a tensor", {"w_in": 1.0}),
    (ValueError, "bias: expected w_in with it, got None", {"bias": zeros(N)}),
    (ValueError, "bias: expected shape", {"w_in": zeros(N, N), "bias": zeros(4)}),
    (ValueError, "delay: expected extra steps >= 0", {"delay": -1}),
    (ValueError, "delay: expected shape", {"delay": zeros(2, N, N, dtype=torch.int64)}),
    (ValueError, "delay: expected 2 ascending delays", {"w_rec": zeros(2, N, N), "delay": [3, 1]}),
    (TypeError, "state: expected a NeuronState", {"state": zeros(B, N)}),
    (ValueError, "state.states: expected the names v, w, got v",
     {"state": NeuronState({"v": zeros(B, N)}, zeros(1, B, N))}),
    (ValueError, r"state.states\['w'\]: expected shape",
     {"state": STATE._replace(states={"v": zeros(B, N), "w": zeros(2, N)})}),
    (TypeError, "state.z: expected torch.float32",
     {"state": STATE._replace(z=zeros(1, B, N, dtype=torch.float64))}),
    (ValueError, "state.z: expected shape .* or more past steps", {"state": STATE, "delay": 2}),
    (ValueError, "checkpoint_every: expected", {"checkpoint_every": 0}),
    (ValueError, "sparse_grad", {"sparse_grad": "some"}),
    (ValueError, r"lengths: expected shape \(3,\)", {"lengths": [1]}),
    (ValueError, "lengths: expected steps from 0 to T = 11", {"lengths": [12, 1, 1]}),
    (TypeError, "autapses: expected True or False", {"autapses": 1}),
    (TypeError, "theta: expected a number or a tensor, got none", {"theta": None}),
    (TypeError, "rho: expected a coefficient of Neuron.adaptive., which are tau, theta",
     {"rho": 1.0}),
    (ValueError, r"theta: expected a number or shape \(5,\)", {"theta": zeros(2)}),
    (TypeError, "theta: expected numbers", {"theta": torch.tensor(True)}),
    (TypeError, "theta: expected a tensor for a complex number", {"theta": 1j}),
    (TypeError, "theta: expected a number or a tensor, got str", {"theta": "1"})]


@pytest.mark.parametrize(("kind", "message", "changed"), WRONG, ids=[w[1] for w in WRONG])
def test_wrong_arguments_are_named(kind: type[Exception], message: str,
                                   changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"x": zeros(T, B, N), "w_rec": zeros(N, N), "neuron": ADAPTIVE,
                             "theta": 0.3, **changed}
    if given["theta"] is None:
        del given["theta"]
    with pytest.raises(kind, match=message):
        recurrent(given.pop("x"), given.pop("w_rec"), given.pop("neuron"), **given)


def test_wrong_shapes_of_several_currents() -> None:
    x, w = zeros(T, B, 2, N), zeros(2, N, N)
    given = {"tau": 3.0, "gain": 1.0}
    with pytest.raises(ValueError, match=r"w_rec: expected shape \(2, 5, 5\) or \(S, 2, 5, 5\)"):
        recurrent(x, zeros(N, N), BRANCHES, **given)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 2, N\)"):
        recurrent(x[:, :, 0], w, BRANCHES, **given)
    with pytest.raises(ValueError, match="w_in: expected shape"):
        recurrent(zeros(T, B, I), w, BRANCHES, w_in=zeros(N, I), **given)
    each = torch.zeros(2, N, N, dtype=torch.int64)
    spikes, _ = recurrent(x, w, BRANCHES, delay=Delays.of(each), **given)
    assert spikes.shape == (T, B, N)


def test_a_step_that_is_no_program_names_the_remedy() -> None:
    def branching(c, v, z):
        return (v + 1, z) if bool(c.sum() > 0) else (v, z)

    x, neuron = zeros(T, B, N), Neuron(branching)
    with pytest.raises(RuntimeError, match=r"if bool\(c.sum.*; with lsnn_ext.use_reference\(\)"):
        recurrent(x, None, neuron)
    with lsnn_ext.use_reference():
        assert recurrent(x, None, neuron)[0].shape == (T, B, N)
