"""Inputs that operators and functions refuse: mixed devices, changed saved tensors, sizes whose
products overflow, spike bits beyond the last neuron; without the checks they access foreign
memory."""
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case, build
from compare import assert_same, assert_same_runs, cast, changed, flat, mapped, named
from layers import B, I, N, T, inside, problem
from lsnn_ext import ALIF, State, _ops, functional
from operator_calls import NAMES, Call, call_all_operators, needs_compiled

pytestmark = needs_compiled
ERRORS = (ValueError, TypeError, RuntimeError)
K = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}


def _leaves(learn: bool = True) -> dict[str, Tensor]:
    """Large enough for the input projection and the readout to run inside."""
    return {name: value.requires_grad_(learn and name != "x")
            for name, value in problem(torch.float32).items()}


def _calls(case: Case, smooth: bool = False) -> dict[str, Call]:
    """Those of a training step; projection and readout run inside where nothing is smooth."""
    def layer() -> None:
        if not smooth:
            out = inside(**_leaves())
            (out.readout.sum() + out.spikes.sum()).backward()

    return call_all_operators(case, smooth, layer)


# ------------------------------------------------------------------------------------------ devices
@pytest.mark.parametrize("lengths", ["none", "falling"])
@pytest.mark.parametrize("name", NAMES)
def test_raw_operators_take_no_mixed_devices(name: str, lengths: str) -> None:
    case = Case("busy", T=6, delay="each", state="real", lengths=lengths)
    # smooth: without the layer that would take the place of this case
    operator, args, _ = _calls(case, smooth=lengths != "none")[name]
    given = named(operator, args)
    tensors = [key for key, arg in given.items() if isinstance(arg, Tensor)]
    assert len(tensors) >= 2
    for key in tensors:
        with pytest.raises(ERRORS, match="device"):
            operator(*changed(operator, args, **{key: given[key].to("meta")}))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["x", "w_in", "w_rec", "bias", "w_out", "readout_state"])
def test_layer_takes_no_mixed_devices(name: str, grad: bool) -> None:
    with (torch.set_grad_enabled(grad),
          pytest.raises(ERRORS, match=f"^{name if name != 'x' else 'w_in'}: expected")):
        inside(**{**_leaves(), name: _leaves()[name].to("meta")})


MIXED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "linear": lambda x, w: functional.linear(x, w.to("meta")),
    "linear-x": lambda x, w: functional.linear(x.to("meta"), w),
    "linear-bias": lambda x, w: functional.linear(x, w, w[:, 0].to("meta")),
    "readout": lambda x, w: functional.leaky_readout(x, w.to("meta"), 0.9),
    "readout-state": lambda x, w: functional.leaky_readout(x, w, 0.9,
                                                           torch.zeros(B, N, device="meta")),
    "coefficient": lambda x, w: functional.alif(
        x, w[:, :1] @ w[:, :1].T, **K | {"alpha": torch.zeros((), device="meta")}),
    "carrier": lambda x, w: functional.pack_spikes(x)._replace(carrier=x.to("meta")).numbers(),
    "bits": lambda x, w: functional.layer(
        (packed := functional.pack_spikes(x))._replace(bits=packed.bits.to("meta")), w,
        torch.zeros(N, N), **K)}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("steps", [2, T])  # below and above the size from which memory is reused
def test_functions_take_no_mixed_devices(name: str, steps: int) -> None:
    x = (torch.arange(steps * B * I).view(steps, B, I) % 3 == 0).float()
    with pytest.raises(ERRORS, match="device"):
        MIXED[name](x if name != "coefficient" else x.new_zeros(steps, B, N), torch.ones(N, I))


