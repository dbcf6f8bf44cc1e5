"""lsnn_ext.plan: what it reports is what runs, and it changes nothing."""
import functools
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from compare import count_saved_bytes
from draws import draw_spikes
from layers import First
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, Neuron, Recurrent, _ops, functional
from operator_calls import Calls

pytestmark = pytest.mark.skipif(_ops._C is None or "LSNN_EMULATE" in os.environ,
                                reason="no CPU kernels run here")


def _spiking(current: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.9 * v + current - z
    return v, (v > 1).to(v.dtype) + torch.sigmoid(v) - torch.sigmoid(v).detach()


@pytest.mark.parametrize(("name", "chosen", "why", "ran", "did_not"), [
    ("spikes", "inside the operator", "20% of a sample of its inputs is nonzero, 4.3% here", "",
     "linear_events addmm mm"),
    ("dense", "in reused memory", "100.0% here", "buffer addmm", "linear_events"),
    ("bits", "inside the operator", "its inputs are bits", "", "linear_events addmm mm"),
    ("short", "a product of torch", "fewer than 262,144 elements", "addmm", "linear_events buffer"),
    ("few", "inside the operator", "of its inputs is nonzero", "", "linear_events addmm mm"),
    ("few dense", "a product of torch", "fewer than 262,144", "addmm", "linear_events buffer"),
    ("autocast", "a product of torch", "autocast is enabled", "addmm", "linear_events buffer"),
    ("double weights", "an operator in front, event by event", "of its inputs is nonzero",
     "linear_events", "mm")])
def test_the_projection_is_the_one_that_runs(name: str, chosen: str, why: str, ran: str,
                                             did_not: str) -> None:
    torch.manual_seed(0)
    layer, x = ALIF(40, 128), draw_spikes(100, 32, 40)
    x = torch.randn(100, 32, 40) if "dense" in name else x
    x = x[:10] if name == "short" else x[:20] if "few" in name else x
    given: Any = functional.pack_spikes(x) if name == "bits" else x
    w_rec = torch.randn(128, 128).bfloat16() / 50
    call: Any = layer if name != "double weights" else functools.partial(
        functional.alif, w_rec=w_rec, w_in=layer.weight_ih_l0, alpha=0.9, theta=1.0)
    with torch.autocast("cpu", enabled=name == "autocast"):
        (one,) = lsnn_ext.plan(call, given).layers
        found = one.choices["projection"]
        assert chosen in found.chosen and why in found.why
        with Calls() as calls:
            call(given)
    assert calls.counts["alif_forward"] == 1 and one.operator == "alif_forward"
    assert all(calls.counts[name] for name in ran.split()), calls.counts
    assert not any(calls.counts[name] for name in did_not.split()), calls.counts


def test_each_layer_of_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ALIF(40, 64, surrogate="arctan"), First(), nn.Dropout(0.1),
                          LIF(64, 30, 2, checkpoint_every=32), First(), LeakyReadout(30, 12),
                          First(), lsnn_ext.Linear(12, 40))
    x = torch.randn(300, 32, 40)
    found = lsnn_ext.plan(model, x)
    assert [(one.name, one.operator) for one in found.layers] == [
        ("0 (ALIF)", "alif_forward"), ("3 (LIF)", "alif_forward"), ("3 (LIF) l1", "alif_forward"),
        ("5 (LeakyReadout)", "leaky_readout"), ("7 (Linear)", "linear, product")]
    assert found.layers[1].sizes == {"T": 300, "B": 32, "N": 30}
    alif, lif = (one.choices for one in found.layers[:2])
    assert alif["product"].chosen == "dense in 600 of 600 steps of tiles"
    assert "100.0% here; arctan is nowhere 0" in alif["product"].why
    assert "active rows in 5" in lif["product"].chosen  # of 600
    assert "triangle is 0 far" in lif["product"].why
    assert alif["saved"].chosen == "membranes in float32 (2.5 MB), spikes as bits"
    assert lif["saved"].chosen == "the state every 32 steps, spikes as bits"
    assert alif["tiles"].chosen == "2, each by 1 of 1 threads"
    assert all(str(one) in str(found) for one in found.layers)
    assert found.saved_bytes == count_saved_bytes(lambda: model(x), [x, *model.parameters()])


