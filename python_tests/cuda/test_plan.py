"""_C.plan: which CUDA kernels would run a layer, and why. The policy needs no GPU."""
import re
from pathlib import Path
from typing import Any

import pytest

from lsnn_ext import _ops

pytest.importorskip("bench", reason="bench/ is not beside these tests")
from bench.gpu.costs import STAND_FOR, main  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

if _ops._C is None:
    pytest.skip("the compiled part is missing", allow_module_level=True)


def plan(*sizes: int, design: str = "automatic", kernels: str = "automatic",
         **given: Any) -> dict[str, Any]:
    """_C.plan, whatever the environment names."""
    options = _ops.Options(design=_ops._C.designs.index(design),
                           kernels=_ops._C.kernels.index(kernels))
    return _ops._C.plan(*sizes, **given, options=list(options))


PAPER: dict[str, Any] = {"T": 784, "B": 256, "N": 220, "device": "h100"}


def assert_refused(name: str, sizes: dict[str, Any], changes: list[tuple[dict[str, Any], str]],
                   ) -> None:
    """Each change is why the backward pass does not run by this route."""
    for changed, why in changes:
        assert plan(**sizes | changed)["backward"]["considered"][name].startswith(why)


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


def test_paper_s_layer_on_h100() -> None:
    chosen = plan(784, 256, 220, device="h100")
    for direction, design, items in (("forward", "block", 2), ("backward", "cluster", 8)):
        launch = chosen[direction]
        assert (launch["design"], launch["items of a block"]) == (design, items)
        assert launch["blocks"] == 128
        assert launch["shared memory"] <= chosen["device"]["shared memory"]
        assert launch["threads of an item"] % 32 == 0


def test_the_paper_s_kernel_runs_where_it_can() -> None:
    """The forward pass of lsnn with one delay in float32; it says why not elsewhere."""
    chosen = plan(**PAPER)["forward"]
    costs = chosen["considered"]
    assert chosen["kernels"] == "lsnn" and chosen["threads of an item"] == 64
    assert costs["lsnn"] < costs["block"]
    assert chosen["why"].startswith("lowest cost by the formulas, "
                                    f"{int(costs['lsnn'])} before lsnn, gather with "
                                    f"{int(costs['lsnn, gather'])}, "
                                    f"block with {int(costs['block'])}")
    assert chosen["shared memory"] <= 227 << 10
    assert plan(**PAPER, delays=[4])["forward"]["kernels"] == "lsnn"
    asked = plan(**PAPER, design="block")["forward"]
    assert asked["kernels"] == "lsnn" and asked["why"] == "its design was requested"
    for changed, why in [
        ({"kernels": "general"}, "the general kernels were requested"),
        ({"model": "eprop"}, "it requires the model lsnn with binary spikes"),
        ({"smooth": True}, "it requires the model lsnn with binary spikes"),
        ({"dtype": "float64", "N": 100}, "it requires float32 numbers"),
        ({"delays": [0, 3]}, "it requires one delay for all synapses"),
        ({"device": "t4", "N": 100}, "it requires compute capability 8.0"),
        ({"N": 257}, "its warps hold at most 256 neurons"),
        ({"N": 240}, "a block needs ")]:
        launch = plan(**PAPER | changed)["forward"]
        in_gather = changed.keys() == {"N"}  # rows in main memory take more neurons
        assert launch["kernels"] == ("lsnn" if in_gather else "general")
        assert launch["design"] == "gather" or not in_gather
        assert launch["considered"]["lsnn"].startswith(why)
    for design in ("gather", "cluster", "step"):
        asked = plan(**PAPER, design=design)["forward"]
        assert asked["kernels"] == ("general" if design == "step" else "lsnn")
    with pytest.raises(ValueError, match="model: expected a model of the table, got 'a'"):
        plan(**PAPER, model="a")


def test_the_paper_s_kernel_with_rows_in_main_memory() -> None:
    """Forwards, where no block holds them: a warp for 128 neurons."""
    for N, threads in ((256, 64), (300, 96), (512, 128)):
        launch = plan(1000, 256, N, device="h100")["forward"]
        costs = launch["considered"]
        assert (launch["design"], launch["kernels"]) == ("gather", "lsnn")
        assert launch["threads of an item"] == threads and launch["items of a block"] == 2
        assert costs["lsnn, gather"] < costs["gather"]
        assert f"{int(costs['lsnn, gather'])} before " in launch["why"]
    why = plan(1000, 256, 513, device="a100")["forward"]["considered"]["lsnn, gather"]
    assert why == "its warps hold at most 512 neurons"


