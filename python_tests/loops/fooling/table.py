"""All fooling programs, by name: FILE-CLASS."""
from fooling import (  # noqa: F401
    around,
    bodies,
    changes,
    counters,
    delays,
    draws,
    functions,
    hooks,
    indices,
    layers,
    memory,
    modes,
    outputs,
    parts,
    results,
    scopes,
    sizes,
    unusual,
    values,
    writes,
)
from fooling.base import PROGRAMS  # noqa: F401
