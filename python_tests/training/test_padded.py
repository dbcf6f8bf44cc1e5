"""Padded batches with lengths= of the modules equal a PackedSequence."""
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from compare import assert_all_same, assert_same, flat, weighted_gradients
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, LSNNState, ReadoutState, State, functional
from module_kinds import round_weights
from operator_calls import needs_compiled

T, B, I, N, O = 40, 5, 9, 33, 3
ORDERS = {"falling": (40, 40, 25, 7, 1), "any": (7, 40, 1, 25, 3)}
WITHIN = 1e-11  # of gradients in float64, by the largest of each
orders = pytest.mark.parametrize("order", ORDERS)
sides = pytest.mark.parametrize("first", [False, True], ids=["time first", "batch first"])
MODULES: dict[str, Any] = {
    "ALIF": lambda: ALIF(I, N, threshold=0.02), "LIF": lambda: LIF(I, N),
    "LSNN": lambda: LSNN(I, 10, N - 10, O, threshold=0.02),
    "LeakyReadout": lambda: LeakyReadout(I, O, tau_syn=3.0)}


def _exact(module: torch.nn.Module) -> Any:
    """In float64, with parameters that are multiples of 1/256."""
    return round_weights(module.double(), matrices_only=False)


def _x(first: bool = False, seed: int = 0) -> Tensor:
    """Inputs (T, B, I), first: (B, T, I)."""
    drawn = torch.rand(T, B, I, generator=torch.Generator().manual_seed(seed)) < 0.6
    return drawn.double().transpose(0, 1).contiguous() if first else drawn.double()


def _spoiled(x: Tensor, lengths: tuple[int, ...], first: bool = False) -> Tensor:
    """With NaN after the end of each sequence, which nobody may read."""
    x = x.clone()
    for b, steps in enumerate(lengths):
        (x[b] if first else x[:, b])[steps:] = torch.nan
    return x.requires_grad_()


def _pack(x: Tensor, order: str, first: bool = False) -> Any:
    return pack_padded_sequence(x, torch.tensor(ORDERS[order]), first, enforce_sorted=False)


def _padded(value: Any, first: bool) -> Any:
    """Of the steps of a PackedSequence: (T, B, .), or (B, T, .)."""
    return pad_packed_sequence(value, first, total_length=T)[0]


def _compare(module: Any, ours: dict[str, Tensor], theirs: dict[str, Tensor],
             leaves: tuple[Tensor, Tensor]) -> None:
    """Values, and gradients of all of them; leaves: the inputs of ours and theirs."""
    assert_all_same(ours, theirs, tolerance=1e-13)
    found = (weighted_gradients(values.values(), [x, *module.parameters()])
             for values, x in zip((ours, theirs), leaves, strict=True))
    assert_same("gradients of x and parameters", *found, tolerance=WITHIN, nonzero=True)


def _started(module: Any, x: Tensor) -> Any:
    """A state to begin with."""
    with torch.no_grad():
        return module(x)[1]


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (2, True)])
@sides
@pytest.mark.parametrize("kind", [ALIF, LIF])
@orders
def test_layers(kind: Any, order: str, first: bool, layers: int, bidirectional: bool) -> None:
    lengths = ORDERS[order]
    torch.manual_seed(1)
    layer = _exact(kind(I, N, layers, batch_first=first, bidirectional=bidirectional,
                        threshold=0.02, refractory=2))
    x, clean = _spoiled(_x(first), lengths, first), _x(first).requires_grad_()
    for state in (None, _started(layer, _x(first, seed=1))):
        z, end, traces, rates = layer(x, state, lengths=torch.tensor(lengths), trace=True,
                                      return_rates=True)
        want, want_end, want_traces, want_rates = layer(_pack(clean, order, first), state,
                                                        trace=True, return_rates=True)
        assert float(z.detach().mean()) > 0.005, "a silent layer would show nothing"
        _compare(layer, {"z": z, **traces._asdict(), **end._asdict(), "rates": rates},
                 {"z": _padded(want, first), **{name: _padded(want._replace(data=one), first)
                  for name, one in want_traces._asdict().items()}, **want_end._asdict(),
                  "rates": want_rates}, (x, clean))


