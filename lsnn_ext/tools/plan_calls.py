"""The calls of our layers in a pass, with the decisions that the deciding code reports."""
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _ops
from .._core.prepared_layer import why_not_prepared
from .._core.route import Route
from .._core.surrogates import SURROGATES
from .memory import LiveMemory
from .plan_report import LayerPlan, bytes_text

_PROJECTIONS = {"fused": "inside the operator, event by event",
                "events": "an operator in front, event by event",
                "product": "a product of torch in front, in reused memory",
                "torch": "a product of torch in front"}
# what by_lsnn of csrc/cuda/plan.h and the kernels themselves look at
_GENERAL = " (general ones with traces, learned coefficients, bfloat16, sigma, p or eta)"
_PRODUCTS = {"dense": "dense", "active": "active rows", "sparse": "sparse"}


class Calls:
    """A listener of _core/decisions.py; layers: a LayerPlan for each call."""

    def __init__(self, modules: Sequence[nn.Module], live: LiveMemory, card: str | None) -> None:
        self.layers: list[LayerPlan] = []
        self._live, self._card, self._neuron = live, card, ""
        self._names: dict[int, str] = {}  # by the address of a parameter, or the id of a module
        self._in_front: list[tuple[LayerPlan, bool]] = []  # projections whose layer is to come
        # by the address of the spikes that are saved: a layer, the product that is forced, and
        # which neurons are active
        self._with_bits: dict[int, tuple[LayerPlan, str, str]] = {}
        for root in modules:
            for path, module in root.named_modules():
                name = f"{path} ({type(module).__name__})" if path else type(module).__name__
                self._names[id(module)] = name
                for parameter, value in module.named_parameters(recurse=False):
                    self._names[value.data_ptr()] = name + _layer_of(parameter)

    def __call__(self, kind: str, *facts: Any) -> None:
        getattr(self, f"_{kind}")(*facts)

    def end_forward(self) -> None:
        """Adds products that no layer followed, as calls of their own."""
        for one, _ in self._in_front:
            one.name = one.name or f"call {len(self.layers) + 1}"
            self.layers.append(one)
        self._in_front = []
        self._claim_saved("saved for other operators")

    # ------------------------------------------------------------------------ in front of a layer
    def _projection(self, x: Any, w_in: Tensor, route: Route) -> None:
        self.end_forward()
        self._put_in_front(x, w_in, route.projection, route.why, True)
        if route.why_readout:
            self._in_front[-1][0].choose("readout", "inside the operator" if route.fused_readout
                                         else "an operator of its own", route.why_readout)

    def _linear(self, x: Any, weight: Tensor, chosen: str, why: str) -> None:
        if self._in_front and not self._in_front[-1][1]:
            self.end_forward()
        choices = self._in_front.pop()[0].choices if self._in_front else {}
        self._put_in_front(x, weight, chosen, why, False)
        self._in_front[-1][0].choices = choices | self._in_front[-1][0].choices

    def _put_in_front(self, x: Any, weight: Tensor, chosen: str, why: str,
                      is_of_layer: bool) -> None:
        shape = x.shape
        one = LayerPlan(self._name(weight), f"linear, {chosen}", {
            **(dict(T=shape[0], B=shape[1]) if len(shape) == 3 else {}), "N": weight.shape[0]})
        if isinstance(x, Tensor) and "sample" in why:
            why += f", {_ops.sample_nonzero(x):.1%} here"
        one.choose("projection", _PROJECTIONS[chosen], why)
        self._in_front.append((one, is_of_layer))

    # ------------------------------------------------------------------------------------- layers
    def _recurrence(self, settings: Any, t: Any, rows: Any, out: Any) -> None:
        one = self._begin("alif_forward", t.x, t.neurons,
                          (t.w_rec, t.w_in, t.bias, *rows.tensors, t.w_out))
        y, bits = out.saved[:2]
        if settings.key:
            self._add_saved(one, settings, y, bits, "currents", "")
            self._end(one, self._neuron)
            if self._card:
                one.choose(self._card, "generated kernels", "the step is compiled for the GPU")
            return
        name = _ops._C.surrogates()[settings.constants.surrogate]
        ends = (SURROGATES[name].has_bounded_support
                or settings.numbers.cutoff < sys.float_info.max)
        self._add_saved(one, settings, y, bits, "membranes", f"; {name} is "
                        f"{'0 far from the threshold' if ends else 'nowhere 0'}")
        self._end(one)
        if (self._card or t.x.is_cuda) and t.w_rec is not None:
            self._choose_designs(one, t, settings)

    def _step(self, neuron: Any) -> None:
        self._neuron = repr(neuron)

    def _prepared(self, layer: nn.Module, suffix: str, spikes: Tensor, steps: int) -> None:
        rows, N = spikes.shape
        one = LayerPlan(self._names.get(id(layer), type(layer).__name__) + _layer_of(suffix),
                        "prepared call", {"T": steps, "B": rows // steps, "N": N})
        one.choose("call", "prepared", f"T B N = {spikes.numel():,} is below {_ops.MANY:,}, and no "
                                       f"gradients, or those of one step, are recorded")
        self._end(one)

    def _loop(self, neuron: Any, x: Tensor, w_rec: Tensor | None, why: str) -> None:
        one = self._begin("loop", x, x.shape[-1], (w_rec,))
        one.choose("call", "a loop over time", why)
        self._end(one, repr(neuron))

    def _reference(self) -> None:
        one = LayerPlan("", "reference", {})
        one.choose("call", "operators of torch", "use_reference() is active")
        self._end(one)

    def _readout(self, x: Tensor) -> None:
        self._end(self._begin("leaky_readout", x, x.shape[-1], ()))

    def _begin(self, operator: str, x: Tensor, N: int, tensors: Sequence[Any]) -> LayerPlan:
        T, B = x.shape[:2]
        one = LayerPlan(self._name(*tensors), operator, {"T": T, "B": B, "N": N})
        if operator == "alif_forward" and (T == 1 or T * B * N < _ops.MANY):
            one.choose("call", "operator", why_not_prepared(T, B, N)
                       or "settings or tensors of the layer that a prepared call does not take")
        return one

    def _end(self, one: LayerPlan, neuron: str = "") -> None:
        """Adds what every call has: its projection, saved bytes, tiles and threads."""
        for front, _ in self._in_front[-1:]:
            one.choices = front.choices | one.choices
            one.name, one.sizes = one.name or front.name, {**front.sizes, **one.sizes}
        self._in_front = self._in_front[:-1]
        one.name = one.name or neuron or f"call {len(self.layers) + 1}"
        one.saved_bytes = self._claim_saved(f"saved for {one.name}")
        counted = _ops._C.counters()
        if tiles := counted["tiles"]:
            one.choose("tiles", f"{tiles}, each by {counted['members'] / tiles:.3g} of "
                                f"{torch.get_num_threads()} threads",
                       f"{counted['items']} sequences")
        self.layers.append(one)

    # ------------------------------------------------------------------------------ backward pass
    def _add_saved(self, one: LayerPlan, settings: Any, y: Tensor, bits: Tensor, of: str,
                   why_active: str) -> None:
        constants = _ops.Constants(*settings.constants)
        if not _ops.has_bit("outputs", constants.outputs, "saved"):
            return
        options = settings.options or _ops._C.default_options()
        word = _ops._C.products[options[_ops.Options._fields.index("product")]]
        self._with_bits[bits.data_ptr()] = one, word, why_active
        if constants.checkpoint:
            one.choose("saved", f"the state every {constants.checkpoint} steps, spikes as bits",
                       "checkpoint_every is given")
        else:
            one.choose("saved", f"{of} in {str(y.dtype).removeprefix('torch.')} "
                                f"({bytes_text(y.nbytes)}), spikes as bits",
                       "checkpoint_every is None, holds all of it, or is ignored on CUDA")

    def _gradients(self, bits: Tensor) -> None:
        one, word, active = self._with_bits.get(bits.data_ptr(), (None, "", ""))
        counted = _ops._C.counters()
        steps = {text: counted[f"product_steps_{name}"] for name, text in _PRODUCTS.items()}
        total = sum(steps.values())
        if one is None or not total:
            return
        share = f"{counted['active'] / max(1, counted['replayed']):.1%} here{active}"
        one.choose("product", ", ".join(f"{text} in {n:,}" for text, n in steps.items() if n)
                   + f" of {total:,} steps of tiles", f"{word} is forced" if word != "automatic"
                   else f"chosen in each step by the share of active neurons, {share}")

    # --------------------------------------------------------------------------------------- CUDA
    def _choose_designs(self, one: LayerPlan, t: Any, settings: Any) -> None:
        """What _C.plan says of the card."""
        c = settings.constants
        model = {number: name for name, number in _ops.DYNAMICS.items()}[c.dynamics]
        found = _ops._C.plan(
            t.x.shape[0], t.x.shape[1], t.neurons, delays=list(settings.delays),
            dtype=str(t.x.dtype).removeprefix("torch."), smooth=bool(c.smooth), device=self._card,
            options=list(settings.options), model=model, bf16_parts=c.bf16_parts)
        card = self._card or "CUDA"
        for name in ("forward", "backward"):
            way = found[name]
            kernels = ("general kernels" if way["kernels"] == "general"
                       else f'kernel "{way["route"]}"{_GENERAL}')
            one.choose(f"{card} {name}", f"{kernels}, design {way['design']}, {way['blocks']} "
                                         f"blocks", way["why"])
        weights = found["weight gradient"]
        one.choose(f"{card} weights", f"gradient by {weights['kernels']}", weights["why"])
        if t.w_out is not None:
            fits = _ops._C.readout_fits(t.neurons, t.w_out.shape[0], t.x.element_size() == 8)
            one.choose(f"{card} readout", "inside the operator" if fits else
                       "an operator of its own", "" if fits else "its weights do not fit")

    # -------------------------------------------------------------------------------------- names
    def _name(self, *tensors: Any) -> str:
        """Of the first tensor that is a parameter; empty if none is."""
        return next((self._names[one.data_ptr()] for one in tensors
                     if isinstance(one, Tensor) and one.data_ptr() in self._names), "")

    def _claim_saved(self, owner: str) -> int:
        """The bytes that autograd has kept since the last call, which belong to the owner."""
        new = [key for key in self._live.saved if key not in self._live.owners]
        self._live.owners.update(dict.fromkeys(new, owner))
        return sum(self._live.saved[key] for key in new)


def _layer_of(parameter: str) -> str:
    """" l1" of "weight_hh_l1", empty for the first layer and direction."""
    found = re.search(r"_(l[1-9]\d*|l0(?=_))(_reverse)?$", parameter)
    return found[0].replace("_", " ") if found else ""