def test_readouts() -> None:
    net, x = LSNN(40, 60, 40, 5), draw_spikes(200, 32, 40)
    (one,) = lsnn_ext.plan(net, x).layers
    assert one.name == "neurons (ALIF)"
    assert str(one.choices["readout"]).endswith("inside the operator: its decay is a number")
    w_in, w_out, k_out = torch.randn(100, 40), torch.randn(9, 100), torch.tensor(0.9)
    neurons, readout = lsnn_ext.plan(lambda x: functional.layer(
        x, w_in, None, w_out=w_out, k_out=k_out, spikes=False, alpha=0.9, theta=1.0).readout,
        x).layers
    assert str(neurons.choices["readout"]).endswith("of its own: its decay is a tensor")
    assert readout.operator == "alif_forward" and readout.choices["projection"].why
    assert (neurons.name, readout.name) == ("call 1", "call 2")


@pytest.mark.parametrize("kind", ["alif", "bf16", "smooth", "checkpoints", "double", "neuron"])
@pytest.mark.parametrize("are_spikes", [True, False])
def test_saved_bytes_are_those_of_autograd(kind: str, are_spikes: bool) -> None:
    torch.manual_seed(0)
    more: dict[str, Any] = {"bf16": {"saved_dtype": torch.bfloat16}, "double": {
        "dtype": torch.float64}, "checkpoints": {"checkpoint_every": 64}}.get(kind, {})
    layer: nn.Module = (Recurrent(Neuron(_spiking), 40, 100) if kind == "neuron"
                        else ALIF(40, 100, **more))
    x = draw_spikes(300, 16, 40) if are_spikes else torch.randn(300, 16, 40)
    x = x.to(next(layer.parameters()).dtype)
    call: Any = layer if kind != "smooth" else functools.partial(
        functional.alif, w_rec=layer.weight_hh_l0, w_in=layer.weight_ih_l0, alpha=0.9, theta=1.0,
        smooth=True)
    found = lsnn_ext.plan(call, x)
    wanted = count_saved_bytes(lambda: call(x), [x, *layer.parameters(), *layer.buffers()])
    assert found.saved_bytes == wanted == sum(one.saved_bytes for one in found.layers)
    if kind == "alif" and not are_spikes:
        neuron_steps, segments = 300 * 16 * 100, 3
        assert wanted == neuron_steps * 4 + 300 * 16 * 4 * 4 + 16 * segments * 16 * 100 + 11 * 400


@pytest.mark.parametrize("product", ["dense", "active", "sparse"])
def test_a_product_that_is_forced(product: str) -> None:
    layer, x = ALIF(40, 100), draw_spikes(50, 16, 40)
    with _ops.forced(product=product):
        choice = lsnn_ext.plan(layer, x).layers[0].choices["product"]
    text = product.replace("active", "active rows")
    assert choice.chosen == f"{text} in 200 of 200 steps of tiles"
    assert choice.why == f"{product} is forced"


@pytest.mark.usefixtures("own_threads")
def test_teams() -> None:
    layer, x = ALIF(40, 200), draw_spikes(100, 3, 40)
    torch.set_num_threads(2)
    with _ops.forced(team_size=1):
        choice = lsnn_ext.plan(layer, x).layers[0].choices["tiles"]
    assert choice.chosen == "3, each by 1 of 2 threads"
    assert choice.why == "3 sequences"


def test_prepared_calls() -> None:
    torch.manual_seed(0)
    layer, x = ALIF(20, 30, 2), torch.randn(25, 2, 20)
    with torch.no_grad():
        found = lsnn_ext.plan(layer, x)
        assert [one.name for one in found.layers] == ["ALIF", "ALIF l1"]
        assert {one.operator for one in found.layers} == {"prepared call"}
        assert found.layers[0].sizes == {"T": 25, "B": 2, "N": 30}
        assert "T B N = 1,500 is below 262,144" in found.layers[0].choices["call"].why
        with _ops.forced(product="dense"):
            (forced, _) = lsnn_ext.plan(layer, x).layers
        assert str(forced.choices["call"]).endswith("operator: options are forced")
    (one, _) = lsnn_ext.plan(layer, x).layers
    assert one.choices["call"].why == "gradients are enabled for more than one step"
    found = lsnn_ext.plan(layer.step, x[0])
    assert found.layers[1].operator == "prepared call" and found.saved_bytes > 0


def test_reference_and_loop() -> None:
    layer, neuron, x = ALIF(20, 30), Recurrent(Neuron(_spiking), 20, 30), torch.randn(5, 2, 20)
    with lsnn_ext.use_reference():
        (of_layer,), (of_neuron,) = (lsnn_ext.plan(one, x).layers for one in (layer, neuron))
    assert (of_layer.operator, of_neuron.operator) == ("reference", "loop")
    for one in (of_layer, of_neuron):
        assert one.sizes == {"T": 5, "B": 2, "N": 30} and "use_reference()" in str(one)


