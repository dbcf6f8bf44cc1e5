"""Assignments: writes to parameters and buffers, which have other numbers after the call."""
from typing import Any

from torch import Tensor

from .functions import FLAGS, find_line, get_name
from .ir import Refused
from .rewrite import make_assignment


class Assignments:
    """The writes of a recording to attributes of the model."""

    def __init__(self, recorder: Any) -> None:
        self.recorder, self.recording = recorder, recorder.recording

    def find_leaf(self, value: int) -> int:
        """Returns the leaf whose later value this one is, else the value itself."""
        return next((leaf for leaf, now in self.recording.written.items() if now == value), value)

    def find_parameter(self, tensor: Tensor) -> Tensor | None:
        """Returns the attribute whose data a tensor is, and that takes a gradient."""
        found = self.recorder.memory.find_parameter(tensor)
        leaf = None if found is None else self.recording.leaves.get(
            self.find_leaf(self.recorder.tensors[id(found)].value))
        return found if leaf is not None and leaf.kind == "attribute" else None

    def assign(self, parameter: Tensor, old: int, numbers: int) -> None:
        """Notes that a parameter has other numbers."""
        kinds = self.recording.kinds
        if any(old in call.inputs and call.mode.grad and get_name(call.function) not in (
                "data", "detach") for call in self.recording.calls):
            raise Refused("expected no write to a parameter after calls that read it, whose "
                          "backward pass may read what was written")
        kinds[numbers] = kinds[numbers]._replace(requires_grad=False)
        new = self.recorder.add(parameter)
        self.recording.calls.append(make_assignment(old, numbers, new, find_line()))
        self.recording.written[self.find_leaf(old)] = new

    def set_data(self, parameter: Tensor, numbers: Tensor) -> None:
        """Notes parameter.data = numbers."""
        tensors = self.recorder.tensors
        old, value = tensors[id(parameter)].value, tensors[id(numbers)].value
        if self.recording.kinds[old][:3] != self.recording.kinds[value][:3] or (
                value in self.recording.leaves):
            raise Refused("data: expected a new tensor of the same shape, dtype and device")
        self.recorder.memory.check_write("data", numbers, (), parameter)
        self.assign(parameter, old, value)

    def check_write(self, name: str, tensor: Tensor, before: int, args: Any,
                    parameter: Tensor | None) -> None:
        """Notes a write to a tensor, which had the value `before`. Raises Refused."""
        leaf = self.recording.leaves.get(before)
        is_flag = name in FLAGS
        if leaf is not None and leaf.kind != "input" and name == "detach_":
            return  # such as of the state of the call before
        if leaf is not None and parameter is None and (
                leaf.kind == "input" or tensor.requires_grad or is_flag):
            what = "an input" if leaf.kind == "input" else "a parameter"
            raise Refused(f"{name}: expected no write to {what}")
        if not is_flag:
            self.recorder.memory.check_write(name, tensor, args, parameter)
        start = self.find_leaf(before)
        if start in self.recording.leaves and parameter is None:
            self.recording.written[start] = len(self.recording.kinds)  # that of the next tensor
