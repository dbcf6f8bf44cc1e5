"""The program of the published checkpoints, on tiny files in their form."""
import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import checkpoint_files as files
from data_files import write_recordings
from example_path import generator, needs, refusal

needs("matplotlib", "tqdm", "scipy")
from lsnn_ext import reference  # noqa: E402
from lsnn_ext.functional import State  # noqa: E402
from lsnn_ext.zoo import dh_srnn  # noqa: E402
from published import networks, run  # noqa: E402
from smnist.networks import SRNN  # noqa: E402

ROWS = {f"{row.network} {row.task}": row for row in run.ROWS}
HELD = {"BRF ECG": files.higuchi("BRF", 4, 6), "RF ECG": files.higuchi("RF", 4, 6),
        "ALIF ECG": files.higuchi("ALIF", 4, 6), "SRNN ECG": files.yin_ecg(),
        "DH-SRNN S-MNIST": files.DH(2)}


def _place(folder: Path, name: str, held: Any) -> Path:
    """Writes the file of a row."""
    return files.write(folder / ROWS[name].file.replace("*", "x"), held)


def _run(row: run.Row, held: dict[str, Tensor], *size: int,
         ) -> tuple[Tensor, list[list[Tensor]], list[Tensor]]:
    """Inputs of a size, the first states and the results of a checkpoint, in float64."""
    net = row.build({name: value.double() for name, value in held.items()})
    x = torch.randint(-2, 3, size, generator=generator()).double()
    start = [[each.double() for each in row.make_start(layer, size[1], generator())]
             for layer in net.layers]
    found = net(x, start)
    assert all(0.01 < each.mean() < 0.9 for each in found[:len(found) - net.is_analog])
    return x, start, found


def _leak(old: Tensor, new: Tensor, tau: Tensor) -> Tensor:
    return new + torch.exp(-1 / tau.abs()) * (old - new)


def _step(kind: str, c: Tensor, p: dict[str, Tensor], states: list[Tensor]) -> list[Tensor]:
    """The neurons of brf-neurons in another form: complex membranes."""
    if kind == "ALIF":
        u, a, z = states
        a = _leak(a, z, p["hidden.tau_adp"])
        u = _leak(u, c, p["hidden.tau_mem"])
        z = (u > 0.01 + 1.8 * a).double()
        return [torch.where(z > 0, u - 0.01 - 1.8 * a, u), a, z]
    w, q, z = states
    omega, b = p["hidden.omega"].abs(), -p["hidden.b_offset"].abs()
    if kind == "BRF":
        b = b - q - (1 - (1 - (omega / 100).square()).sqrt()) * 100
    w = w * (1 + torch.complex(b, omega.expand_as(b)) / 100) + c / 100
    z = (w.real > 1 + (q if kind == "BRF" else 0)).double()
    return [w, 0.9 * q + z, z]


@pytest.mark.parametrize("kind", ["BRF", "RF", "ALIF"])
def test_higuchi(kind: str) -> None:
    held = HELD[f"{kind} ECG"]["model_state_dict"]
    p = {name: value.double() for name, value in held.items()}
    x, ((v, *rest), (out,)), (spikes, y) = _run(ROWS[f"{kind} ECG"], p, 80, 5, 4)
    states = [v if kind == "ALIF" else torch.complex(v, v), rest[0], rest[-1]]
    for t, x_t in enumerate(x):
        current = torch.cat([x_t, states[-1]], 1) @ p["hidden.linear.weight"].T
        states = _step(kind, current, p, states)
        out = _leak(out, states[-1] @ p["out.linear.weight"].T, p["out.tau_mem"])
        assert torch.equal(spikes[t], states[-1]), t
        torch.testing.assert_close(y[t], out)


