"""Parameters: which writes of a recorded call to attributes can be repeated."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._core.torch_internals import without_dispatch_modes
from .functions import FLAGS, get_name, is_pointwise
from .ir import Refused
from .rewrite import make_assignment


class Parameters:
    """The attributes of a recording that take a gradient."""

    def __init__(self, recorder: Any) -> None:
        self.recorder, self.recording = recorder, recorder.recording
        self.detached: set[int] = set()  # values of attributes after detach_()
        self._leaves: dict[int, int] = {}  # by their values after all writes so far

    def find_leaf(self, value: int) -> int:
        """Returns the leaf whose later value this one is, else the value itself."""
        return self._leaves.get(value, value)

    def set_written(self, leaf: int, value: int) -> None:
        """Notes the value of a leaf after a write."""
        self._leaves.pop(self.recording.written.get(leaf, leaf), None)
        self._leaves[value] = leaf
        self.recording.written[leaf] = value

    def find(self, tensor: Tensor) -> Tensor | None:
        """Returns the attribute whose data a tensor is, and that takes a gradient."""
        memory = self.recorder.memory
        found: Tensor | None = memory.find_parameter(tensor)
        leaf = None if found is None else self.recording.leaves.get(
            self.find_leaf(memory.tensors[id(found)].value))
        return found if leaf is not None and leaf.kind == "attribute" else None

    def _is_detached(self, name: str, tensor: Tensor, before: int) -> bool:
        """Whether a call detaches an attribute, such as the state of the call before. A replay does
        not, so that other writes to it are refused."""
        if before in self.detached and name != "detach_":
            raise Refused(f"{name}: expected no write to an attribute after detach_()")
        leaf = self.recording.leaves.get(before)
        if leaf is None or leaf.kind == "input" or name != "detach_":
            return False
        if isinstance(tensor, nn.Parameter):
            raise Refused("detach_: expected no write to a parameter")
        self.detached.add(len(self.recording.kinds))  # the value that add makes
        return True

    def check_write(self, name: str, tensor: Tensor, before: int, args: Any,
                    parameter: Tensor | None) -> None:
        """Notes a write to a tensor, or to its parameter. Raises Refused."""
        start = self.find_leaf(before)
        is_flag = name in FLAGS and name != "detach_"
        leaf = self.recording.leaves.get(start if is_flag else before)
        if self._is_detached(name, tensor, before):
            return
        if leaf is not None and parameter is None and (
                leaf.kind == "input" or tensor.requires_grad or is_flag):
            what = "an input" if leaf.kind == "input" else "a parameter, nor of what has a gradient"
            raise Refused(f"{name}: expected no write to {what}")
        self.recorder.memory.check_write(name, tensor, args, parameter)
        if start in self.recording.leaves and parameter is None:
            self.set_written(start, len(self.recording.kinds))  # the value that add makes

    def copy_numbers(self, tensors: Sequence[Tensor]) -> None:
        """Keeps the numbers that parameters have before a call may write to them."""
        for one in tensors:
            parameter = self.find(one)
            if parameter is not None and not (parameter is one and torch.is_grad_enabled()):
                value = self.recorder.tensors[id(parameter)].value
                with without_dispatch_modes():
                    self.recording.numbers[value] = parameter.detach().clone()

    def assign(self, parameter: Tensor, old: int, numbers: int, line: str) -> None:
        """Notes that a parameter has other numbers."""
        calls, kinds = self.recording.calls, self.recording.kinds
        if any(old in call.inputs and call.mode.grad and get_name(call.function) not in (
                "data", "detach") for call in calls):
            raise Refused("expected no write to a parameter after calls that read it, whose "
                          "backward pass may read what was written")
        kinds[numbers] = kinds[numbers]._replace(requires_grad=False)
        new = self.recorder.add(parameter)
        calls.append(make_assignment(old, numbers, new, line))
        self.set_written(self.find_leaf(old), new)

    def set_data(self, parameter: Tensor, numbers: Tensor, line: str) -> None:
        """Notes parameter.data = numbers."""
        memory, kinds = self.recorder.memory, self.recording.kinds
        old, value = memory.tensors[id(parameter)].value, memory.tensors[id(numbers)].value
        if kinds[old][:3] != kinds[value][:3] or value in self.recording.leaves:
            raise Refused("data: expected a new tensor of the same shape, dtype and device")
        memory.check_write("data", numbers, (), parameter)
        call = self.recording.calls[-1]
        if value in call.outputs and is_pointwise(call) and not call.written:
            # its graph ends here: nothing may read this result any more
            self.recording.calls[-1] = call.replace(mode=call.mode._replace(grad=False))
            del self.recorder.tensors[id(numbers)]
        self.assign(parameter, old, value, line)