@pytest.mark.parametrize(("options", "why"), [
    ({}, ""),
    ({"device": "a100", "model": "srnn", "delays": [3]}, ""),
    ({"device": "t4"}, "compute capability 8.0"),
    ({"dtype": "float64"}, "they require float32 numbers"),
    ({"delays": [0, 3]}, "one delay"),
    ({"smooth": True}, "binary spikes"),
    ({"kernels": "general"}, "general kernels were requested")])
def test_tensor_cores_make_the_weight_gradient_where_they_can(options: dict[str, Any],
                                                              why: str) -> None:
    chosen = plan(784, 256, 220, **{"device": "h100", **options})["weight gradient"]
    assert chosen["kernels"] == ("events" if why else "tensor cores")
    assert why in chosen["why"]
    assert 1 <= chosen["slices"] and chosen["tiles"] * chosen["slices"] <= 132
    assert chosen["tiles"] * chosen["rows"] * chosen["columns"] >= 220 * 220


def test_the_paper_s_kernel_runs_backwards_where_it_can() -> None:
    """As forwards; a lane owns a neuron, so that 220 of them are seven warps."""
    chosen = plan(**PAPER, kernels="rows")["backward"]
    assert chosen["considered"]["lsnn, matrices"] == "rows of active neurons were requested"
    assert chosen["kernels"] == "lsnn" and chosen["threads of an item"] == 224
    assert chosen["items of a block"] == 2 and chosen["shared memory"] <= 227 << 10
    for changed in ({"kernels": "general"}, {"delays": [0, 3]}, {"N": 600}, {"design": "gather"}):
        assert plan(**PAPER | changed)["backward"]["kernels"] == "general"


def test_choice_follows_size_and_activity() -> None:
    # forwards in two rounds, which cost more than rows from the second level cache
    assert designs(1000, 256, 512, device="h100") == ("gather", "cluster")
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
        forward = "block" if name == "cluster" else name  # clusters only run backward
        assert designs(10, 4, 128, device="h100", design=name) == (forward, name)
        assert plan(10, 4, 128, device="h100", design=name)["requested"] == name
    assert plan(10, 4, 128, device="h100")["requested"] is None
    with pytest.raises(ValueError, match="design: expected one that can run 2000 neurons .*, got "
                                         "'block': a block holds at most 1536"):
        plan(10, 4, 2000, device="h100", design="block")
    with pytest.raises(ValueError, match="no clusters"):
        plan(10, 4, 128, device="a100", design="cluster")


@pytest.mark.parametrize(("options", "message"), [
    ({"N": 0}, "1 to 65535 neurons, got 10, 2 and 0"), ({"B": -1}, "T, B, N: expected 0 to"),
    ({"delays": []}, r"delays: expected ascending numbers >= 0, got \(\)"),
    ({"delays": [2, 2]}, r"delays: expected ascending .*, got \(2, 2\)"),
    ({"device": "h1000"}, "device: expected one of .*h100.* got 'h1000'"),
    ({"dtype": "float16"}, "dtype: expected float32 or float64, got 'float16'")])
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**{"T": 10, "B": 2, "N": 20, "device": "h100", **options})


@pytest.mark.parametrize("bf16_parts", [2, 1])
def test_matrices_where_products_may_round(bf16_parts: int) -> None:
    """Eight items at a time: a factor is one bfloat16 number, or two."""
    sizes: dict[str, Any] = {"T": 1000, "B": 256, "N": 512, "device": "h100",
                             "bf16_parts": bf16_parts}
    chosen = plan(**sizes)
    launch, costs = chosen["backward"], chosen["backward"]["considered"]
    assert (launch["design"], launch["kernels"]) == ("cluster", "lsnn")
    assert launch["items of a block"] == 8 and launch["threads of an item"] == 64
    assert launch["blocks of a cluster"] == 8 and launch["blocks"] == 128
    assert launch["shared memory"] <= 227 << 10
    assert costs["lsnn, matrices"] < costs["cluster"]
    assert f"{int(costs['lsnn, matrices'])} before " in launch["why"]
    assert chosen["weight gradient"]["bfloat16 numbers"] == bf16_parts
    assert plan(**sizes | {"B": 0})["backward"]["blocks"] == 0
    assert_refused("lsnn, matrices", sizes, [
        ({"device": "a100"}, "the GPU has no clusters"),
        ({"kernels": "general"}, "the general kernels were requested"),
        ({"N": 513}, "its warps hold at most 512 neurons"),
        ({"N": 20}, "a cluster needs at least two words"), ({"delays": [40]}, "a block needs "),
        ({"clusters": [0, 0, 0]}, "the GPU has no room for a cluster of 8")])
    asked = plan(**sizes | {"N": 220}, kernels="matrices", design="cluster")["backward"]
    assert asked["items of a block"] == 8 and asked["why"] == "matrices were requested"
    with pytest.raises(ValueError, match="bf16_parts: expected 0, 1 or 2, got 3"):
        plan(**sizes | {"bf16_parts": 3})


