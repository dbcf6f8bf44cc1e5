"""Forced options reach both passes; the environment sets the defaults."""
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_operator import BUSY
from torch import Tensor

from cases import Case, build
from compare import assert_same_runs, changed, named, through_exported_file
from lsnn_ext import LSNN, _ops, functional
from lsnn_ext._core.prepared_layer import why_not_prepared
from operator_calls import Calls, call_all_operators, count, needs_compiled, python_output

pytestmark = needs_compiled
cpu_only = pytest.mark.skipif("LSNN_EMULATE" in os.environ, reason="no CPU kernels run here")
K: dict[str, Any] = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}
STEPS = {"dense": "product_steps_dense", "active": "product_steps_active",
         "bf16": "product_steps_active", "sparse": "product_steps_sparse"}


def _leaves(B: int = 3, N: int = 70) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w = (
        torch.rand(40, B, N, generator=generator), torch.randn(N, N, generator=generator) / N**0.5)
    return x, w.requires_grad_()


def _loss(x: Tensor, w: Tensor) -> Tensor:
    return functional.alif(x, w, **K)[0].sum()


# ------------------------------------------------------------------------------------------- forced
@cpu_only
@pytest.mark.parametrize("product", STEPS)
def test_product_is_that_of_the_forward_call(product: str) -> None:
    """The backward pass runs in another thread, outside of the context or in another one."""
    x, w = _leaves()
    with _ops.forced(product=product):
        loss = _loss(x, w)

    def elsewhere() -> None:
        with _ops.forced(product="dense" if product == "sparse" else "sparse"):
            loss.backward()

    def in_another_thread() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(elsewhere).result()

    for backward in (lambda: loss.backward(retain_graph=True), in_another_thread):
        counters = count(backward)
        found = {name: many for name, many in counters.items() if name.startswith("product_steps")}
        # The last step of all, whose results are all of use, is dense where only rows of use were
        # asked for.
        assert found[STEPS[product]] >= 39 and sum(
            found.values()) - found[STEPS[product]] <= 1, found


@pytest.mark.slow
@cpu_only
@pytest.mark.usefixtures("own_threads")
def test_team_size_reaches_both_passes() -> None:
    x, w = _leaves(B=1, N=512)
    torch.set_num_threads(2)

    def is_shared(size: int) -> tuple[bool, bool]:
        with _ops.forced(team_size=size):
            forward = count(lambda: _loss(x, w))
            loss = _loss(x, w)
        return forward["members"] > forward["tiles"], count(loss.backward)[
            "ns_wait_backward"] > 0

    alone, teams = ([is_shared(size) for _ in range(20)] for size in (1, 2))
    # A thread that another program keeps from its core comes too late for its team.
    assert not any(map(any, alone)) and all(map(any, zip(*teams, strict=True)))


@cpu_only
def test_l1_size_reaches_the_product() -> None:
    """A product in blocks of ten columns adds the same numbers in another order."""
    x, w = _leaves(B=32)
    slopes = []
    for size in (1024, 1 << 20):
        with _ops.forced(product="active", l1_size=size):
            loss = _loss(x, w)
        slopes.append(torch.autograd.grad(loss, w)[0])
    assert not torch.equal(*slopes)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_all_options_reach_both_operators() -> None:
    x, w = _leaves()
    with Calls() as calls:
        with _ops.forced(product="dense", team_size=2, l1_size=4096, design="step",
                         kernels="general"):
            loss = _loss(x, w)
        loss.backward()
    for name in ("alif_forward", "alif_backward"):
        operator, args, _ = calls.last[name]
        assert named(operator, args)["options"] == [1, 2, 4096, 4, 1]


@pytest.mark.skipif("LSNN_EMULATE" not in os.environ, reason="it takes the emulated kernels")
def test_operators_run_the_design_or_refuse_it() -> None:
    x, w = _leaves(B=1, N=1600)
    refused = pytest.raises((ValueError, RuntimeError),
                            match="design: expected one that can run 1600 neurons")
    with _ops.forced(design="block"), refused:
        _loss(x[:2], w)
    with Calls() as calls, _ops.forced(design="gather"):
        _loss(x[:2], w).backward()
    operator, args, _ = calls.last["alif_backward"]
    with refused:
        operator(*changed(operator, args, options=list(_ops.Options(design=1))))


