"""fuse_component: a recurrent component of a loop as a neuron, run by the kernels."""
from collections.abc import Sequence
from typing import Any

from .frame import Frame, Place
from .ir import Kind, Loop
from .refused import Refused


class Component:
    """Runs calls of a loop for all iterations."""

    def run(self, frame: Frame) -> None:
        """Sets frame.sequences of what is read."""
        raise NotImplementedError


def fuse_component(loop: Loop, positions: Sequence[int], read: set[Place],
                   kinds: dict[int, Kind]) -> Component:
    """Raises Refused for what the kernels cannot run."""
    raise Refused("expected elementwise calls and products of past spikes")


__all__: list[Any] = ["Component", "fuse_component"]