@pytest.mark.parametrize("apart", ["", "hook", "tau_out"])
@sides
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
@orders
def test_networks(order: str, layers: int, bidirectional: bool, first: bool, apart: str) -> None:
    """With a bias of the readout; apart: why the parts are called separately."""
    lengths = ORDERS[order]
    torch.manual_seed(1)
    net = LSNN(I, 10, N - 10, O, layers, batch_first=first, bidirectional=bidirectional,
               threshold=0.02, learn=("tau_out",) if apart == "tau_out" else ())
    with torch.no_grad():
        net.readout.bias.fill_(0.5)
    if apart == "hook":
        net.neurons.register_forward_hook(lambda *_: None)
    net = _exact(net)
    x, clean = _spoiled(_x(first), lengths, first), _x(first).requires_grad_()
    for state in (None, _started(net, _x(first, seed=1))):
        y, end, z = net(x, state, lengths=list(lengths), return_spikes=True)
        want, want_end, want_z = net(_pack(clean, order, first), state, return_spikes=True)
        assert bool(z.any()) and type(end) is LSNNState
        _compare(net, {"y": y, "z": z, "p": end.readout, **end.neurons._asdict()},
                 {"y": _padded(want, first), "z": _padded(want_z, first), "p": want_end.readout,
                  **want_end.neurons._asdict()}, (x, clean))


@sides
@pytest.mark.parametrize("options", [{"tau": 20.0}, {"tau": None}, {
    "tau": 7.0, "tau_syn": 3.0, "learn": ("tau", "tau_syn")}], ids=str)
@orders
def test_readouts(order: str, options: dict[str, Any], first: bool) -> None:
    lengths, readout = ORDERS[order], LeakyReadout(I, O, batch_first=first, **options)
    with torch.no_grad():
        readout.bias.fill_(0.5)  # type: ignore[union-attr]
    readout = _exact(readout)
    x, clean = _spoiled(_x(first), lengths, first), _x(first).requires_grad_()
    start: Any = torch.linspace(-1, 1, B * O).double().view(B, O)
    start = ReadoutState(start, start.flip(0)) if "tau_syn" in options else start
    y, end = readout(x, start, lengths=lengths)
    want, want_end = readout(_pack(clean, order, first), start)
    ours, theirs = (dict(enumerate(flat(state))) for state in (end, want_end))
    _compare(readout, {"y": y, **ours}, {"y": _padded(want, first), **theirs}, (x, clean))


@needs_compiled
@orders
def test_spikes_as_bits(order: str) -> None:
    """In and out; of layers that are so large that bits stand between them."""
    torch.manual_seed(1)
    layer = ALIF(300, 300, 2, threshold=0.02)
    x, lengths = (torch.rand(T, B, 300) < 0.1).float(), torch.tensor(ORDERS[order])
    want, end = layer(_pack(x, order))
    for given in (x, functional.pack_spikes(x)):
        packed, after = layer(given, lengths=lengths, spikes="bits")
        assert bool(packed.bits.any())
        assert_same("spikes", packed.numbers(), _padded(want, False))
        assert_same("membrane", after.v, end.v, tolerance=1e-6)
    learned = layer(x, lengths=lengths, spikes="bits")[0].numbers().square().sum()
    assert all(bool(g.any()) for g in torch.autograd.grad(learned, list(layer.parameters())))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["ALIF", "LSNN", "LeakyReadout"])