# ----------------------------------------------------------------------------- spikes beyond N or I
@pytest.mark.parametrize("neurons", [1, 20, 31, 33, 63])
def test_bits_beyond_the_neurons_are_refused(neurons: int) -> None:
    """A sliced carrier leaves them there; they would be read as inputs."""
    packed = functional.pack_spikes(torch.ones(T, B, 64))
    words = -(-neurons // 32)
    sliced = functional.PackedSpikes(packed.bits[..., :words].contiguous(),
                                     packed.carrier[..., :neurons])
    arguments = {**_leaves(), "w_in": torch.zeros(N, neurons, requires_grad=True)}
    with pytest.raises(RuntimeError, match="x_bits: expected zeros in the bits beyond"):
        inside(**{**arguments, "x": sliced})
    whole = functional.pack_spikes(sliced.numbers())
    assert inside(**{**arguments, "x": whole}).spikes.isfinite().all()


@pytest.mark.parametrize(("wrong", "part"), [
    ("dtype", "bits"), ("words", "bits"), ("steps", "bits"), ("dims", "carrier")])
def test_packed_spikes_of_two_sequences_are_refused(wrong: str, part: str) -> None:
    packed = functional.pack_spikes(torch.ones(4, 3, 40))
    bad = {"dtype": packed._replace(bits=packed.bits.long()),
           "words": packed._replace(bits=packed.bits[..., :1]),
           "steps": packed._replace(bits=packed.bits[:2]),
           "dims": packed._replace(carrier=packed.carrier[0])}[wrong]
    with pytest.raises(ValueError, match=rf"packed\.{part}: expected"):
        bad.numbers()
    with pytest.raises(ValueError, match=rf"x\.{part}: expected"):
        functional.layer(bad, torch.ones(5, 40), torch.zeros(5, 5), **K)


@pytest.mark.parametrize("shape", [(0, 2, 5), (3, 0, 5), (0, 0, 33)])
def test_empty_sequences_pack(shape: tuple[int, ...]) -> None:
    packed = functional.pack_spikes(torch.zeros(shape))
    assert packed.bits.shape == (*shape[:2], -(-shape[2] // 32)) and packed.numbers().shape == shape


# ------------------------------------------------------------------------------------ saved tensors
OF_CARRY = "coefficients: expected the dtype of carry, float32, got "
SAVED: list[tuple[str, Callable[[Any], Any], str]] = [
    ("bits", lambda bits: torch.full_like(bits, -1), "bits: expected zeros"),
    ("bits", Tensor.long, "bits: expected int32, got int64"),
    ("bits", lambda bits: bits.repeat_interleave(2, -1)[..., ::2], "contiguous"),
    ("checkpoint", lambda _: -1, "checkpoint: expected"),
    ("checkpoint", lambda _: 2**63 - 17, "checkpoint: expected"),
    ("coefficient_gradients", lambda _: 1 << 40, "coefficient_gradients: expected"),
    ("coefficient_gradients", lambda _: -1, "coefficient_gradients: expected"),
    ("gradients", lambda _: 1 << 8, "gradients: expected"),
    ("outputs", lambda _: 1 << 9, "outputs: expected"),
    ("carry", lambda carry: carry[:0], "carry: expected shape"),
    ("carry", Tensor.double, "dtype"),
    ("y", Tensor.double, "y: expected"),
    ("coefficients", Tensor.double, OF_CARRY + "float64"),
    ("coefficients", Tensor.half, OF_CARRY + "float16"),
    ("w_rec", Tensor.double, "w_rec: expected the dtype"),
    ("v", Tensor.int, "state.v: expected the dtype")]


@pytest.mark.parametrize(("name", "change", "message"), SAVED)
def test_backward_trusts_nothing_that_was_saved(name: str, change: Callable[[Any], Any],
                                                message: str) -> None:
    operator, args, _ = _calls(Case("busy", T=40, N=33, delay="each", state="real"),
                               smooth=True)["alif_backward"]
    value = change(named(operator, args)[name])
    with pytest.raises(RuntimeError, match=message):
        operator(*changed(operator, args, **{name: value}))


def test_the_cpu_kernels_save_no_packed_weights() -> None:
    calls = _calls(Case("busy", T=6), smooth=True)
    operator, args, _ = calls["alif_forward"]
    asked = _ops.make_mask("outputs", ["saved", "packed"])
    with pytest.raises(RuntimeError, match="^outputs: expected packed only with saved"):
        operator(*changed(operator, args, outputs=asked))
    operator, args, _ = calls["alif_backward"]
    at = [one.name for one in torch.ops.lsnn.alif_backward.default._schema.arguments].index("saved")
    with pytest.raises(RuntimeError, match="^saved: expected no packed weights"):
        operator(*args[:at], [*args[at], args[at][0]], *args[at + 1:])


def test_smooth_spikes_are_read_as_they_lie() -> None:
    operator, args, _ = _calls(Case("smooth", T=40, N=33), smooth=True)["alif_backward"]
    with pytest.raises(RuntimeError, match="saved: expected contiguous tensors"):
        operator(*changed(operator, args, smooth_z=torch.zeros(()).expand(40, 3, 33)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.bfloat16], ids=str)
def test_other_dtypes_are_not_read_as_float(dtype: torch.dtype) -> None:
    for name, (operator, args, _) in _calls(Case("busy", T=6, delay="each", state="real")).items():
        with pytest.raises(RuntimeError, match=": expected float32 or float64, got"):
            operator(*cast(args, dtype))
        assert name in NAMES


# -------------------------------------------------------------------------------------------- sizes
def _huge(*shape: int) -> Tensor:
    return torch.zeros(()).expand(shape)


def _forward(N: int, I: int = 0, delays: int = 1) -> Any:
    """alif_forward of one step and item, whose large arguments have the memory of one number."""
    delay = torch.zeros((), dtype=torch.int64).expand(N, N) if delays > 1 else None
    state = [_huge(1, N)] * 4 + [_huge(delays, 1, N)]
    constants = _ops.Constants(outputs=_ops.make_mask("outputs", ["spikes"]))
    return torch.ops.lsnn.alif_forward(
        _huge(1, 1, I or N), state, torch.tensor(0.5).expand(11, N), [_huge(N, N), delay],
        list(range(delays)), [_huge(N, I)] if I else [], [], list(constants), [0.3, 0.0, 1.0], [])


SIZES: list[tuple[Callable[[], Any], str]] = [
    (lambda: _forward(2**31, delays=4), "w_rec: expected less than"),
    (lambda: _forward(63, I=2**57), "w_in: expected less than"),
    (lambda: torch.ops.lsnn.linear_events(_huge(1, 2**57), _huge(63, 2**57), None),
     "weight: expected less than"),
    (lambda: torch.ops.lsnn.linear_events(_huge(1, 63), _huge(2**57, 63), None),
     "weight: expected less than"),
    (lambda: torch.ops.lsnn.linear_events_backward(_huge(1, 63), _huge(1, 2**57)),
     "weight: expected less than"),
    (lambda: torch.ops.lsnn.linear_events(_huge(2**50, 4), torch.zeros(3, 4), None),
     f"not enough memory: {2**54} bytes"),
    (lambda: _ops._C.plan(1, 1, 2**40, device="h100"), "N: expected"),
    (lambda: _ops._C.plan(1, 2**62, 1000, device="h100"), "B, N: expected"),
    (lambda: _ops._C.plan(2**62, 1, 1000, device="h100"), "T, B, N: expected")]


@pytest.mark.parametrize(("call", "message"), SIZES, ids=[row[1] for row in SIZES])
def test_sizes_whose_product_wraps_leaves(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ERRORS, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_delay_is_counted_in_rows_as_they_are(dtype: torch.dtype) -> None:
    """Of 33 neurons a row of dL/dc has 192 numbers (float32): 2^32 are 16 items of 1,398,101 steps,
    less a chunk."""
    N, row = 33, {torch.float32: 192, torch.float64: 96}[dtype]
    below = 2**32 // (16 * row) - 16 - 1
    x, w = torch.zeros(0, 0, N, dtype=dtype), torch.zeros(N, N, dtype=dtype)
    functional.alif(x, w, **K, delay=below - 1)
    for delay in (below, 2**63 - 1):
        with pytest.raises(RuntimeError, match=f"delay: expected less than {below} extra steps for "
                                               f"{N} neurons, got {delay}$"):
            functional.alif(x, w, **K, delay=delay)


@pytest.mark.parametrize("every", [2**63 - 17, 2**62, 41])
def test_more_steps_between_states_than_there_are(every: int) -> None:
    case = Case("busy", T=40, delay="each", refractory=2, state="real")
    assert_same_runs(*(build(replace(case, checkpoint_every=one)).run(functional.alif)
                       for one in (every, 40)))


# ------------------------------------------------------------------------- what memory does not say
def _unlike_memory(value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Tensors of which the memory does not tell the numbers, each with these numbers."""
    return [(torch._neg_view(-value), value),
            (torch._efficientzerotensor(value.shape, dtype=value.dtype), torch.zeros_like(value))]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_raw_operators_of_lazy_tensors(name: str, smooth: bool, mode: Any) -> None:
    """Inference tensors do not come to the autograd kernels."""
    operator, args, _ = _calls(Case("busy", T=6, delay="each", state="real"), smooth)[name]
    with mode():
        args = mapped(args, torch.clone)
        for key, value in named(operator, args).items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            for lazy, numbers in _unlike_memory(value):
                if key == "coefficients" and not numbers.any():
                    continue  # the width is > 0
                got, want = ((flat(operator(*changed(operator, args, **{key: given}))))
                             for given in (lazy, numbers))
                for one, other in zip(got, want, strict=True):
                    assert not one.is_neg(), key
                    assert_same(key, one, other)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", State._fields)
def test_steps_from_lazy_states(name: str, grad: bool) -> None:
    torch.manual_seed(0)
    layer, x = ALIF(4, 6, refractory=2, sigma=0.5), torch.randn(7, 3, 4) * 4
    end = layer(x[:6])[1].detach()
    assert getattr(end, name).any()
    with torch.set_grad_enabled(grad):
        for lazy, numbers in _unlike_memory(getattr(end, name)):
            for call in (layer.step, lambda x_t, state: layer(x_t[None], state)):
                got, want = (call(x[6], end._replace(**{name: given})) for given in (lazy, numbers))
                for one, other in zip(got[1], want[1], strict=True):
                    assert not one.is_neg()
                    assert_same(name, one, other)


@pytest.mark.parametrize("name", ["x", "w_in", "w_rec", "bias", "w_out", "readout_state"])
def test_lazy_negation_and_zeros_without_memory(name: str) -> None:
    """Torch keeps the sign of a negated view beside its memory, and some zeros without any."""
    given = _leaves(learn=False)
    for lazy, numbers in _unlike_memory(given[name]):
        got, wanted = (inside(**{**given, name: one}) for one in (lazy, numbers))
        assert got.readout is not None and torch.equal(got.readout, wanted.readout)
        assert torch.equal(got.spikes, wanted.spikes)


# ----------------------------------------------------------------------------------------- messages
WORDS: list[tuple[Callable[[Tensor, Tensor], Any], str]] = [
    (lambda x, w: functional.layer(x, w, 0.5, **K), "w_rec: expected a tensor, got float"),
    (lambda x, w: functional.layer(x, w, w[0], **K),
     r"w_rec: expected shape \(300, 300\), got \(23,\)"),
    (lambda x, w: functional.layer(x, None, w, **K), "w_in: expected a tensor, got NoneType"),
    (lambda x, w: functional.layer(x, w.T, w @ w.T, **K),
     r"w_in: expected shape \(N, 23\), got \(23, 300\)"),
    (lambda x, w: functional.layer([0.0], w, w @ w.T, **K),
     "x: expected a tensor or PackedSpikes, got list"),
    (lambda x, w: functional.layer(x, w, w @ w.T, bias=0.5, **K),
     "bias: expected a tensor, got float"),
    (lambda x, w: functional.layer(x, w, w @ w.T, readout_state=0.3, **K),
     "readout_state: expected w_out with it, got None"),
    (lambda x, w: functional.layer(x, w, w @ w.T, readout_state=0.3, w_out=w.T, **K),
     "readout_state: expected a tensor, got float"),
    (lambda x, w: functional.layer(x, w, w @ w.T, **{**K, "alpha": torch.tensor(20.0)}),
     "alpha: expected a number from 0 to 1, got 20 at neuron 0"),
    (lambda x, w: functional.layer(x, w, w @ w.T, **K, width=1e-40),
     "width: expected a normal number of its dtype, got 9.99.*e-41 at neuron 0"),
    (lambda x, w: functional.leaky_readout(None, w, 0.9), "x: expected a tensor, got NoneType"),
    (lambda x, w: functional.leaky_readout(x[0], w, 0.9), r"x: expected shape \(T, B, N\)"),
    (lambda x, w: functional.leaky_readout(x, [1.0], 0.9), "w_out: expected a tensor, got list"),
    (lambda x, w: functional.linear(0.5, w), "x: expected a tensor, got float")]


@pytest.mark.parametrize(("call", "message"), WORDS, ids=[row[1] for row in WORDS])
def test_words(call: Callable[[Tensor, Tensor], Any], message: str) -> None:
    """The message names the argument at its beginning, and no file of ours."""
    with pytest.raises(ERRORS, match=f"^({message})") as caught:
        call(torch.zeros(T, B, I), torch.ones(N, I))
    assert not re.search(r"\.(h|cpp|py)\b", str(caught.value))
