"""All fooling programs, by name: FILE-CLASS."""
from importlib import import_module

from fooling.base import PROGRAMS  # noqa: F401

FILES = ("around", "bodies", "changes", "counters", "delays", "draws", "functions", "hooks",
         "indices", "layers", "memory", "modes", "outputs", "parts", "places", "reach", "results",
         "sizes", "traps", "unusual", "values", "writes")
for name in FILES:
    import_module(f"fooling.{name}")
