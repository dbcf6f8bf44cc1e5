"""Watch sees changes of what a step only looks into."""
import enum
import threading
from collections import ChainMap, OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from lsnn_ext.codegen.closure import Watch

SHOWN = {"a": 1.0}


class OfClass(type):
    @property
    def gain(cls) -> float:
        return cls.rate


class Rated(metaclass=OfClass):
    rate = 1.0


class Kind(enum.Enum):
    SLOW = SimpleNamespace(gain=1.0)


@pytest.mark.parametrize(("value", "change"), [
    (ContextVar("gain", default=1.0), lambda one: one.set(2.0)),
    (OrderedDict(a=1.0, b=2.0), lambda one: one.move_to_end("a")),
    (ChainMap({"a": 1.0}), lambda one: one.update(a=2.0)),
    (threading.Event(), lambda one: one.set()),
    (MappingProxyType(SHOWN), lambda one: SHOWN.update(a=2.0)),
    (Rated, lambda one: setattr(one, "rate", 2.0)),
    (Kind.SLOW, lambda one: setattr(one.value, "gain", 2.0))])
def test_a_change_of_what_it_looks_into_is_seen(value: Any, change: Callable[[Any], Any]) -> None:
    watch = Watch(lambda v, z: (v * value.gain, z))
    assert watch.is_current() and watch.is_current()
    change(value)
    assert not watch.is_current()