def test_a_converted_model_and_a_function() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Linear(30, 30, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            v = z = torch.zeros_like(x[0])
            out = []
            for x_t in x:
                v, z = _spiking(x_t + self.weights(z), v, z)
                out.append(z)
            return torch.stack(out)

    torch.manual_seed(0)
    x = torch.randn(60, 8, 30)
    model, report = lsnn_ext.convert(Net(), x)
    assert report.converted, str(report)
    for target, name in ((model, "weights (Linear)"), (lambda x: model(2 * x), "Neuron(Step)")):
        (one,) = lsnn_ext.plan(target, x).layers
        assert (one.name, one.operator, one.sizes["N"]) == (name, "alif_forward", 30)
        assert "dense in 120 of 120" in one.choices["product"].chosen


@pytest.mark.parametrize(("N", "kernel"), [(220, "lsnn, matrices"), (32, "lsnn")])
def test_the_kernel_of_a_card_is_named(N: int, kernel: str) -> None:
    """By matrices or by rows; the chosen one is not among the slower ones."""
    (one,) = lsnn_ext.plan(ALIF(20, N), torch.zeros(3, 256, 20), device="h100").layers
    choice = one.choices["h100 backward"]
    assert choice.chosen.startswith(f'kernel "{kernel}" (')
    assert f"{kernel} with" not in choice.why
    assert one.choices["h100 forward"].chosen.startswith('kernel "lsnn')


@pytest.mark.parametrize("card", ["h100", "a100"])
def test_a_card_that_is_not_there(card: str) -> None:
    """The sizes and the model of the call are those that the plan of the kernels is asked for."""
    delay = torch.randint(0, 3, (220, 220), generator=torch.Generator().manual_seed(0))
    net, x = LSNN(20, 120, 100, 5, delay=delay), draw_spikes(50, 64, 20)
    (one,) = lsnn_ext.plan(net, x, device=card).layers
    found = _ops._C.plan(50, 64, 220, delays=[0, 1, 2], device=card, model=net.neurons.dynamics,
                         options=list(_ops.forced_options()))
    for way in ("forward", "backward"):
        choice = one.choices[f"{card} {way}"]
        assert choice.why == found[way]["why"]
        assert f"design {found[way]['design']}, {found[way]['blocks']} blocks" in choice.chosen
    assert one.choices[f"{card} readout"].chosen == "inside the operator"
    neuron = lsnn_ext.plan(Recurrent(Neuron(_spiking), 20, 30), x, device=card).layers[0]
    assert neuron.choices[card].chosen == "generated kernels"
    with pytest.raises(ValueError, match="device: expected one of t4, a100"):
        lsnn_ext.plan(net, x, device="h10")


def test_sizes_that_fit() -> None:
    layer, x = ALIF(40, 100), draw_spikes(100, 16, 40)
    small, large = (lsnn_ext.plan(layer, x, memory=memory) for memory in ("100 MB", "200 MB"))
    assert small.memory_bytes == 1e8 and "100.0 MB hold about T = " in str(small)
    assert small.most_steps and small.most_sequences and large.most_steps and large.most_sequences
    assert large.most_steps == pytest.approx(2 * small.most_steps, rel=0.05)
    assert large.most_sequences == pytest.approx(2 * small.most_sequences, rel=0.05)
    assert small.peak_bytes > small.saved_bytes > 0
    assert lsnn_ext.plan(layer, x).memory_bytes > 1e7


@pytest.mark.parametrize(("inputs", "options", "error", "words"), [
    ((3,), {}, TypeError, "target: expected a module or function, got int"),
    ((nn.Linear(5, 2), torch.zeros(3, 5)), {}, ValueError, "target: .* that calls lsnn_ext, got"),
    ((torch.compile(ALIF(5, 6)), torch.zeros(3, 2, 5)), {}, TypeError, "without torch.compile"),
    ((torch.compile(lambda x: x), torch.zeros(3)), {}, TypeError, "without torch.compile"),
    ((ALIF(5, 6), torch.zeros(3, 2, 5)), {"memory": "8"}, ValueError, "memory: expected .* '8'"),
    ((ALIF(5, 6), torch.zeros(3, 2, 5)), {"memory": 8}, ValueError, "memory: expected .* got 8"),
    ((ALIF(5, 6), torch.zeros(3, 2, 4)), {}, ValueError, r"x: expected shape .*\(3, 2, 4\)"),
], ids=["number", "other module", "compiled module", "compiled function", "memory as text",
        "memory as number", "shape"])
def test_wrong_arguments(inputs: tuple[Any, ...], options: dict[str, Any],
                         error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lsnn_ext.plan(*inputs, **options)