@pytest.mark.skipif("LSNN_EMULATE" not in os.environ, reason="it takes the emulated kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_by_torch_s_library(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a GPU takes, in both directions; sums of dyadic numbers are exact in any order."""
    case = Case("products", T=20, B=3, N=33, delay="each", state="real")
    problem = build(case, dtype, dyadic=True)
    with _ops.forced(design="step"):
        want = problem.run(functional.alif)
        monkeypatch.setenv("LSNN_EMULATE", "torch")
        got = problem.run(functional.alif)
    assert want[0]["spikes"].any()
    assert_same_runs(got, want, tolerance=1e-5 if dtype == torch.float32 else 1e-12)


@cpu_only
def test_short_calls_are_forced_as_well() -> None:
    """A prepared layer takes no options: the operator does."""
    net, x = LSNN(20, 60, 60, 3), torch.rand(5, 1, 20)
    with torch.no_grad():
        want = net(x)[0]
        for size in (1, 2):
            found: list[Tensor] = []
            with _ops.forced(team_size=size):
                assert why_not_prepared(5, 1, 120)
                counters = count(lambda: found.append(net(x)[0]))  # noqa: B023
            assert torch.equal(found[0], want) and counters["members"] >= counters["tiles"] > 0
        assert not why_not_prepared(5, 1, 120)


def test_contexts_nest_and_end() -> None:
    assert _ops.forced_options() == ()
    with _ops.forced(product="dense"):
        with _ops.forced(team_size=3), _ops.forced():
            assert _ops.Options(*_ops.forced_options()) == (1, 3, 0, 0, 0)
        with _ops.forced(product="automatic", design="step"):
            assert _ops.Options(*_ops.forced_options()) == (0, 0, 0, 4, 0)
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(_ops.forced_options).result()
        assert seen == (), "another thread sees what is forced"
        with pytest.raises(ValueError, match="product: expected automatic or dense"), _ops.forced(
                               product="rows"):
            pass
        assert _ops.Options(*_ops.forced_options()).product == 1
    assert _ops.forced_options() == ()


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(TypeError, match="^forced: expected some of product, team_size, l1_size, "
                                        "design, kernels, got 'team'$"):
        _ops.forced(team=2).__enter__()
    with pytest.raises(ValueError, match="^design: expected automatic or block or .*, got 'grid'$"):
        _ops.forced(design="grid").__enter__()
    with pytest.raises(ValueError, match="^team_size: expected automatic, got 'many'$"):
        _ops.forced(team_size="many").__enter__()


# ------------------------------------------------------------------------------------ the operators
BAD = [
    ([0, 0, 0], "options: expected none, or 5 integers, got 3"),
    ([0] * 6, "options: expected none, or 5 integers, got 6"),
    ([5, 0, 0, 0, 0], "product: expected 0, or 1 to 4 for dense, active, bf16 or sparse, got 5"),
    ([-1, 0, 0, 0, 0], "product: expected 0, or 1 to 4 for .*, got -1"),
    ([0, 1025, 0, 0, 0], "team_size: expected 0, or 1 to 1024, got 1025"),
    ([0, -1, 0, 0, 0], "team_size: expected 0, or 1 to 1024, got -1"),
    ([0, 0, 1023, 0, 0], "l1_size: expected 0, or 1024 to 1099511627776, got 1023"),
    ([0, 0, 2**62, 0, 0], f"l1_size: expected 0, or 1024 to 1099511627776, got {2**62}"),
    ([0, 0, 0, 5, 0], "design: expected 0, or 1 to 4 for block, gather, cluster or step, got 5"),
    ([0, 0, 0, 0, 4], "kernels: expected 0, or 1 to 3 for general, matrices or rows, got 4")]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[row[1] for row in BAD])
def test_operators_refuse_bad_options_by_name(options: list[int], message: str) -> None:
    made = call_all_operators(BUSY)
    for operator, args, _ in (made["alif_forward"], made["alif_backward"]):
        assert named(operator, args)["options"] == []
        with pytest.raises(RuntimeError, match=f"^{message}$"):
            operator(*changed(operator, args, options=options))
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        _ops._C.plan(1, 1, 20, device="h100", options=options)