def test_matrices_that_round_nothing() -> None:
    """Three bfloat16 numbers are a float, so that nobody has to allow it."""
    chosen = plan(**PAPER)
    launch, costs = chosen["backward"], chosen["backward"]["considered"]
    assert (launch["design"], launch["kernels"]) == ("cluster", "lsnn")
    assert launch["blocks of a cluster"] == 4 and launch["blocks"] == 128
    assert costs["lsnn, matrices"] < costs["lsnn"] < costs["block"]
    assert chosen["weight gradient"]["bfloat16 numbers"] == 3
    rounded = plan(**PAPER, bf16_parts=2)["backward"]["considered"]["lsnn, matrices"]
    assert rounded < costs["lsnn, matrices"]
    assert plan(**PAPER | {"B": 1000})["backward"]["considered"]["lsnn, matrices"] == (
        4 * costs["lsnn, matrices"])
    assert isinstance(plan(**PAPER | {"N": 448})["backward"]["considered"]["lsnn, matrices"], float)
    assert_refused("lsnn, matrices", PAPER, [({"N": 449}, "its warps hold at most 448 neurons"),
                                             ({"delays": [40]}, "a block needs ")])


@pytest.mark.parametrize("bf16_parts", [1, 2])
def test_matrices_in_a_block(bf16_parts: int) -> None:
    """Where registers hold the weights, two items go through the steps together in a block."""
    sizes = {**PAPER, "bf16_parts": bf16_parts, "clusters": [0, 0, 0]}
    name, launch = "lsnn, matrices in a block", plan(**sizes)["backward"]
    costs = launch["considered"]
    assert (launch["design"], launch["kernels"]) == ("block", "lsnn")
    assert (launch["items of a block"], launch["threads of an item"], launch["blocks"]) == (
        2, 224, 128)
    assert costs[name] < costs["lsnn"] < costs["block"]
    assert f"{int(costs[name])} before " in launch["why"]
    assert plan(**sizes | {"B": 1000})["backward"]["considered"][name] == 4 * costs[name]
    assert plan(**sizes | {"B": 0})["backward"]["blocks"] == 0
    # Where a block has room for many items, rows of active neurons cost less.
    many = plan(**sizes | {"N": 64, "B": 4096})["backward"]["considered"]
    assert many["lsnn"] < many[name]
    assert_refused(name, sizes, [
        ({"N": 225}, "its warps hold at most 224 neurons"),
        ({"bf16_parts": 0}, "it rounds products to bfloat16"),
        ({"kernels": "general"}, "the general kernels were requested"),
        ({"device": "t4"}, "it requires compute capability 8.0"),
        ({"delays": [400]}, "a block needs ")])
    for device in ("a100", "rtx4090"):  # without clusters it is the fastest by the formulas
        there = plan(784, 64, 128, device=device, bf16_parts=bf16_parts)["backward"]
        found = [cost for cost in there["considered"].values() if isinstance(cost, float)]
        assert there["kernels"] == "lsnn" and there["considered"][name] == min(found)
    asked = plan(**sizes, kernels="matrices", design="block")["backward"]
    assert asked["items of a block"] == 2 and asked["why"] == "matrices were requested"
    assert asked["considered"]["lsnn"] == "matrices were requested"


def test_the_plan_says_why() -> None:
    chosen = plan(1000, 256, 512, device="h100")
    for direction in ("forward", "backward"):
        launch = chosen[direction]
        least = launch["considered"][launch["route"]]
        others = [cost for cost in launch["considered"].values() if isinstance(cost, float)]
        assert least == min(others)
        assert launch["why"].startswith(f"lowest cost by the formulas, {int(least)} before")
        assert "not block: a block needs" in launch["why"]
    assert plan(10, 4, 128, device="h100", design="step")["forward"]["why"] == "it was requested"


