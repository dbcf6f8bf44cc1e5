"""Memory of a pass: which tensors are alive when it is largest, and how much a device has."""
import weakref
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .._core.torch_internals import ObservingMode, find_storage, find_tensors

OTHERS = "results and gradients"
SCRATCH = "scratch memory of the kernels"


class Part(NamedTuple):
    bytes: int
    shape: tuple[int, ...]
    owner: str  # what needs it
    is_free: bool = False  # it lies in the cache of blocks, for reuse


class LiveMemory(ObservingMode):
    """Sees the storages that are alive after each operator; peak: those at the largest sum, and
    the cache of blocks, in which the memory lies that the kernels have freed.

    Storages of the tensors `known` do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak: list[Part] = []
        self.saved: dict[int, int] = {}  # bytes of the storages that autograd keeps, by key
        self.owners: dict[int, str] = {}
        self._most = self._now = 0  # bytes
        self._freed: dict[str, int] = {}  # bytes of blocks that were tensors, by owner
        self._live: dict[int, tuple[Any, Part, bool]] = {}  # by key; is a block of our cache
        self._known = {find_storage(one): one.untyped_storage() for one in known}

    def pack(self, tensor: Tensor) -> Tensor:
        """As of torch.autograd.graph.saved_tensors_hooks."""
        if find_storage(tensor) not in self._known:
            self.saved[find_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def __enter__(self) -> "LiveMemory":
        _ops._C.empty_cache()
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in find_tensors(out):
            if tensor.layout != torch.strided:
                continue
            key, storage = find_storage(tensor), tensor.untyped_storage()
            if key not in self._live and key not in self._known and storage.nbytes():
                self._live[key] = (weakref.ref(storage, partial(self._forget, key)),
                                   Part(storage.nbytes(), tuple(tensor.shape), OTHERS),
                                   func.namespace == "lsnn")
                self._now += storage.nbytes()
        cached = _ops._C.cached_bytes()
        if self._now + cached > self._most:
            self._most, freed = self._now + cached, sum(self._freed.values())
            self.peak = [part._replace(owner=self.owners.get(key, OTHERS))
                         for key, (_, part, _) in self._live.items()]
            self.peak += [Part(size * min(cached, freed) // freed, (), owner, True)
                          for owner, size in self._freed.items()]
            self.peak.append(Part(max(0, cached - freed), (), SCRATCH))
        return out

    def _forget(self, key: int, _: object) -> None:
        _, part, is_block = self._live.pop(key)
        self._now -= part.bytes
        owner = self.owners.pop(key, OTHERS)
        if is_block:
            self._freed[owner] = self._freed.get(owner, 0) + part.bytes
        self.saved.pop(key, None)


def available_bytes(device: torch.device) -> float:
    """Memory that is free on a device; infinite if the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = float("inf")
    try:
        text = Path("/proc/meminfo").read_text()
        free = 1024.0 * next(int(line.split()[1]) for line in text.splitlines()
                             if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, float(limit) - float((group / "memory.current").read_text()))
    except (OSError, StopIteration):
        pass
    return free
