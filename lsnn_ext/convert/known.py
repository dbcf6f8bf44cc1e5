"""Which modules of other packages a class of ours stands for, and why one is left as it is.

None of these packages is imported here: their modules are known by the names of their classes.
"""
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from .._original import Original, watched
from .._original import Refused as Refused
from .._original import qualified as qualified

# Bases of all spiking neurons of a package, by its name; their subclasses elsewhere count too.
NEURONS = {
    "norse": {"SNNCell", "SNNRecurrentCell", "SNN", "SNNRecurrent"},
    "snntorch": {"SpikingNeuron"},
    "sinabs": {"StatefulLayer"},
    "spikingjelly": {"MemoryModule", "SimpleBaseNode", "BaseNode", "NonSpikingBaseNode"},
    "sparch": {"LIFLayer", "adLIFLayer", "RLIFLayer", "RadLIFLayer", "ReadoutLayer"},
}
# What must be taken off first, as it keeps other modules or their weights in forms of its own.
WRAPPERS = {
    "DistributedDataParallel", "FullyShardedDataParallel", "DataParallel", "OptimizedModule",
    "ScriptModule", "RecursiveScriptModule", "TopLevelTracedModule", "GraphModule",
}
# By package or class: the axis of steps, 0 in others, and which of the results are the spikes.
TIME = {"sinabs": 1, "sparch": 1, "models.alif.SEAdLIF": 1}
SPIKES = {"SRNN_layers": 1}
# Packages of which a call of a layer is one step, inside a loop of the user's.
BY_STEP = {"snntorch", "spikingjelly", "SRNN_layers"}
# Programs whose files people copy under other names.
COPIED = {"SRNN_layers", "sparch", "models"}
# Packages whose layers keep their state from one call to the next.
KEEPING = {"sinabs", "spikingjelly"}
# What functions of a package do with layers that are not its own, where states are kept.
NOTES = {
    "sinabs": "sinabs.utils.reset_states and zero_grad pass by these layers, as they do by its own "
              "with a rec_connect; call those of the layers",
    "snntorch": "snntorch.utils.reset passes by these layers; call their reset_mem()",
    "spikingjelly": "functional.reset_net resets these layers too, and logs a warning for each",
}
# Holders that reset the layers inside of them, by the classes of the package alone.
RESETTING = {"sinabs.network.Network": "its reset_states would pass by the layer"}


class Known(NamedTuple):
    """A class of ours that stands for another package's."""

    ours: type[Any]
    original: str  # its qualified name

    @property
    def time(self) -> int:
        """The axis of steps in inputs and results."""
        own: int = getattr(self.ours, "time_axis", TIME.get(self.kin, 0))
        return TIME.get(self._first, own)

    @property
    def spikes(self) -> int:
        """Which of the results are the spikes."""
        return SPIKES.get(self.kin, 0)

    @property
    def package(self) -> str:
        return self.original.split(".")[0]

    @property
    def kin(self) -> str:
        """The package whose ways the original has: a class that is made of one of ours stands for
        a copy under another name."""
        return self._first.split(".")[0]

    @property
    def _first(self) -> str:
        names: list[str] = [vars(base)["original"] for base in self.ours.__mro__
                            if vars(base).get("original")]
        return names[-1] if names else self.original


def table_of(classes: Iterable[type[Any]]) -> dict[str, Known]:
    """Classes with `original` and `from_original`, by the name of the original."""
    table: dict[str, Known] = {}
    for ours in classes:
        original = getattr(ours, "original", None)
        if not isinstance(original, str) or not callable(getattr(ours, "from_original", None)):
            raise TypeError(f"classes: expected classes with original, the qualified name of "
                            f"another class, and from_original(module), got {ours!r}")
        table[original] = Known(ours, original)
    return table


def known_as(kind: type, table: Mapping[str, Known]) -> Known | None:
    """What stands for a class: by its whole name, or by its package and name, as packages move
    their classes between their files."""
    if (name := qualified(kind)) in table:
        return table[name]
    package = kind.__module__.split(".")[0]
    if package not in NEURONS:
        return None
    return next((known for known in table.values() if known.package == package
                 and known.original.rsplit(".", 1)[-1] == kind.__name__), None)


def by_step(module: nn.Module, known: Known) -> bool:
    """Whether a call of the module is one step, inside a loop of the user's."""
    return known.kin in BY_STEP and getattr(module, "step_mode", "s") == "s"


def is_neuron(module: nn.Module) -> bool:
    """Whether a module is a spiking neuron, or a container of its own state, of a known
    package."""
    return any(base.__name__ in NEURONS.get(base.__module__.split(".")[0], ())
               for base in type(module).__mro__)


def why_not(module: nn.Module, table: Mapping[str, Known]) -> str | None:
    """Why a spiking neuron for which nothing stands is left; None: the module is none."""
    if parametrize.is_parametrized(module):
        plain = type(module).__mro__[1]
        if known_as(plain, table) or is_neuron(module):
            return "it is parametrized; remove the parametrization, convert, and give it anew"
        return None
    for base in type(module).__mro__[1:]:
        if known := known_as(base, table):
            return (f"its class is made of {known.original}; what that changes is not known. Hand "
                    f"over a class of your own for it, see classes=")
    if is_neuron(module):
        return "no class of lsnn_ext stands for it"
    name = qualified(type(module)).rsplit(".", 1)[-1]
    for known in table.values():
        if (known.kin in COPIED and known.original.rsplit(".", 1)[-1] == name
                and not isinstance(module, Original)):
            return (f"it has the name of {known.original}, but is {qualified(type(module))}. Where "
                    f"it is a copy of it, say so with a class: class Copy({qualified(known.ours)}):"
                    f" original = {qualified(type(module))!r}; its settings are looked at all the "
                    f"same")
    return None


def obstacle(module: nn.Module) -> str:
    """What would be lost, were this module replaced; "" where nothing would."""
    for name, part in module.named_modules():
        if watched(part):
            where = f"its {name}" if name else "it"
            return (f"{where} has hooks, of a monitor or of yours, a forward of its own or a "
                    f"compiled call, which would be lost; take them off, convert, and give them "
                    f"anew")
    return ""


def resetting(module: nn.Module) -> str:
    """Why nothing inside of this module may be replaced; "" where it may."""
    name = next((qualified(base) for base in type(module).__mro__ if qualified(base) in RESETTING),
                "")
    return f"it is inside a {name}, and {RESETTING[name]}" if name else ""


def check_wrappers(model: nn.Module) -> None:
    """Raises TypeError for a model inside something that keeps its modules or weights."""
    for name, part in model.named_modules():
        for base in type(part).__mro__:
            if base.__name__ in WRAPPERS and base.__module__.startswith("torch."):
                where = f"its {name}" if name else "it"
                raise TypeError(f"model: expected one that nothing is wrapped around, got {where} "
                                f"as {type(part).__name__}; convert first, then wrap or compile "
                                f"the result")


def held_elsewhere(model: nn.Module, replaced: Mapping[int, Any]) -> dict[int, str]:
    """Modules that some list, tuple or dict of a module holds too, where nobody would replace
    them: by id, who holds them."""
    found: dict[int, str] = {}
    registered = ("_modules", "_parameters", "_buffers")
    for name, part in model.named_modules():
        for attribute, value in vars(part).items():
            if attribute in registered:
                continue
            parts = value.values() if isinstance(value, dict) else value
            for one in parts if isinstance(parts, list | tuple | type({}.values())) else ():
                if isinstance(one, nn.Module) and id(one) in replaced:
                    found[id(one)] = f"{name}.{attribute}".lstrip(".")
    return found
