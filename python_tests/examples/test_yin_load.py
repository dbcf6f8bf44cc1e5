"""smnist.yin.load: a published checkpoint in one call, which reads tensors and runs nothing. With
a tiny network in a file of the published form."""
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import example_path  # noqa: F401  which lets the others be found
from lsnn_ext import functional
from smnist import yin
from yin_files import LINEARS, SIZES, RNN_custom, digits, write

FORMATS = pytest.mark.parametrize("legacy", [True, False], ids=["old format", "zip"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.pth")


@FORMATS
def test_one_call(legacy: bool, tmp_path: Path) -> None:
    """Every number of the file is where it belongs."""
    net = yin.load(write(tmp_path / "tiny.pth", legacy=legacy))
    assert type(net) is yin.SequentialMNIST and net.training
    want, got = RNN_custom().state_dict(), dict(net.named_parameters())
    for name, (linear, recurrent) in LINEARS.items():
        bias = want[f"{linear}.bias"]
        if recurrent is not None:
            bias = bias + want[f"{recurrent}.bias"]
            assert torch.equal(got.pop(f"{name}.weight_hh_l0"), want[f"{recurrent}.weight"])
        assert torch.equal(got.pop(f"{name}.weight_ih_l0"), want[f"{linear}.weight"])
        assert torch.equal(got.pop(f"{name}.bias_ih_l0"), bias)
        assert torch.equal(got.pop(f"{name}.tau_mem_l0"), want[f"tau_m_{name}"])
        assert torch.equal(got.pop(f"{name}.tau_adapt_l0"), want[f"tau_adp_{name}"])
    assert not got


def _hand(x: Tensor, start: list[Tensor]) -> list[Tensor]:
    """The spikes of all layers, by functional.layer and the numbers of the file."""
    file, found = RNN_custom().state_dict(), []
    for (name, (linear, recurrent)), first in zip(LINEARS.items(), start, strict=True):
        zero = torch.zeros_like(first)
        bias, w_rec = file[f"{linear}.bias"], None
        if recurrent is not None:
            w_rec, bias = file[f"{recurrent}.weight"].T, bias + file[f"{recurrent}.bias"]
        out = functional.layer(
            x, file[f"{linear}.weight"], w_rec, bias=bias, theta=0.01, beta=1.8, dynamics="srnn",
            alpha=torch.exp(-1 / file[f"tau_m_{name}"]),
            rho=torch.exp(-1 / file[f"tau_adp_{name}"]),
            state=functional.State(first, zero + 0.01, zero, zero, first[None]))
        assert out.spikes is not None
        x = out.spikes
        found.append(x)
    return found


def test_digits_to_classes(checkpoint: Path) -> None:
    net, (pixels, _) = yin.load(checkpoint), digits(3)
    start = [torch.rand(3, N, generator=random) for random in [torch.Generator().manual_seed(5)]
             for N in SIZES.values()]
    with torch.no_grad():
        want = _hand(net.windows(pixels), start)
        got = net.spikes(net.windows(pixels), net.start(3, torch.Generator().manual_seed(5)))
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other) and 0.005 < float(one.mean()) < 0.6
        for form in (pixels, pixels.view(3, 28, 28), pixels.float() / 255):
            sums = net(form, torch.Generator().manual_seed(5))
            assert torch.equal(sums, start[-1] + want[-1].sum(0)) and sums.shape == (3, 10)
        torch.manual_seed(5)
        assert torch.equal(net(pixels), sums)


def test_it_learns_on(checkpoint: Path) -> None:
    net, (pixels, labels) = yin.load(checkpoint), digits(4)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    sums = net(pixels, torch.Generator().manual_seed(5))
    nn.functional.cross_entropy(sums / 100, labels).backward()
    optimizer.step()
    for name, p in net.named_parameters():
        assert bool(p.isfinite().all()) and not torch.equal(p, before[name]), name


def test_windows_stop_at_the_last_pixels(checkpoint: Path) -> None:
    pixels, _ = digits(2)
    x = yin.load(checkpoint).windows(pixels)
    assert x.shape == (784, 2, 8)
    for step in (0, 5, 775):
        assert torch.equal(x[step], pixels[:, step:step + 8].float() / 255)
    for step in (776, 777, 783):
        assert torch.equal(x[step], pixels[:, -8:].float() / 255)


@pytest.mark.parametrize(("bad", "error", "message"), [
    (torch.zeros(3, 784, dtype=torch.int64), TypeError, "^digits: .*got torch.int64"),
    ([[0] * 784], TypeError, "^digits: .*got list"),
    (torch.zeros(3, 28, 14), ValueError, r"^digits: expected shape .*got \(3, 28, 14\)"),
    (torch.zeros(784), ValueError, r"^digits: expected shape .*got \(784,\)"),
], ids=["int64", "list", "half", "unbatched"])
def test_bad_digits(bad: Any, error: type[Exception], message: str, checkpoint: Path) -> None:
    with pytest.raises(error, match=message):
        yin.load(checkpoint)(bad)


# ---------------------------------------------------------------------------------- malicious files
class _Runs:
    """Pickled as a call that leaves a file behind."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _touch(path: str) -> None:
    Path(path).touch()


@FORMATS
@pytest.mark.parametrize("inside", [True, False], ids=["in a module", "alone"])
@pytest.mark.parametrize("kind", ["os.system", "eval", "a function", "builtins.getattr"])
def test_a_pickle_that_runs_code_is_refused(kind: str, inside: bool, legacy: bool,
                                            tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    call: tuple[Any, ...] = {
        "os.system": (os.system, (f"touch {trace}",)),
        "eval": (eval, (f"open({str(trace)!r}, 'w')",)),
        "a function": (_touch, (str(trace),)),
        "builtins.getattr": (getattr, (trace, "name")),
    }[kind]
    bad: Any = _Runs(call)
    if inside:
        module = RNN_custom()
        module.surprise = bad
        bad = module
    path = write(tmp_path / "bad.pth", bad, legacy)
    if kind != "builtins.getattr":  # the file does what it should not where nobody looks
        torch.load(path, weights_only=False)
        assert trace.exists()
        trace.unlink()
    with pytest.raises(ValueError, match="^path: expected a checkpoint of Yin"):
        yin.load(path)
    assert not trace.exists()


def test_what_a_pickle_sets_is_set_nowhere(tmp_path: Path) -> None:
    """A pickle may set attributes of what it has named: here the defaults of a function of torch,
    and attributes of a class."""
    for named in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
                  b"cos\nsystem\n"):
        # builds what is named of the state (None, {"__doc__": "set"})
        attack = b"\x80\x02" + named + b"N}U\x07__doc__U\x03sets\x86b."
        head = (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
                + pickle.dumps({"little_endian": True}, 2))
        path = tmp_path / "bad.pth"
        path.write_bytes(head + attack + pickle.dumps([], 2))
        with pytest.raises(ValueError, match="^path: expected a checkpoint of Yin"):
            yin.load(path)
        for whole in (torch._utils._rebuild_tensor_v2, torch.FloatStorage, os.system):
            assert whole.__doc__ != "set"


def _replaced(**parts: Any) -> Callable[[Path, bytes], None]:
    def act(path: Path, whole: bytes) -> None:
        module = RNN_custom()
        for name, value in parts.items():
            setattr(module, name, value)
        write(path, module)
    return act


def _cycle(path: Path, whole: bytes) -> None:
    module = nn.Module()
    module.first = nn.Module()
    module.second = module.first
    write(path, module)


def _compressed(path: Path, whole: bytes) -> None:
    write(path, legacy=False)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


OTHERS: dict[str, tuple[Callable[[Path, bytes], object], str]] = {
    "cut off": (lambda path, whole: path.write_bytes(whole[:-100]), "bytes in place of"),
    "empty": (lambda path, whole: path.write_bytes(b""), "EOFError"),
    "a picture": (lambda path, whole: path.write_bytes(b"\x89PNG\r\n"), "Error"),
    "a pickle": (lambda path, whole: path.write_bytes(pickle.dumps({"a": 1})), "formats"),
    "a state dict": (lambda path, whole: torch.save(RNN_custom().state_dict(), path),
                     "no module"),
    "another module": (lambda path, whole: write(path, nn.Linear(2, 2)), "KeyError: 'tau_m_r1'"),
    "another shape": (_replaced(h2h=nn.Linear(3, 3)), r"h2h.weight of shape \(3, 3\)"),
    "eleven classes": (_replaced(d2o=nn.Linear(5, 11)), "d2o.weight of shape"),
    "float64": (_replaced(h2h=nn.Linear(6, 6).double()), "other than float32"),
    "a layer left out": (_replaced(d2d=None), "'d2d.weight'"),
    "no number": (_replaced(tau_m_o=nn.Parameter(torch.full((10,), float("nan")))), "finite"),
    "tau of 0": (_replaced(tau_m_o=nn.Parameter(torch.zeros(10))), "> 0"),
    "twice the same": (_cycle, "occurs twice, at second"),
    "compressed": (_compressed, "compressed"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_refused(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    act, message = OTHERS[kind]
    whole, other = checkpoint.read_bytes(), tmp_path / "other.pth"
    act(other, whole)
    with pytest.raises(ValueError, match="^path: expected a checkpoint of Yin") as refused:
        yin.load(other)
    assert str(other) in str(refused.value)
    assert re.search(message, str(refused.value)), refused.value


def test_a_storage_larger_than_its_file(tmp_path: Path) -> None:
    """No memory is taken on the word of a pickle."""
    whole = bytearray(write(tmp_path / "large.pth").read_bytes())
    at = whole.index(b"K", whole.index(b"cpu") + 3)  # BININT1, how many numbers the first one has
    whole[at:at + 2] = b"J" + struct.pack("<i", 2**31 - 1)
    (tmp_path / "large.pth").write_bytes(whole)
    with pytest.raises(ValueError, match=f"a storage of {2**31 - 1} numbers"):
        yin.load(tmp_path / "large.pth")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        yin.load(tmp_path / "none.pth")