def test_clusters_are_as_many_as_the_runtime_says() -> None:
    """Where parts of the GPU hold fewer clusters than it has SMs for, and where they hold none."""
    few = plan(1000, 256, 512, device="h100", clusters=[60, 30, 14], design="cluster")
    assert few["device"]["clusters at once"] == {2: 60, 4: 30, 8: 14}
    assert few["backward"]["blocks of a cluster"] == 8 and few["backward"]["blocks"] == 8 * 14
    assert plan(1000, 256, 512, device="h100")["backward"]["blocks"] == 8 * 16
    none = plan(1000, 256, 512, device="h100", clusters=[0, 0, 0])
    assert none["backward"]["design"] in ("gather", "step")
    assert "no room for a cluster" in none["backward"]["considered"]["cluster"]
    assert "cluster" not in none["forward"]["considered"]
    with pytest.raises(ValueError, match="no room for a cluster"):
        plan(1000, 256, 512, device="h100", clusters=[0, 0, 0], design="cluster")
    with pytest.raises(ValueError, match="clusters: expected at most 3 numbers, .*, got 4"):
        plan(10, 2, 20, device="h100", clusters=[1, 2, 3, 4])


@pytest.mark.parametrize("bf16_parts", [0, 2, 1])
@pytest.mark.parametrize(("N", "B", "ranks"), [(220, 256, 4), (220, 512, 4), (448, 128, 8),
                                               (512, 256, 8)])
@pytest.mark.parametrize("clusters", [[66, 32, 16], [62, 31, 15], [30, 7, 3], [2, 1, 1], [1, 1, 0],
                                      [0, 0, 0]])
def test_the_plan_counts_rounds_of_the_clusters_that_fit(
        bf16_parts: int, N: int, B: int, ranks: int, clusters: list[int]) -> None:
    """Boards differ in the clusters that fit at once. Less room costs more rounds of the kernels in
    clusters, never more blocks than fit, and the cheapest of what is left is chosen."""
    name, sizes = "lsnn, matrices", {"device": "h100", "bf16_parts": bf16_parts}
    chosen = plan(784, B, N, clusters=clusters, **sizes)["backward"]
    room, considered = clusters[ranks.bit_length() - 2], chosen["considered"]
    if N > 448 and not bf16_parts:
        assert "at most 448 neurons" in considered[name]
    elif room:
        items, many = 8, plan(784, B, N, clusters=[66, 32, 16], **sizes)["backward"]
        rounds = [-(-B // (items * teams)) for teams in (room, 128 // ranks)]
        per_round = [cost / n for cost, n in zip(
            (considered[name], many["considered"][name]), rounds, strict=True)]
        assert per_round[0] == pytest.approx(per_round[1])
    else:
        assert f"no room for a cluster of {ranks} blocks" in considered[name]
    if chosen["design"] == "cluster":
        of = chosen["blocks of a cluster"]
        assert 0 < chosen["blocks"] <= of * clusters[of.bit_length() - 2]
    costs = [cost for cost in considered.values() if isinstance(cost, float)]
    assert chosen["why"].startswith(f"lowest cost by the formulas, {int(min(costs))} ")


def test_costs_beside_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = _ops._C.costs()
    assert set(STAND_FOR) <= set(costs) and all(number > 0 for number, *_ in costs.values())
    source = "".join(path.read_text() for path in (ROOT / "bench" / "gpu").glob("primitives*"))
    for name, pattern in STAND_FOR.values():
        texts = re.split(r"\d+", pattern.strip("^$"))
        assert f'"{name}"' in source and all(text in source for text in texts)
    measured, exchange = tmp_path / "primitives.csv", "counted exchange in cluster"
    head = "primitive,parameter,value,unit\n"
    measured.write_text(head + "L2 gather,2048-byte rows of 512 256 threads,30,B/clk/SM\n"
                        "L2 gather,2048-byte rows of 512 512 threads,40,B/clk/SM\n"
                        f'{exchange},"1 parts, lag 1, work 0, 1 clusters",300,cycles\n'
                        f'{exchange},"1 parts, lag 0, work 0, 1 clusters",500,cycles\n'
                        f'{exchange},"1 parts, lag 0, work 0, 1 clusters",350,ns\n')
    assert main([str(measured)]) == 0
    said = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert "| 40 of 2 |" in said["l2_bytes"] and "| 500 of 1 |" in said["exchange"]
    assert "of" not in said["forward_step"].split("|")[4]
    measured.write_text(head)
    assert main([str(measured)]) == 1


def test_no_other_place_has_numbers_of_the_formulas() -> None:
    """A number in the formulas of the plan would be a second source of costs."""
    code = re.sub(r"//.*", "", (ROOT / "csrc" / "cuda" / "costs.cpp").read_text())
    numbers = {float(number) for number in re.findall(r"(?<![\w.])\d+\.?\d*", code)}
    assert "costs.forward_step" in code and numbers == {0, 1, 2}  # 2: of n (n + 1) / 2
