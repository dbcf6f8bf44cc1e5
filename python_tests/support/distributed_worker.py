"""Trains on half of a batch in each of two processes, and on all of it in one."""
import copy
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from lsnn_ext import ALIF, LSNN

STEPS, HALF = 3, 2


class Net(nn.Module):
    """Time constants of each neuron learn: fully_shard takes no single numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ALIF(5, 8, 2, tau_mem=torch.full((8,), 20.0), learn=("tau_mem",))
        self.second = LSNN(8, 4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[0])[0]


def trained(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer,
            backward: Callable[[Tensor], None] = torch.Tensor.backward) -> None:
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward(net(x).square().mean())
        optimizer.step()


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=1.0)


def ddp(net: Net, mine: Tensor) -> nn.Module:
    trained(DistributedDataParallel(net), mine, sgd(net))
    return net


def fsdp(net: Net, mine: Tensor) -> nn.Module:
    for part in (net.first, net.second, net):
        fully_shard(part)
    assert net.first.weight_hh_l0.to_local().shape == (4, 8)
    trained(net, mine, sgd(net))
    return net


def fsdp_steps(net: Net, mine: Tensor) -> nn.Module:
    """Single steps: FSDP is told of every method that is called in place of forward."""
    fully_shard(net.first)
    register_fsdp_forward_method(net.first, "step")
    state, steps = None, []
    for x in mine:
        spikes, state = net.first.step(x, state)
        steps.append(spikes)
    (torch.stack(steps).square().mean()).backward()
    return net


def accelerate(net: Net, mine: Tensor) -> nn.Module:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    optimizer = sgd(net)
    wrapped, prepared = accelerator.prepare(net, optimizer)
    trained(wrapped, mine, prepared, accelerator.backward)
    return net


def lightning(net: Net, mine: Tensor) -> nn.Module:
    import lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return self.net(batch[0].transpose(0, 1)).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.net)

    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=STEPS,
                         logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, use_distributed_sampler=False)
    trainer.fit(Module(), DataLoader(TensorDataset(mine.transpose(0, 1)), batch_size=HALF))
    return net


def leave() -> NoReturn:
    """Ends this process, whose work has succeeded.

    DDP, fully_shard and what torch loads with its first optimizer hold groups of gloo beyond
    destroy_process_group. When their threads are joined late, torch now and then aborts, or waits
    forever for a thread that waits for the GIL.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)


def main(how: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(20, 2 * HALF, 5)
    alone, first = copy.deepcopy(net), copy.deepcopy(net)
    if how not in ("accelerate", "lightning"):
        dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    mine = x[:, HALF * rank : HALF * (rank + 1)]
    ways = {f.__name__: f for f in (ddp, fsdp, fsdp_steps, accelerate, lightning)}
    together = ways[how](net, mine)
    if how == "fsdp_steps":
        alone.first(x)[0].square().mean().backward()
        pairs = [(name, p.grad.full_tensor(), q.grad, torch.zeros_like(q))
                 for (name, p), q in zip(together.first.named_parameters(),
                                         alone.first.parameters(), strict=True)]
    else:
        trained(alone, x, sgd(alone))
        pairs = [(name, p.full_tensor() if hasattr(p, "full_tensor") else p.detach(), q, start)
                 for (name, p), q, start in zip(together.named_parameters(), alone.parameters(),
                                                first.parameters(), strict=True)]
    for name, got, want, before in pairs:
        assert not torch.equal(want, before), f"{name} has not learned"
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    print(f"{how} of process {rank}: as one process alone", flush=True)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