def test_compiled_and_exported_programs_bring_no_options() -> None:
    """torch.compile sees no context variables: a graph keeps nothing that is forced."""
    x, w = _leaves()
    want = torch.autograd.grad(_loss(x, w), w)[0]
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    with _ops.forced(product="bf16"):
        loss = compiled(x, w)
    assert torch.equal(torch.autograd.grad(loss, w)[0], want)

    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return _loss(x, w)

    with _ops.forced(product="bf16"):
        program = torch.export.export(Loss(), (x, w.detach()))
    assert torch.equal(through_exported_file(program).module()(x, w.detach()), _loss(x, w).detach())


# ---------------------------------------------------------------------------------- the environment
@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LSNN_")]:
        monkeypatch.delenv(name)


DEFAULTS = """
import os, torch
from lsnn_ext import _ops, functional
print(_ops._C.default_options(), end=" ")
os.environ.update(LSNN_PRODUCT="dense", LSNN_TEAM_SIZE="1", LSNN_L1_SIZE="nonsense")
os.environ["LSNN_DESIGN"] = "grid"
print(_ops._C.default_options(), _ops._C.plan(10, 4, 128, device="h100")["requested"], end=" ")
w = torch.rand(40, 40, requires_grad=True)
_ops._C.profile(True)
for forced in ({}, {"product": "dense"}):
    with _ops.forced(**forced):
        loss = functional.alif(torch.rand(20, 2, 40), w, alpha=.9, theta=.3)[0].sum()
    _ops._C.counters()
    loss.backward()
    counters = _ops._C.counters()
    made = (name for name in counters if name.startswith("product_steps") and counters[name])
    print(*(name[14:] for name in made), end=" ")
with _ops.forced(design="automatic"):
    print(_ops._C.plan(10, 4, 128, device="h100", options=list(_ops.forced_options()))["requested"])
"""


@pytest.mark.slow
@cpu_only
def test_the_environment_sets_the_defaults_once(unset: None) -> None:
    given = {"LSNN_PRODUCT": "sparse", "LSNN_TEAM_SIZE": "2", "LSNN_L1_SIZE": "4096",
             "LSNN_DESIGN": "cluster", "LSNN_KERNELS": "general"}
    assert python_output(DEFAULTS, **given) == (
        "[4, 2, 4096, 3, 1] [4, 2, 4096, 3, 1] cluster sparse dense None\n")


REFUSALS = """
import os, torch
from lsnn_ext import _ops, functional
w = torch.rand(4, 4)
for name, value in {values}:
    os.environ[name] = value
    for call in (lambda: functional.alif(torch.rand(2, 2, 4), w, alpha=.9, theta=.3),
                 _ops._C.default_options, lambda: _ops._C.plan(10, 4, 128, device="h100"),
                 lambda: _ops.forced(team_size=1).__enter__()):
        try:
            call()
            print("nothing was raised")
        except RuntimeError as error:
            print(error)
    del os.environ[name]
functional.alif(torch.rand(2, 2, 4), w, alpha=.9, theta=.3)
"""


def test_the_environment_is_refused_by_name(unset: None) -> None:
    wanted = {
        "LSNN_PRODUCT": "dense, active, bf16 or sparse",
        "LSNN_TEAM_SIZE": "1 to 1024",
        "LSNN_L1_SIZE": "1024 to 1099511627776",
        "LSNN_DESIGN": "block, gather, cluster or step",
        "LSNN_KERNELS": "general, matrices or rows"}
    values = [("LSNN_PRODUCT", "rows"), ("LSNN_PRODUCT", "1"), ("LSNN_TEAM_SIZE", "many"),
              ("LSNN_TEAM_SIZE", "2 "), ("LSNN_TEAM_SIZE", "0"), ("LSNN_TEAM_SIZE", "-1"),
              ("LSNN_TEAM_SIZE", "1" * 30), ("LSNN_L1_SIZE", "1000"), ("LSNN_L1_SIZE", "32k"),
              ("LSNN_DESIGN", "grid"), ("LSNN_KERNELS", "lsnn")]
    said = python_output(REFUSALS.format(values=values)).splitlines()
    assert said == [f"{name}: expected {wanted[name]}, got '{value}'" for name, value in values
                    for _ in range(4)]
