"""The reference: defaults of every model, one step by hand, and what docstrings state."""
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same
from lsnn_ext import functional, reference
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext.models import COEFFICIENTS, MODELS


@pytest.mark.parametrize("name", SURROGATES)
def test_integral_of_surrogate(name: str) -> None:
    m = torch.linspace(-4.003, 4, 1001, dtype=torch.float64)
    surrogate, step = SURROGATES[name], 1e-5
    slope = (surrogate.integral(m + step) - surrogate.integral(m - step)) / (2 * step)
    assert_same(name, slope, surrogate.psi(m), tolerance=1e-6)
    assert float(surrogate.psi(m).max()) > 0.2


@pytest.mark.parametrize("dynamics", MODELS)
def test_default_coefficients(dynamics: str) -> None:
    """What is left out follows the model, and keeps the graph of what it is computed from."""
    model = MODELS[dynamics]
    alpha, rho, theta = (torch.tensor(value, dtype=torch.float64, requires_grad=True)
                         for value in (0.9, 0.8, 0.5))
    given = reference.complete_coefficients(dynamics, alpha=alpha, theta=theta, rho=rho)
    assert tuple(given) == COEFFICIENTS
    sources = {"kappa": {"1": 1.0, "1-alpha": 0.1}[model.kappa],
               "q": {"1": 1.0, "1-rho": 0.2}[model.q], "R": {"theta": 0.5, "0": 0.0, "alpha": 0.9,
                                                             "unused": 0.0}[model.R],
               "beta": {"0": 0.0, "theta": 0.5}[model.beta], "eta": model.eta, "p": 0.0,
               "sigma": 0.0, "width": 0.5 if model.width is None else model.width}
    for name, want in sources.items():
        assert float(torch.as_tensor(given[name]).detach()) == pytest.approx(want), name
    if model.kappa == "1-alpha":
        (slope,) = torch.autograd.grad(torch.as_tensor(given["kappa"]), alpha)
        assert float(slope) == -1.0


def test_one_step_by_hand() -> None:
    """The model lsnn with dyadic numbers: each equation can be followed in the head."""
    v0, a0, i0, r0 = (torch.tensor([[value]]) for value in (1.0, 0.5, 0.0, 0.0))
    result: Any = reference.alif(
        torch.tensor([[[2.0]]]), torch.tensor([[0.5]]), alpha=0.5, theta=0.25, rho=0.5, beta=0.5,
        refractory=3, state=reference.State(v0, a0, i0, r0, torch.tensor([[[1.0]]])), trace=True)
    spikes, last, traces = result
    a = 0.5 * 0.5 + 0.5 * 1.0  # (3) with q = 1 - rho
    threshold = 0.25 + 0.5 * a  # (4)
    # (1), (5) with kappa = 1 - alpha, (6)
    v = 0.5 * 1.0 + 0.5 * (2.0 + 0.5 * 1.0) - 1.0 * threshold
    assert (float(traces.a), float(traces.threshold), float(traces.v)) == (a, threshold, v)
    assert float(spikes) == 1.0  # (7): the old v of 1 is over .625
    assert (float(last.z), float(last.r)) == (1.0, 3.0)  # (9)


def _snippet(function: Any) -> str:
    """What stands under "Equivalent to" in the docstring."""
    text = inspect.getdoc(function)
    lines = (line.strip() for line in text[text.index("Equivalent to"):].splitlines())
    return "\n".join(line[4:] for line in lines if line.startswith((">>> ", "... ")))


@pytest.mark.parametrize("name", ["alif", "layer", "linear", "leaky_readout"])
def test_docstrings_say_what_is_computed(name: str) -> None:
    """The plain torch that each function is said to be equivalent to gives what it gives."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    T, B, N, I, O = 30, 3, 9, 4, 2
    neuron = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.8}
    given: dict[str, Any] = {
        "current": drawn(T, B, N) * 2, "w_rec": drawn(N, N) - 0.5, "w_in": drawn(N, I),
        "w_out": drawn(O, N), "k": 0.8, "k_out": 0.8, "p": drawn(B, O), "options": neuron,
        "bias": drawn(N), "weight": drawn(N, I), "readout_state": drawn(B, O),
        "b_out": drawn(O)}
    given["x"] = drawn(T, B, N if name == "leaky_readout" else I)
    calls = {
        "alif": lambda g: functional.alif(g["current"], g["w_rec"], **neuron),
        "layer": lambda g: functional.layer(
            g["x"], g["w_in"], g["w_rec"], bias=g["bias"], w_out=g["w_out"], k_out=0.8,
            readout_state=g["readout_state"], b_out=g["b_out"], **neuron),
        "linear": lambda g: functional.linear(g["x"], g["weight"], g["bias"]),
        "leaky_readout": lambda g: functional.leaky_readout(g["x"], g["w_out"], 0.8, g["p"])}
    got = calls[name](given)
    scope = dict(vars(functional)) | given | neuron | {"torch": torch}
    exec(_snippet(getattr(functional, name)), scope)  # noqa: S102
    pairs = {
        "alif": lambda: [(got[1].v, scope["v"]), (got[1].a, scope["a"]), (got[0][-1], scope["z"])],
        "layer": lambda: [(got.spikes, scope["spikes"]), (got.readout, scope["readout"]),
                          (got.readout_state, scope["readout_state"])],
        "linear": lambda: [(got, scope["y"])],
        "leaky_readout": lambda: [(got[0], torch.stack(scope["all_p"]))]}[name]()
    assert name != "alif" or 0 < float(got[0].mean()) < 1
    for found, wanted in pairs:
        assert_same(name, found, wanted, tolerance=1e-12)