@pytest.mark.parametrize("K", [1, 2])
def test_zheng(K: int) -> None:
    """The branches of a neuron stand next to each other, and inputs are padded."""
    module = files.DH(K).double()
    x, start, found = _run(ROWS["DH-SRNN S-MNIST"], module.state_dict(), 60, 3, 1)
    states = [(torch.zeros(3, each[-1].shape[1], K).double(), *each[-2:]) for each in start]
    for t, below in enumerate(x):
        for k, layer in enumerate((module.rnn_1, module.rnn_2, module.dense_2)):
            d, v, z = states[k]
            if k < 2:
                padded = torch.cat([below, z, torch.zeros(3, layer.pad).double()], 1)
                beta = torch.sigmoid(layer.tau_n)
                d = beta * d + (1 - beta) * layer.dense(padded).reshape(d.shape)
            current = d.sum(2) if k < 2 else layer.dense(below)
            alpha, theta = torch.sigmoid(layer.tau_m), 1.0 if k < 2 else 0.5
            v = alpha * v + (1 - alpha) * current - theta * z
            below = (v > theta).double()
            states[k] = d, v, below
            assert torch.equal(found[k][t], below), (t, k)


def test_yin_ecg() -> None:
    p = {name: value.double() for name, value in HELD["SRNN ECG"].items()}
    x, ((v, _, z), (u, a, s)), (spikes, y) = _run(ROWS["SRNN ECG"], p, 60, 3, 4)
    fired = 0.0
    for t, x_t in enumerate(x):
        c = x_t @ p["i2h.weight"].T + p["i2h.bias"] + z @ p["h2h.weight"].T + p["h2h.bias"]
        v = _leak(v, c, p["tau_m_h"]) - 0.1 * z
        z = (v > 0.1).double()
        a = _leak(a, s, p["tau_adp_o"])
        threshold = 0.1 + 1.8 * a
        u = _leak(u, z @ p["h2o.weight"].T + p["h2o.bias"], p["tau_m_o"]) - threshold * s
        s = (u > threshold).double()
        fired += s.mean().item()
        assert torch.equal(spikes[t], z), t
        torch.testing.assert_close(y[t], u)
    assert fired > 1


def test_the_loop_is_the_trained_network_of_smnist() -> None:
    """The SRNN of examples/smnist, whose weights are put into the form of a checkpoint."""
    torch.manual_seed(0)
    trained, p = SRNN(), {}
    for layer, (name, linear, past, _) in zip(trained.layers, networks.YIN_MNIST, strict=True):
        held = {key.removesuffix("_l0"): torch.round(64 * value.detach()) / 64
                for key, value in layer.named_parameters()}
        layer.load_state_dict({f"{key}_l0": value for key, value in held.items()}, strict=False)
        p |= {f"tau_m_{name}": held["tau_mem"], f"tau_adp_{name}": held["tau_adapt"],
              f"{linear}.weight": held["weight_ih"], f"{linear}.bias": held["bias_ih"]}
        if past is not None:
            p |= {f"{past}.weight": held["weight_hh"],
                  f"{past}.bias": torch.zeros(layer.hidden_size)}
    row = ROWS["SRNN S-MNIST"]
    net = row.build(p)
    shown = torch.randint(2, (2, 784), generator=generator(), dtype=torch.uint8) * 255
    drawn = [tuple(torch.round(64 * each) / 64 for each in row.make_start(layer, 2, generator()))
             for layer in net.layers]
    states = [state._replace(v=v[None], a=a[None], z=v[None, None]) for state, (v, a, _) in
              zip(trained.start(2, generator()), drawn, strict=True)]
    with torch.no_grad():
        counts = drawn[-1][-1] + net(row.show(shown, Path()), drawn)[-1].sum(0)
        assert torch.equal(trained(shown, states), counts)
    assert counts.max() > 5


def test_dendrites_are_the_zoo_with_two_branches() -> None:
    given = torch.randn(6, 5, 7, generator=generator())
    alpha, *betas = torch.rand(3, 7, generator=generator())
    for theta in (1.0, 0.5):
        found = networks.step_dendrites(*given, alpha=alpha, betas=betas, theta=theta)
        expected = dh_srnn.step(*given, alpha=alpha, beta1=betas[0], beta2=betas[1], theta=theta)
        assert 0 < found[-1].mean() < 1
        assert all(map(torch.equal, found, expected)) and len(found) == len(expected)


