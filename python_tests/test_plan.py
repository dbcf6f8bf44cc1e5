"""_C.plan: which CUDA kernels would run a layer, and why. The policy needs no GPU."""
from typing import Any

import pytest

from lsnn_ext import _ops

if _ops._C is None:
    pytest.skip("the compiled part is missing", allow_module_level=True)


def plan(*sizes: int, design: str = "automatic", **given: Any) -> dict[str, Any]:
    """_C.plan, whatever design the environment names."""
    options = _ops.Options(design=_ops._C.designs.index(design))
    found: dict[str, Any] = _ops._C.plan(*sizes, **given, options=list(options))
    return found


def designs(*sizes: int, **options: Any) -> tuple[str, str]:
    chosen = plan(*sizes, **options)
    return chosen["forward"]["design"], chosen["backward"]["design"]


@pytest.mark.parametrize(("device", "largest"), [("h100", 236), ("a100", 200), ("rtx4090", 152)])
def test_block_takes_what_shared_memory_holds(device: str, largest: int) -> None:
    """A matrix of float32 weights, and a little beside it, for one item of the batch at a time."""
    for N, possible in ((largest, True), (largest + 1, False)):
        why = plan(100, 1, N, device=device)["backward"]["considered"]["block"]
        assert isinstance(why, float) == possible, why
    assert "bytes of shared memory" in str(why)


def test_half_the_weight_is_room_for_more_neurons() -> None:
    wide = plan(100, 1, 320, device="h100")["forward"]["considered"]["block"]
    narrow = plan(100, 1, 320, device="h100", weights="bfloat16")["forward"]["considered"]["block"]
    assert isinstance(wide, str) and isinstance(narrow, float)


def test_paper_s_layer_on_h100() -> None:
    chosen = plan(784, 256, 220, device="h100")
    for direction in ("forward", "backward"):
        launch = chosen[direction]
        assert (
            launch["design"] == "block"
            and launch["blocks"] == 128
            and launch["items of a block"] == 2
        )
        assert launch["shared memory"] <= chosen["device"]["shared memory"]
        assert launch["threads of an item"] % 32 == 0


def test_choice_follows_size_and_activity() -> None:
    assert designs(1000, 256, 512, device="h100") == ("cluster", "cluster")
    assert designs(1000, 128, 1024, device="h100") == ("gather", "step")
    assert designs(1000, 256, 512, device="a100") == ("gather", "step")  # no clusters there
    assert designs(1000, 128, 2048, device="h100", spikes=0.5)[0] == "step"
    assert designs(1000, 128, 1024, device="h100", active=0.01)[1] == "gather"
    assert designs(10, 4, 20000, device="h100") == ("step", "step")


def test_every_layer_has_kernels() -> None:
    for N in (1, 31, 33, 237, 1025, 9000):
        for delays in ([0], [5], [0, 1, 40], list(range(300))):
            for dtype in ("float32", "float64"):
                for device in ("t4", "h100"):
                    assert len(designs(50, 3, N, delays=delays, dtype=dtype, device=device)) == 2


def test_asked_design() -> None:
    for name in ("block", "gather", "cluster", "step"):
        assert designs(10, 4, 128, device="h100", design=name) == (name, name)
        assert plan(10, 4, 128, device="h100", design=name)["requested"] == name
    assert plan(10, 4, 128, device="h100")["requested"] is None
    with pytest.raises(ValueError, match="the design 'block' cannot run 2000 neurons, .*: a block "
                                         "owns 1536"):
        plan(10, 4, 2000, device="h100", design="block")
    with pytest.raises(ValueError, match="no clusters"):
        plan(10, 4, 128, device="a100", design="cluster")


@pytest.mark.parametrize(("options", "message"), [
    ({"N": 0}, "1 to 65535 neurons, got 10, 2 and 0"), ({"B": -1}, "T, B, N: expected 0 to"),
    ({"delays": []}, "delays: expected ascending"),
    ({"delays": [2, 2]}, "delays: expected ascending"),
    ({"device": "h1000"}, "device: expected one of .*h100.* got 'h1000'"),
    ({"dtype": "float16"}, "dtype, weights: expected float32"),
    ({"dtype": "float64", "weights": "bfloat16"}, "dtype, weights: expected float32"),
])
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**{"T": 10, "B": 2, "N": 20, "device": "h100", **options})
