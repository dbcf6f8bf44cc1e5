"""Two processes train as one: DDP, FSDP2, accelerate and Lightning; DEEP R rewires both alike."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lsnn_ext
from lsnn_ext.optim import DeepR
from operator_calls import needs_compiled

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch was built without gloo", allow_module_level=True)
from distributed_worker import leave  # noqa: E402

SUPPORT = Path(__file__).parents[1] / "support"


@needs_compiled
@pytest.mark.parametrize("how", ["ddp", "fsdp", "fsdp_steps", "accelerate", "lightning"])
def test_two_processes_train_as_one(how: str) -> None:
    if how in ("accelerate", "lightning") and importlib.util.find_spec(how) is None:
        pytest.skip(f"{how} is not installed")
    path = os.pathsep.join([str(Path(lsnn_ext.__file__).parents[1]),
                            os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         str(SUPPORT / "distributed_worker.py"), how],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-4000:]
    for rank in (0, 1):
        assert f"{how} of process {rank}: as one process alone" in ran.stdout


# ----------------------------------------------------------------------------------------- DEEP R
STEPS, B = 40, 4


class _Net(nn.Module):
    """Linear in both weights: gradients of inputs of few bits are exact in any order."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(6, 8, generator=random))
        self.b = nn.Parameter(torch.randn(5, 8, generator=random))
        self.b.data[:3] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.a.t()).sum(-1) + (x.abs() @ self.b.t()) @ torch.arange(-2.0, 3.0)


def _made(net: nn.Module, seed: int) -> DeepR:
    torch.manual_seed(seed)
    return DeepR.of(net, torch.optim.Adam, 0.4, lr=0.05, l1=0.1, temperature=1e-4)


def _train(net: nn.Module, tuned: DeepR, share: slice, steps: range) -> int:
    """share: of the two halves of each batch; how many connections were made."""
    made = 0
    for step in steps:
        x = torch.randint(-8, 9, (2, B, 8), generator=torch.Generator().manual_seed(step)) / 8
        tuned.zero_grad()
        net(x[share].flatten(0, 1)).mean().backward()
        tuned.step()
        made += tuned.rewired
    return made


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting",
                                         rank=rank, world_size=2)
    share = slice(rank, rank + 1)
    net = DistributedDataParallel(_Net(rank))
    tuned = _made(net, seed=10 + rank)  # of itself each rank would draw other signs
    _train(net, tuned, share, range(STEPS // 2))
    weights, state = net.module.state_dict(), tuned.state_dict()
    if rank:  # one that has lost its way takes what rank 0 has
        state["deep_r"]["generator"] = torch.Generator().manual_seed(9).get_state()
    again = DistributedDataParallel(_Net(5 + rank))
    tuned = _made(again, seed=20 + rank)
    again.module.load_state_dict(weights)
    tuned.load_state_dict(state)
    _train(again, tuned, share, range(STEPS // 2, STEPS))
    torch.save(again.module.state_dict(), f"{folder}/{rank}.pt")
    leave()


def test_two_processes_rewire_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    one = _Net(0)
    assert _train(one, _made(one, seed=10), slice(0, 2), range(STEPS)) > 20
    for name, weight in one.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], weight), name
