"""Files for lsnn_ext.load that save has not written, or another version, or that were changed: a
module or a ValueError, without code of the file and without more memory than the file has. And
modules that a file cannot hold, which save refuses."""
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_storage import _set, _with
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import lsnn_ext
from compare import assert_same
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, Linear
from lsnn_ext.modules.parametrizations import Clamp
from module_kinds import Exp

safetensors = pytest.importorskip("safetensors.torch")
CASES = int(os.environ.get("LSNN_FUZZ_CASES", "300"))


def _file(path: Path, module: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of what save writes."""
    lsnn_ext.save(module, path)
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["lsnn_ext"]), {
            name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def _load(path: Path, told: Any, tensors: dict[str, Tensor]) -> Any:
    words = told if isinstance(told, str) else json.dumps(told)
    safetensors.save_file(tensors, path, metadata={"lsnn_ext": words})
    return lsnn_ext.load(path)


def test_the_file_is_plain(tmp_path: Path) -> None:
    """All keys of the state dict are in it, those of tied tensors too."""
    layer = ALIF(5, 7)
    told, tensors = _file(tmp_path / "m", nn.Sequential(layer, Linear(7, 7), layer))
    assert (told["format"], told["version"]) == (2, lsnn_ext.__version__)
    assert told["module"]["parts"][0][1]["arguments"]["hidden_size"] == 7
    for name, value in layer.state_dict().items():
        assert_same(name, tensors[f"state.0.{name}"], value)
        assert_same(name, tensors[f"state.2.{name}"], value)
    assert ["0.weight_hh_l0", "2.weight_hh_l0"] in told["one_tensor"]
    assert told["one_module"] == [["0", "2"]]


def test_other_files_are_refused(tmp_path: Path) -> None:
    safetensors.save_file({"a": torch.ones(2)}, tmp_path / "m")
    with pytest.raises(ValueError, match="without its description"):
        lsnn_ext.load(tmp_path / "m")
    with pytest.raises(ValueError, match="format 2 or older, got 3 of lsnn_ext 9.0"):
        _load(tmp_path / "m", {"format": 3, "version": "9.0", "module": {}}, {})
    (tmp_path / "m").write_bytes(b"no tensors at all, only words")
    with pytest.raises(ValueError, match="path: expected a file in safetensors format, got .*m: "):
        lsnn_ext.load(tmp_path / "m")
    with pytest.raises(FileNotFoundError):
        lsnn_ext.load(tmp_path / "none")


def test_files_of_format_1(tmp_path: Path) -> None:
    """They had no ties and flags, and all arguments of an LSNN."""
    net = LSNN(5, 4, 3, 2, tau_out=15.0, learn=("tau_mem", "tau_out"), per_neuron=("tau_out",),
               saved_dtype=torch.bfloat16, delay=2)
    told, tensors = _file(tmp_path / "m", nn.Sequential(net, LeakyReadout(2, 2)))
    (_, network), readout = told["module"]["parts"]
    (_, neurons), (_, out) = network.pop("parts")
    arguments = neurons["arguments"]
    del arguments["hidden_size"]
    for name, value in arguments.items():
        if isinstance(value, dict) and "tensor" in value:
            value["tensor"] = f"arguments.0.{name}"
            tensors[f"arguments.0.{name}"] = tensors.pop(f"arguments.0.neurons.{name}")
    arguments["learn"]["forms"]["tau_out"] = ["log"]
    network |= {"dtype": "float32", "arguments": {
        **arguments, **network["arguments"], "output_size": 2, "tau_out": out["arguments"]["tau"],
        "per_neuron": ["tau_out"]}}
    old = {"format": 1, "version": "0.1.0",
           "module": {"kind": "torch.nn.Sequential", "parts": [["0", network], readout]}}
    loaded = _load(tmp_path / "m", old, tensors)
    assert repr(loaded[0]) == repr(net)
    x = torch.rand(20, 3, 5)
    assert_same("readout", loaded[0](x)[0].detach(), net(x)[0].detach())
    assert all(value.requires_grad for value in loaded.parameters())


# ------------------------------------------------------------------------------- changed on purpose
def _module() -> nn.Module:
    layer = ALIF(3, 4, delay=torch.eye(4).long(), beta=1.5, saved_dtype=torch.bfloat16,
                 learn={"tau_mem": "log", "beta": Clamp(0.0, 2.0)})
    net = nn.Sequential(layer, nn.ModuleDict({"net": LSNN(4, 2, 2, 4, learn="tau_out"),
                                              "other": LIF(4, 4, recurrent=False)}),
                        nn.ModuleList([Linear(4, 4), nn.Linear(4, 4), LeakyReadout(4, 4), layer]))
    net[2][0].weight = net[2][1].weight  # type: ignore[index,union-attr]
    net[1].eval()
    return net


LARGE = 10**13
SIZES = ("input_size", "hidden_size", "num_layers", "n", "output_size", "in_features",
         "out_features", "n_regular", "n_adaptive")
VALUES: list[Any] = [
    None, True, 0, -1, 1, 7, LARGE, 10**400, 0.5, -0.0, float("nan"), float("inf"), "", "tensor",
    "load", "__class__", "0", "0.", ".", "torch.nn.Linear", "ALIF", "5 ms", "9" * 400 + " ms", [],
    [[]], [["0", "0"]], ["0", "2.3"], {}, {"tensor": "state.0.weight_hh_l0"}, {"dtype": "load"},
    {"dtype": "float64"}, {"forms": {"tau_mem": ["clamp", 1]}}, {"forms": {"beta": ["system"]}},
    {"kind": "torch.nn.Sequential", "parts": []}, {"kind": ["ALIF"]}, {"kind": "LSNN", "parts": []}]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Containers of a description and their keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()
    for key, part in items:
        yield value, key
        yield from _places(part)


def _change(told: Any, draw: random.Random) -> Any:
    """Changes one place of a description."""
    places = [*_places(told)]
    container, key = draw.choice(places)
    what = draw.randrange(5)
    if what == 0:
        del container[key]
    elif what == 1:
        other, place = draw.choice(places)
        container[key] = json.loads(json.dumps(other[place])) if place in range(
            len(other)) or isinstance(other, dict) and place in other else None
    elif what == 2 and isinstance(container, dict):
        names = draw.choice([*SIZES, "device", "dtype", "learn", "per_neuron", "parts", "kind"])
        container[names] = draw.choice(VALUES)
    else:
        container[key] = draw.choice(VALUES)
    return told


def _judged(path: Path, told: Any, tensors: dict[str, Tensor]) -> bool:
    """Whether it was loaded; all but a module or a ValueError fails."""
    begin = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = _load(path, told, tensors)
    except ValueError as error:
        assert str(error).startswith("path: expected a file"), error
        return False
    finally:
        assert time.monotonic() - begin < 20
    assert isinstance(made, nn.Module)
    made.state_dict()
    return True


def test_changed_descriptions(tmp_path: Path) -> None:
    told, tensors = _file(tmp_path / "m", _module())
    assert _judged(tmp_path / "m", told, tensors)
    draw, words, loaded = random.Random(0), json.dumps(told), 0
    for _ in range(CASES):
        changed = json.loads(words)
        for _ in range(draw.randint(1, 3)):
            changed = _change(changed, draw)
        loaded += _judged(tmp_path / "m", changed, tensors)
    assert 0 < loaded < CASES / 2


def test_every_argument(tmp_path: Path) -> None:
    for module in (ALIF(2, 3, learn="tau_mem"), LeakyReadout(2, 2)):
        told, tensors = _file(tmp_path / "m", module)
        for name in [*told["module"]["arguments"], "device", "dtype", "per_neuron", "unknown"]:
            for value in VALUES if CASES > 300 else random.Random(name).sample(VALUES, 8):
                arguments = {**told["module"]["arguments"], name: value}
                _judged(tmp_path / "m", {**told, "module": {**told["module"],
                                                            "arguments": arguments}}, tensors)


def test_changed_words_and_bytes(tmp_path: Path) -> None:
    told, tensors = _file(tmp_path / "m", _module())
    data, words, draw = (tmp_path / "m").read_bytes(), json.dumps(told), random.Random(1)
    for _ in range(CASES // 4):
        at = draw.randrange(len(words))
        _judged(tmp_path / "m", words[:at] + draw.choice(["", '"', "[", "1", words[:at]])
                + words[at + 1:], tensors)
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(data))] = draw.randrange(256)
        (tmp_path / "m").write_bytes(changed[:draw.choice([len(data), draw.randrange(len(data))])])
        try:
            lsnn_ext.load(tmp_path / "m")
        except ValueError as error:
            assert str(error).startswith("path: expected a file")


def test_changed_tensors(tmp_path: Path) -> None:
    """Other shapes, dtypes and numbers, missing ones and some too many."""
    told, tensors = _file(tmp_path / "m", nn.Sequential(
        ALIF(3, 4, delay=torch.eye(4).long(), learn="tau_mem"), LeakyReadout(4, 2, learn="tau")))
    for name, value in tensors.items():
        for other in (None, value.bool(), value.double(), value[None], value.new_zeros(0),
                      value.new_full((), 7), value.float() * float("nan")):
            left = {key: one for key, one in tensors.items() if key != name}
            _judged(tmp_path / "m", told, left if other is None else {**left, name: other})
    assert not _judged(tmp_path / "m", told, {**tensors, "state.more": torch.ones(2)})


def _deep(depth: int) -> str:
    return '{"kind": "torch.nn.Sequential", "parts": [["0", ' * depth + "null" + "]]}" * depth


@pytest.mark.parametrize("words", [
    "[" * 10**5, '{"a":' * 10**5, '{"format": 2, "module": ' + "[" * 10**5, "1" * 5000,
    '{"format": ' + "1" * 5000 + "}", "null", "[]", '"ALIF"', "{}", '{"format": 2}',
    '{"format": true}', '{"format": 2, "module": null}',
    *('{"format": 2, "one_module": [], "one_tensor": [], "requires_grad": [], "eval": [], '
      f'"module": {_deep(depth)}}}' for depth in (sys.getrecursionlimit() // 2, 10**4))])
def test_words(words: str, tmp_path: Path) -> None:
    _judged(tmp_path / "m", words, {"state.weight": torch.ones(2, 2)})


def _inner(told: Any, kind: str) -> Any:
    return next(c[k]["arguments"] for c, k in _places(told)
                if isinstance(c[k], dict) and c[k].get("kind") == kind)


@pytest.mark.parametrize(("kind", "changes"), [
    *((kind, {name: LARGE}) for kind, name in (
        ("ALIF", "hidden_size"), ("ALIF", "input_size"), ("ALIF", "num_layers"),
        ("LIF", "hidden_size"), ("LeakyReadout", "n"), ("LeakyReadout", "output_size"),
        ("LSNN", "n_regular"), ("LSNN", "n_adaptive"), ("Linear", "in_features"),
        ("torch.nn.Linear", "out_features"))),
    ("ALIF", {"hidden_size": LARGE, "per_neuron": True}),
    ("ALIF", {"hidden_size": True}), ("LSNN", {"n_regular": -3}), ("LSNN", {"n_regular": 2.0}),
    ("ALIF", {"device": "cpu"}), ("ALIF", {"learn": {"forms": {"tau_mem": ["clamp", 1, "2"]}}}),
    ("ALIF", {"saved_dtype": {"dtype": "load"}}), ("ALIF", {"delay": {"tensor": 3, "more": 1}}),
    *(("", {"one_module": pairs}) for pairs in (
        [["", "0"]], [["0", ""]], [["0", "0"]], [["0", "1"]], [["0", "nothing"]], [[]],
        [["0", "1.net.neurons"], ["1", "0"]], ["0"])),
    *(("", {"one_tensor": [pair]}) for pair in (
        ["0.weight_ih_l0", "0.weight_hh_l0"], ["0.delay", "0"],
        ["0.weight_hh_l0", "2.0.weight_more"])),
    *(("", {"requires_grad": given}) for given in (["0.delay"], ["nothing"], {"0": 1})),
    ("", {"eval": ["3"]}), ("", {"eval": [0]})])
def test_arguments_that_are_refused(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Among them sizes for which no memory is enough, and modules inside of themselves."""
    told, tensors = _file(tmp_path / "m", _module())
    (_inner(told, kind) if kind else told).update(changes)
    assert not _judged(tmp_path / "m", told, tensors)


def test_layers_are_counted_by_their_own_tensors(tmp_path: Path) -> None:
    told, tensors = _file(tmp_path / "m", _module())
    _inner(told, "LIF")["num_layers"] = 2
    with pytest.raises(ValueError, match=r"module\.1\.other\.num_layers: expected a size that"):
        _load(tmp_path / "m", told, tensors)


def test_long_paths(tmp_path: Path) -> None:
    """Each part would hold a copy of the key."""
    told, tensors = _file(tmp_path / "m", nn.Sequential(nn.Sequential(nn.Sequential())))
    told["module"]["parts"][0][0] = "a" * 10**5
    with pytest.raises(ValueError, match=r"module\.a+\.\.\.: expected a path of .*got 100000$"):
        _load(tmp_path / "m", told, tensors)


def test_many_small_files_in_one(tmp_path: Path) -> None:
    """Modules that stand twice in each other again and again do not multiply."""
    part: Any = {"kind": "torch.nn.Sequential", "parts": []}
    for _ in range(40):
        part = {"kind": "torch.nn.Sequential", "parts": [["0", part]]}
    paths = ["0." * depth + "0" for depth in range(39)]
    assert not _judged(tmp_path / "m", {
        "format": 2, "module": part, "one_tensor": [], "requires_grad": [], "eval": [],
        "one_module": [[path, path + ".1"] for path in paths]}, {"a": torch.ones(1)})


# ------------------------------------------------------------------------------- refused by save
class Mine(ALIF):
    pass


REFUSED: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "another class": (lambda: nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), TypeError,
                      r"module\.1: expected one of .* LSTM"),
    "a subclass": (lambda: Mine(2, 3), TypeError, "module: expected one of .* got Mine"),
    "a LearnedDelay": (lambda: lsnn_ext.LearnedDelay(2, 3, 2), TypeError,
                       "module: expected one of .* got LearnedDelay"),
    "no module": (lambda: 3, TypeError, "module: expected one of .* got int"),  # type: ignore
    "weight_norm": (_with(lambda net: nn.utils.parametrizations.weight_norm(net.first,
                                                                            "weight_hh_l0")),
                    TypeError, r"module\.first: expected plain parameters, got a parametrized"),
    "a parametrization": (lambda: ALIF(5, 4, learn={"tau_mem": Exp()}), TypeError,
                          "module: expected plain parameters, got a parametrized tau_mem_l0"),
    "pruning": (_with(lambda net: prune.random_unstructured(net.second, "weight_hh_l0", 0.5)),
                TypeError, r"module\.second: expected a module without hooks"),
    "a hook": (_with(lambda net: net.last["linear"].register_forward_hook(lambda *_: None)),
               TypeError, r"module\.last\.linear: expected a module without hooks"),
    "a forward": (_with(_set("second", forward=abs)), TypeError,
                  r"module\.second: expected a module without hooks"),
    "inside of itself": (_with(lambda net: net.last.update({"again": net})), ValueError,
                         r"module\.last\.again: expected no module inside"),
    "other parts": (_with(_set("net", neurons=LIF(4, 4))), TypeError,
                    r"module\.net\.neurons: expected ALIF, .* got LIF"),
    "no part": (_with(_set("net", readout=None)), TypeError,
                r"module\.net\.readout: expected LeakyReadout"),
    "a hook of a tensor": (_with(lambda net: net.second.weight_hh_l0.register_hook(abs)), TypeError,
                           r"module\.second\.weight_hh_l0: expected a tensor without hooks"),
    "a hook of a learned time": (
        _with(lambda net: net.first.parametrizations.tau_mem_l0.original.register_hook(abs)),
        TypeError, r"module\.first\.parametrizations.*original: expected a tensor without hooks"),
    **{name: (_with(lambda net, name=name: getattr(net.second, name)(lambda *_: None)), TypeError,
              r"module\.second: expected the state dict hooks")
       for name in ("register_state_dict_pre_hook", "register_state_dict_post_hook",
                    "register_load_state_dict_pre_hook", "register_load_state_dict_post_hook")},
    "a step": (_with(_set("second", step=abs)), TypeError,
               r"module\.second: expected a module without hooks or a replaced step"),
    "a buffer that is not stored": (
        _with(lambda net: net.second.register_buffer("mask", torch.ones(3), persistent=False)),
        TypeError, r"module\.second\.mask: expected the buffers that"),
    **{kind.__name__: (lambda kind=kind: nn.Sequential(kind(Linear(2, 2))), TypeError,
                       rf"module\.0: expected a module without a wrapper, .* save its \.{name}$")
       for kind, name in ((torch.compile, "_orig_mod"), (nn.DataParallel, "module"),
                          (AveragedModel, "module"))},
    "a long path": (lambda: nn.ModuleDict({"a" * 600: nn.ModuleDict({"b" * 400: Linear(2, 2)})}),
                    ValueError,
                    r"^module\.a+\.\.\.: expected a path .* 1000 characters, got 1001$"),
    "another buffer": (_with(lambda net: net.second.register_buffer("mask", torch.ones(3))),
                       TypeError, r"Unexpected key.*second\.mask"),
    "another module": (_with(_set("second", extra=nn.Dropout())), TypeError,
                       r"module\.second\.extra: expected the modules that"),
    "a Parameter in place of a constant": (
        _with(lambda net: setattr(net.second, "beta_l0", nn.Parameter(net.second.beta_l0.clone()))),
        TypeError, r"module\.second\.beta_l0: expected the Parameters"),
    "a tensor as tau": (_with(_set("last.fixed", tau=torch.tensor(3.0))), TypeError,
                        r"module\.last\.fixed: tau: expected a number"),
    "a constant of another shape": (_with(_set("second", beta_l0=torch.ones(4))), TypeError,
                                    r"module\.second\.beta_l0: expected .*got .*shape \(4,\)"),
    "another size": (_with(_set("second", hidden_size=5)), TypeError, r"module\.second\."),
    "a setting that no layer has": (_with(_set("first", refractory=-1)), TypeError,
                                    r"module\.first: refractory: expected a whole number"),
    "an object": (_with(_set("first", checkpoint_every=object())), TypeError,
                  r"module\.first\.checkpoint_every: expected a number or a string"),
    "another form": (lambda: _clamped(3.0), TypeError, "parametrizations: expected"),
    "a view": (_with(lambda net: _set("second", weight_hh_l0=nn.Parameter(
        net.net.neurons.weight_hh_l0.detach()))(net)), ValueError,
        r"module\.second\.weight_hh_l0: expected separate memory"),
    "a row": (_with(lambda net: _set("last.linear", bias=nn.Parameter(
        net.second.weight_hh_l0.detach()[1]))(net)), ValueError,
        r"module\.(second\.weight_hh_l0|last\.linear\.bias): expected separate memory"),
    "meta": (lambda: ALIF(2, 3, device="meta"), ValueError,
             r"module\.weight_ih_l0: expected a tensor with data, got a meta tensor")}


def _clamped(high: float) -> nn.Module:
    layer: Any = ALIF(5, 4, 2, beta=1.5, learn={"beta": Clamp(1.0, 2.0)})
    layer.parametrizations["beta_l1"][0].high = high
    return layer


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused(name: str, tmp_path: Path) -> None:
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        lsnn_ext.save(make(), tmp_path / "m")
    assert not (tmp_path / "m").exists()
