"""Tensors of a module that torch.save has pickled whole, without running what the pickle asks for.

A pickle names functions and classes, and unpickling calls them, so a file can run any code;
torch.load(weights_only=True) refuses modules. This reader resolves six names. Functions of its own
rebuild tensors and parameters; an empty class marks a FloatStorage; a function that ignores its
arguments replaces torch.device; OrderedDict and set are Python's. Every other name becomes an
object without behaviour that takes no arguments. Both formats of torch.save are read, the old one
of pickles in a row and the zip archive, with tensors of float32.
"""
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

_MAGIC = 0x1950A86A20F9469CFC6C  # with which a file of the old format begins
_PROTOCOL = 1001
_SIZE = 4  # bytes of a number


class _Storages:
    """Numbers of tensors, by the key under which they lie in the file."""

    def __init__(self, largest: int) -> None:
        self.largest = largest  # numbers that the file has room for
        self.found: dict[str, Tensor] = {}

    def get(self, key: Any, numel: Any) -> Tensor:
        """Returns the storage of this key, uninitialized until `fill`."""
        if not isinstance(key, str) or type(numel) is not int or not 0 <= numel <= self.largest:
            raise ValueError(f"a storage of {numel!r} numbers in a file of {self.largest} at most")
        if key not in self.found:
            self.found[key] = torch.empty(numel)
        return self.found[key]

    def fill(self, key: str, data: bytes) -> None:
        """Gives a storage its numbers."""
        storage = self.found[key]
        if len(data) != _SIZE * len(storage):
            raise ValueError(f"{len(data)} bytes in place of {_SIZE * len(storage)}")
        if data:
            storage.copy_(torch.frombuffer(bytearray(data), dtype=torch.float32))


class _Reader(pickle.Unpickler):
    """One pickle of the file. The stand-ins are made for each anew, so that nothing a pickle sets
    on them outlives it."""

    def __init__(self, file: Any, storages: _Storages) -> None:
        super().__init__(file)
        self.storages = storages

        class Opaque:
            """Stands for all other classes and functions."""

            content: Any = None

            def __setstate__(self, state: Any) -> None:
                self.content = state

        def rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...],
                           stride: tuple[int, ...], requires_grad: bool, *rest: Any) -> Tensor:
            if type(storage) is not torch.Tensor:
                raise TypeError("a tensor without numbers")
            return storage.as_strided(size, stride, offset)

        def rebuild_parameter(data: Any, requires_grad: bool, *rest: Any) -> Any:
            return data

        class FloatStorage:
            """Marks storages of float32."""

        self.opaque: type[Any] = Opaque
        self.kind: type[Any] = FloatStorage
        self.allowed: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("torch", "FloatStorage"): FloatStorage,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "device"): lambda *names: None,
            ("__builtin__", "set"): set,  # as protocol 2 spells it
        }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name is resolved to."""
        return self.allowed.get((module, name), self.opaque)

    def persistent_load(self, pid: Any) -> Any:
        """Returns a storage, or the class of a module; the old format has it with its source."""
        if type(pid) is not tuple or not pid:
            raise TypeError("a pickle that torch.save has not written")
        if pid[0] == "module":
            return pid[1]
        if pid[0] != "storage" or pid[1] is not self.kind or any(pid[5:]):
            raise TypeError("numbers other than float32")
        return self.storages.get(pid[2], pid[4])


def _read_old(data: bytes, storages: _Storages) -> tuple[Any, _Reader]:
    file = io.BytesIO(data)
    for wanted in (_MAGIC, _PROTOCOL):
        if _Reader(file, storages).load() != wanted:
            raise ValueError("neither of torch.save's formats")
    if _Reader(file, storages).load()["little_endian"] is not True:
        raise ValueError("numbers whose highest byte comes first")
    reader = _Reader(file, storages)
    root = reader.load()
    for key in _Reader(file, storages).load():
        file.read(8)  # how many
        storages.fill(key, file.read(_SIZE * len(storages.found[key])))
    return root, reader


def _read_zip(data: bytes, storages: _Storages) -> tuple[Any, _Reader]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        folders = [name.removesuffix("data.pkl") for name in archive.namelist()
                   if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise ValueError("a zip archive that torch.save has not written")
        (folder,) = folders
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("an archive whose entries are compressed")
        order = folder + "byteorder"  # which early versions left out
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("numbers whose highest byte comes first")
        reader = _Reader(io.BytesIO(archive.read(folder + "data.pkl")), storages)
        root = reader.load()
        for key in storages.found:
            storages.fill(key, archive.read(f"{folder}data/{key}"))
    return root, reader


def _collect(module: Any, prefix: str, opaque: type[Any], found: dict[str, Tensor],
             seen: set[int]) -> None:
    """Adds parameters and buffers to `found`, by their names in a state dict."""
    if type(module) is not opaque or type(module.content) is not dict:
        raise TypeError(f"an object that is no module{' at ' if prefix else ''}{prefix[:-1]}")
    if id(module) in seen:  # or a few of them, inside each other, could have names without end
        raise ValueError(f"a module that occurs twice, at {prefix[:-1]}")
    seen.add(id(module))
    for kind in ("_parameters", "_buffers"):
        for name, value in dict(module.content.get(kind, {})).items():
            if isinstance(value, Tensor):
                found[prefix + name] = value.clone()
    for name, part in dict(module.content.get("_modules", {})).items():
        if part is not None:
            _collect(part, f"{prefix}{name}.", opaque, found, seen)


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Returns parameters and buffers of a pickled module, float32, by their names in a state dict.

    Args:
        data: the file.

    Raises:
        Exception: of any type, for a file that is not such a pickle.
    """
    storages = _Storages(math.ceil(len(data) / _SIZE))
    root, reader = (_read_zip if data[:4] == b"PK\x03\x04" else _read_old)(data, storages)
    found: dict[str, Tensor] = {}
    _collect(root, "", reader.opaque, found, set())
    return found
