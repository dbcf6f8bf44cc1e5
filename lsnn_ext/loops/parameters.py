"""Parameters: attributes with a gradient to whose data a recorded call writes."""
from typing import Any

from torch import Tensor

from .functions import get_name
from .ir import Refused
from .rewrite import make_assignment


class Parameters:
    """The attributes of a recording that take a gradient."""

    def __init__(self, recorder: Any) -> None:
        self.recorder, self.recording = recorder, recorder.recording

    def find_leaf(self, value: int) -> int:
        """Returns the leaf whose later value this one is, else the value itself."""
        return next((leaf for leaf, now in self.recording.written.items() if now == value), value)

    def find(self, tensor: Tensor) -> Tensor | None:
        """Returns the attribute whose data a tensor is, and that takes a gradient."""
        memory = self.recorder.memory
        found: Tensor | None = memory.find_parameter(tensor)
        leaf = None if found is None else self.recording.leaves.get(
            self.find_leaf(memory.tensors[id(found)].value))
        return found if leaf is not None and leaf.kind == "attribute" else None

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
        self.recording.written[self.find_leaf(old)] = new

    def set_data(self, parameter: Tensor, numbers: Tensor, line: str) -> None:
        """Notes parameter.data = numbers."""
        memory, kinds = self.recorder.memory, self.recording.kinds
        old, value = memory.tensors[id(parameter)].value, memory.tensors[id(numbers)].value
        if kinds[old][:3] != kinds[value][:3] or value in self.recording.leaves:
            raise Refused("data: expected a new tensor of the same shape, dtype and device")
        memory.check_write("data", numbers, (), parameter)
        self.assign(parameter, old, value, line)