def test_srnn_is_the_model_of_the_reference() -> None:
    """From a random state as the program draws it; bitwise."""
    T, B, N = 60, 5, 7
    c = torch.randn(T, B, N, generator=generator())
    alpha, rho = torch.rand(2, N, generator=generator())
    k: dict[str, Any] = {"alpha": alpha, "rho": rho, "beta": 1.8, "theta": 0.1}
    v = torch.rand(B, N, generator=generator())
    a, zero = torch.full_like(v, 0.1), torch.zeros_like(v)
    spikes, _, traces = reference.alif(c, None, dynamics="srnn", trace=True,
                                       state=State(v, a, zero, zero, v[None]), **k)
    z = v
    for t in range(T):
        v, a, z = networks.step_srnn(c[t], v, a, z, **k)
        for found, expected in zip((v, a, z), (traces.v, traces.a, spikes), strict=True):
            assert torch.equal(found, expected[t]), t
    assert 0.1 < spikes.mean() < 0.9


# ------------------------------------------------------------------------------ inputs and answers
def test_orders_and_windows(tmp_path: Path) -> None:
    shown = torch.randint(256, (3, 784), generator=generator(), dtype=torch.uint8)
    x = shown.float() / 255
    assert torch.equal(ROWS["BRF S-MNIST"].show(shown, tmp_path), x.T[..., None])
    torch.manual_seed(0)
    order = torch.randperm(784)
    assert torch.equal(ROWS["DH-SRNN PS-MNIST"].show(shown, tmp_path),
                       ((x - 0.1307) / 0.3081)[:, order].T[..., None])
    order = torch.randperm(784)
    pattern = "brf-neurons/experiments/smnist/models/10-08_12-39-46Ax_idx.pt"
    files.write(tmp_path / pattern, order)
    assert torch.equal(ROWS["BRF PS-MNIST"].show(shown, tmp_path), x[:, order].T[..., None])
    wide = ROWS["SRNN S-MNIST"].show(shown, tmp_path)
    assert wide.shape == (784, 3, 8)
    for t, first in ((0, 0), (775, 775), (776, 776), (777, 776), (783, 776)):
        assert torch.equal(wide[t], x[:, first:first + 8]), t


def test_answers() -> None:
    y = torch.tensor([[[0.0, 9, 0]], [[5, 0, 0]], [[0, 0, 6]]])  # (3, 1, 3)
    start, label = torch.tensor([[0.0, 0, 4]]), torch.arange(3)
    for is_right, answer in ((run.is_right_at_end, 2), (run.is_right_on_average, 1),
                             (run.is_right_by_count, 1), (run.is_right_by_count_and_start, 2)):
        assert [bool(is_right(y, start, k[None])) for k in label] == [k == answer for k in label]
    phase = torch.tensor([[1, 1, 2]])
    assert run.is_right_at_steps(y, start, phase, slice(None)).tolist() == [[True, False, True]]
    assert run.is_right_at_steps(y, start, phase, slice(1, 2)).tolist() == [[False]]


@pytest.mark.parametrize(("name", "first", "last"), [
    ("BRF ECG", 0, 1300), ("RF ECG", 0, 1300), ("ALIF ECG", 10, 1300), ("SRNN ECG", 10, 1301)])
def test_steps_that_count(name: str, first: int, last: int) -> None:
    """Of recordings of 1,301 steps, the length of the data."""
    y = torch.randn(1301, 2, 6, generator=generator())
    phase = torch.randint(6, (2, 1301), generator=generator())
    found = ROWS[name].is_right(y, torch.zeros(2, 6), phase)
    assert torch.equal(found, (y.argmax(2).T == phase)[:, first:last])


def test_starts() -> None:
    layer = networks.Layer(networks.step_dendrites, 4, [(torch.zeros(6, 6), None)])
    *branches, v, z = networks.draw_states(layer, 5, generator())
    assert len(branches) == 2 and not any(each.any() for each in branches)
    assert v.shape == z.shape == (5, 6) and not torch.equal(v, z) and 0 <= z.min() < z.max() < 1
    v, a, z = networks.draw_shared(layer, 5, generator(), theta=0.01, below=0.5)
    assert torch.equal(v, z) and 0.3 < v.max() < 0.5 and bool((a == 0.01).all())