def test_sequences_without_a_step(kind: str, grad: bool) -> None:
    """Their state stays; also in prepared calls."""
    torch.manual_seed(1)
    module, x, steps = MODULES[kind](), _x().float()[:6], torch.tensor([0, 6, 2, 0, 6])
    with torch.set_grad_enabled(grad):
        _, start = module(x)
        out, end = module(x, start, lengths=steps)
        whole, _ = module(x, start)
        _, of_one_step = module(x[:1], start, lengths=steps.clamp(max=1))
    for state in (end, of_one_step):
        for before, after in zip(flat(start), flat(state), strict=True):
            assert_same("state", after[..., ::3, :], before[..., ::3, :])
    assert not bool(out[:, ::3].any()) and not bool(out[2:, 2].any())
    assert_same("out", out[:, 1::3], whole[:, 1::3], tolerance=0 if kind == "ALIF" else 1e-6)
    assert not torch.equal(out, whole)
    empty, end = module(x[:0], start, lengths=[0] * B)
    assert empty.shape[:2] == (0, B)
    assert_same("state", flat(end), flat(start))
    none, _ = module(x[:, :0], lengths=torch.zeros(0, dtype=torch.int64))
    assert none.shape[:2] == (6, 0)


def test_windows_of_a_readout() -> None:
    net = _exact(LSNN(I, 10, N - 10, O, batch_first=True, threshold=0.02))
    lengths = torch.tensor([40, 8, 16, 24, 32])
    whole, _ = net(_x(True), lengths=lengths)
    y, _ = net(_x(True), lengths=lengths, readout_every=8)
    assert_same("means", y, whole.unflatten(1, (5, 8)).mean(2), tolerance=1e-12)
    assert bool(y[1, 0].any()) and not bool(y[1, 1:].any())
    with pytest.raises(ValueError, match="divisor of the steps of each sequence, got 8 for one of "
                                         "15"):
        net(_x(True), lengths=[40, 8, 16, 15, 32], readout_every=8)


@pytest.mark.parametrize("kind", MODULES)
def test_what_is_refused(kind: str) -> None:
    module, x = MODULES[kind](), _x().float()
    for given, lengths, message in (
        (x[:, 0], [4], r"lengths: expected None with an unbatched sequence \(T, I\).*x\[:length\]"),
        (pack_padded_sequence(x, [T] * B), [T] * B,
         "lengths: expected None with a PackedSequence, which has its own"),
        (x, [T] * (B - 1), rf"lengths: expected shape \({B},\), got \({B - 1},\)"),
        (x, [T + 1] * B, f"lengths: expected steps from 0 to T = {T}, got {T + 1}")):
        with pytest.raises(ValueError, match=message):
            module(given, lengths=lengths)
    with pytest.raises(TypeError, match="lengths: expected whole numbers, got torch.float32"):
        module(x, lengths=torch.ones(B))


@pytest.mark.slow
@needs_compiled
@pytest.mark.parametrize("kind", ["ALIF", "LSNN"])
def test_compiled_graphs_take_any_lengths(kind: str) -> None:
    """One graph for all orders, forward and backward."""
    torch.manual_seed(1)
    module = _exact(ALIF(I, N, bidirectional=True, threshold=0.02) if kind == "ALIF"
                    else LSNN(I, 10, N - 10, O, threshold=0.02))
    compiled = torch.compile(lambda x, n: module(x, lengths=n), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ORDERS.values():
            n, leaves = torch.tensor(lengths), (_x().requires_grad_(), _x().requires_grad_())
            (got, end), (want, _) = compiled(leaves[0], n), module(leaves[1], lengths=n)
            assert isinstance(end, State if kind == "ALIF" else LSNNState)
            _compare(module, {"out": got}, {"out": want}, leaves)


@needs_compiled
def test_exported_programs_take_lengths() -> None:
    """In any number of steps and sequences."""
    net = LSNN(I, 10, 10, O, batch_first=True, threshold=0.05)
    steps, items = torch.export.Dim("T", min=2, max=1000), torch.export.Dim("B", min=2, max=100)
    example = {"lengths": torch.tensor(ORDERS["any"])}
    program = torch.export.export(net, (_x(True).float(),), example, dynamic_shapes={
        "x": {0: items, 1: steps}, "lengths": {0: items}}).module()
    x, each = _x(True).float()[:3, :9], torch.tensor([2, 9, 0])
    (got, _), (want, _) = program(x, lengths=each), net(x, lengths=each)
    assert bool(want.any())
    assert_same("readout", got.detach(), want.detach())
