"""The model of the CUDA kernels' time: its tables hold together, and cycles are counted as machine code has them."""
import re

import pytest

from bench import chain, gpu_model
from lsnn_ext import _ops

needs_plan = pytest.mark.skipif(_ops._C is None, reason="the compiled part is missing")


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.delenv("LSNN_CUDA", raising=False)
    monkeypatch.setattr("sys.argv", ["gpu_model", *arguments])
    gpu_model.main()
    return capsys.readouterr().out


@needs_plan
@pytest.mark.parametrize("arguments", [(), ("--card", "h200"), ("--shape", "50,3,4,30"), ("--shape", "64,4096,7,2000")])
def test_floor_below_throughput_below_expected(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(capsys, monkeypatch, *arguments)
    assert "MODEL, not measured" in text
    rows = re.findall(r"^\| ([\w* ]+) \|.*? \| (\d+\.\d+) \| (\d+\.\d+) \| (\d+\.\d+) \|", text, re.MULTILINE)
    assert len(rows) == 6 * text.count("| part |")
    for name, *times in rows:
        floor, throughput, expected = map(float, times)
        assert floor <= throughput <= expected, name
        assert expected > 0 or name != "**all**"


@needs_plan
def test_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSNN_CUDA", raising=False)
    w = gpu_model.WORK["P"]
    parts = gpu_model.model(gpu_model.CARDS["h100"], w, _ops._C.plan(w.T, w.B, w.N, card="h100"))
    assert [p.floor <= p.throughput <= p.expected for p in parts] == [True] * 5
    assert f"| {1e3 * sum(p.expected for p in parts):.2f} |" in gpu_model.table(parts).splitlines()[-1]


@pytest.mark.parametrize("arguments", [("--card", "voodoo2"), ("--shape", "1,2,3")])
def test_what_it_does_not_know_is_an_error(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as error:
        printed(capsys, monkeypatch, *arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def line(address: int, text: str, stall: int, sets: int = 7, waits: int = 0) -> str:
    """An instruction as nvdisasm prints it, with the fields that the compiler fills in."""
    control = stall | 1 << 4 | sets << 5 | 7 << 8 | waits << 11
    return f"        /*{address:04x}*/   {text} ;  /* 0x0 */\n    /* 0x{control << 41:016x} */\n"


KERNEL = chain.Kernel("\n".join([
    ".L_x_0:", line(0x00, "LDS R1, [R0]", 2, sets=0),
    line(0x10, "@P1 BRA `(.L_x_1)", 5),
    line(0x20, "POPC R2, R1", 12, sets=1, waits=1), line(0x30, "IADD3 R3, R2, R2, RZ", 4, waits=2),
    ".L_x_1:", line(0x40, "@!P0 BRA `(.L_x_0)", 5), line(0x50, "EXIT", 5)]))


def test_a_path_waits_for_stalls_and_results() -> None:
    (loop,) = KERNEL.loops()
    assert loop == range(5)
    # Past the count: two stalls and two branches. The load that follows does not wait for the one before.
    assert KERNEL.cycles(loop, chain.marks("LDS")) == (2 + 5 + 5 + 2 * chain.TAKEN, 3)
    load, count = chain.LATENCY["LDS"], chain.LATENCY["POPC"]
    assert KERNEL.cycles(loop, chain.marks("LDS POPC")) == (load + count + 4 + 5 + chain.TAKEN, 5)
    assert KERNEL.cycles(loop, chain.marks("LDS", 290) + chain.marks("POPC")) == (290 + count + 4 + 5 + chain.TAKEN, 5)


def test_a_path_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SystemExit, match="has the kernel changed"):
        KERNEL.path(range(5), chain.marks("BAR"))
    with pytest.raises(SystemExit, match="expected a loop"):
        KERNEL.loop(BAR=1)