# ------------------------------------------------------------------------------------- the program
@pytest.mark.parametrize("name", [name for name in HELD if name.endswith("ECG")])
def test_a_row_of_the_page(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted as the authors count them, and no spike differs."""
    monkeypatch.setattr(run, "ROUNDS", 1)
    data = tmp_path / "Efficient-spiking-networks" / "data"
    data.mkdir(parents=True)
    write_recordings(data, recordings=2, steps=40)
    row, path = ROWS[name], _place(tmp_path, name, HELD[name])
    page = tmp_path / "page.md"
    monkeypatch.setattr(run, "ROWS", (row,))
    run.main(["--folder", str(tmp_path), "--page", str(page)])
    head, rule, line = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == head.count("|") - 1 == rule.count("|") - 1
    assert f"{head}\n{rule}\n{line}\n" in page.read_text()

    net, (shown, phase) = row.build(row.read(path)), row.load(argparse.Namespace(folder=tmp_path))
    random = generator()
    start = [row.make_start(layer, len(shown), random) for layer in net.layers]
    y = net(row.show(shown, tmp_path), start)[-1]
    first = 0 if name in ("BRF ECG", "RF ECG") else 10
    right = (y.argmax(-1).T == phase)[:, first:]
    n, many = int(right.sum()), right.numel()
    assert cells[:7] == [row.network, row.task, f"{row.published} %",
                         f"{100 * n / many:.2f} % of {many:,}", f"{n}, {n} of {many}",
                         f"0 of {shown.shape[0] * shown.shape[1] * net.layers[0].N:,}", "0"]


def test_the_page_tells_what_its_command_prints() -> None:
    page = (Path(run.__file__).parents[2] / "docs" / "published.md").read_text()
    head, _, notes = run.format_page("TABLE", argparse.Namespace(batch=100)).partition("TABLE")
    assert page.startswith(f"{head}{run.HEAD}\n")
    assert page.endswith(notes.partition("\n\n")[2].partition("\n\n")[2])
    rows = page.partition(run.HEAD)[2].strip().partition("\n\n")[0].splitlines()
    assert [row.split(" | ")[:3] for row in rows] == [
        [f"| {row.network}", row.task, f"{row.published} %"] for row in run.ROWS]


@pytest.mark.parametrize("option", [["--only", "BRF"], ["--examples", "5"], ["--batch", "7"]])
def test_a_page_of_a_part_is_refused(option: list[str], tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before")
    with pytest.raises(SystemExit):
        run.main(["--folder", str(tmp_path), "--page", str(page), *option])
    assert ("--page: expected the defaults of --only, --examples and --batch, got "
            f"{' '.join(option)};" in capsys.readouterr().err)
    assert page.read_text() == "before"


def test_digits_come_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny network of DH-SNN; the last batch is smaller."""
    monkeypatch.setattr(run, "ROUNDS", 1)
    name, n = "DH-SRNN S-MNIST", 5
    x = torch.randint(-2, 3, (n, 20, 1), generator=generator()).float()
    label = torch.arange(n)
    row = ROWS[name]._replace(load=lambda options: run.Examples(x, label),
                              show=lambda shown, folder: shown.transpose(0, 1))
    monkeypatch.setattr(run, "read_digits", row.load)
    path = _place(tmp_path, name, HELD[name])
    found = run.measure(row, argparse.Namespace(folder=tmp_path, batch=2, examples=10))
    net, random, right = row.build(row.read(path)), generator(), []
    for shown, wanted in zip(x.split(2), label.split(2), strict=True):
        start = [row.make_start(layer, len(shown), random) for layer in net.layers]
        right.append(row.is_right(net(shown.transpose(0, 1), start)[-1], start[-1][-1], wanted))
    assert (found.right, found.answers) == (int(torch.cat(right).sum()), n)
    assert (found.batch, found.converted, found.loop) == (2, *2 * [int(right[0].sum())])
    assert (found.differ, found.spikes) == (0, 2 * 20 * (6 + 9 + 10))


def test_missing_and_other_files(tmp_path: Path) -> None:
    given = ["--folder", str(tmp_path), "--only", "DH-SRNN S-MNIST"]
    with pytest.raises(SystemExit, match=r"--folder: expected one file DH-SNN/.*, got 0; git clone "
                                         r".*eva1801/DH-SNN$"):
        run.main(given)
    path = _place(tmp_path, "DH-SRNN S-MNIST", nn.Linear(2, 2))
    assert f"{path}: expected the published checkpoint" in refusal(run.main, given)
