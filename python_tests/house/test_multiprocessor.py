"""The model of a multiprocessor (csrc/tests/cuda/multiprocessor.py) on programs whose cycles are
known."""
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "csrc" / "tests"


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """The module, which lies among the tests of the kernels."""
    folders = [str(FOLDER / name) for name in ("cuda", "mutants")]
    sys.path[:0] = folders
    import multiprocessor
    yield multiprocessor
    for folder in folders:
        sys.path.remove(folder)


def _control(stall: int = 1, sets: int = 7, waits: int = 0) -> int:
    return stall | sets << 5 | 7 << 8 | waits << 11


def _kernel(*code: tuple[str, int]) -> Any:
    from sass import Instruction, Kernel
    kernel = Kernel("")
    kernel.code = [Instruction(False, name, None, control) for name, control in code]
    return kernel


def _cycles(model: Any, code: list[tuple[str, int]], **load: Any) -> float:
    """Of one step, without the branch back to its beginning."""
    from chain import TAKEN
    found: float = model.cycles_of_step(_kernel(*code), [range(len(code))], model.Load(**load))
    return found - (TAKEN if load.get("warps", 1) <= 4 else 0)


def test_one_warp_takes_what_the_chain_takes(model: Any) -> None:
    """Nobody is in its way."""
    from chain import cycles
    code = [("LDS", _control(2, 0)), ("FADD", _control(4, waits=1)), ("IADD3", _control(6)),
            ("MUFU.RCP", _control(1, 1)), ("FMUL", _control(5, waits=2)), ("BAR", _control(1))]
    kernel = _kernel(*code)
    assert model.cycles_of_step(kernel, [range(6)], model.Load(1)) == cycles(kernel, range(6))


@pytest.mark.parametrize(("name", "each"), [("FADD", 1), ("IADD3", 2), ("POPC", 8)])
def test_warps_share_the_units_of_their_scheduler(model: Any, name: str, each: int) -> None:
    """A warp of each scheduler takes no time of the others; of three, each instruction has its
    turn."""
    code = [(name, _control(each))] * 40
    assert _cycles(model, code, warps=1) == 40 * each
    assert _cycles(model, code, warps=4) == 40 * each
    assert _cycles(model, code, warps=12) == pytest.approx(3 * 40 * each, abs=10)


def test_units_work_beside_each_other(model: Any) -> None:
    """Sums of floats and of integers take the time of the slower kind, or that of issuing both."""
    code = [("FADD", _control(1)), ("FADD", _control(1)), ("IADD3", _control(1))] * 20
    assert _cycles(model, code, warps=16) == pytest.approx(4 * 60, abs=15)
    code = [("FADD", _control(1)), ("IADD3", _control(1)), ("IADD3", _control(1))] * 20
    assert _cycles(model, code, warps=16) == pytest.approx(4 * 2 * 40, abs=15)


@pytest.mark.parametrize(("name", "each"), [("LDS", 1), ("LDS.64", 2), ("LDS.128", 4)])
def test_all_warps_share_the_memory(model: Any, name: str, each: int) -> None:
    """128 bytes a cycle."""
    code = [(name, _control(1, 0))] * 40 + [("FADD", _control(1, waits=1))]
    assert _cycles(model, code, warps=16) == pytest.approx(640 * each, abs=60)


def test_the_second_level_cache_delivers_at_its_rate(model: Any) -> None:
    """Only for the instructions that read from there."""
    code = [("LDG.E.128", _control(1, 0))] * 20 + [("FADD", _control(1, waits=1))]
    taken = _cycles(model, code, warps=16, read=dict.fromkeys(range(10), 512.0))
    assert taken == pytest.approx(160 * 512 / model.cost("l2_bytes"), rel=0.1)


def test_a_barrier_waits_for_its_group_alone(model: Any) -> None:
    """With two groups both go on when their own warps have come."""
    from chain import BARRIER
    code = [("FADD", _control(1))] * 8 + [("BAR.SYNC", _control(1))]
    assert _cycles(model, code, warps=4, groups=2) == pytest.approx(9 + BARRIER, abs=3)


def test_a_step_waits_for_what_other_blocks_send(model: Any) -> None:
    """All bytes at the rate of the cluster, and the latency."""
    code = [("STAS.128", _control(1)), ("FADD", _control(1)), ("SYNCS", _control(1))]
    taken = _cycles(model, code, warps=8, sent=448.0, waits=2)
    assert taken == pytest.approx(8 * 448 / model.cost("cluster_bytes") + model.cost("exchange"),
                                  abs=20)
    assert _cycles(model, code, warps=8) < 60


def test_steps_may_differ(model: Any) -> None:
    """The mean of a short step and a long one."""
    kernel = _kernel(*[("FADD", _control(1))] * 30)
    taken = model.cycles_of_step(kernel, [range(10), range(30)], model.Load(1))
    from chain import TAKEN
    assert taken == 20 + TAKEN


def test_a_wait_for_the_step_before_costs_nothing(model: Any) -> None:
    """Where a step takes longer than what is sent in it needs to arrive."""
    work = [("FADD", _control(4))] * 200
    code = [("STAS.128", _control(1)), ("SYNCS", _control(1)), *work]
    alone, sent = _cycles(model, code, warps=4), {"warps": 4, "sent": 448.0, "waits": 1}
    needed = 4 * 448 / model.cost("cluster_bytes") + model.cost("exchange")
    assert needed < alone
    assert _cycles(model, code, **sent) == pytest.approx(alone + needed, abs=20)
    assert _cycles(model, code, behind=1, **sent) == pytest.approx(alone, abs=20)


def test_planted_bugs_are_there(model: Any) -> None:
    """What mutants.py replaces stands in the kernels as often as its table says."""
    import mutants
    for mutant in mutants.MUTANTS:
        text = (FOLDER.parent / "cuda" / mutant.file).read_text()
        assert mutants.mutated(mutant, text) != text
