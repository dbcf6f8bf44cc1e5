"""Two processes train a network as one does alone: DDP, FSDP2, accelerate and Lightning."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from operator_calls import needs_compiled

SUPPORT = Path(__file__).parents[1] / "support"
pytestmark = [needs_compiled,
              pytest.mark.skipif(not torch.distributed.is_available()
                                 or not torch.distributed.is_gloo_available(),
                                 reason="this torch was built without gloo")]


@pytest.mark.parametrize("how", ["ddp", "fsdp", "fsdp_steps", "accelerate", "lightning"])
def test_two_processes_train_as_one(how: str) -> None:
    if how in ("accelerate", "lightning") and importlib.util.find_spec(how) is None:
        pytest.skip(f"{how} is not installed")
    import lsnn_ext

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
