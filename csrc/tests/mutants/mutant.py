"""A planted bug, for mutant_table.py."""
from typing import Literal, NamedTuple

# the kernels under the emulator, alone or with a sanitizer
Check = Literal["plain", "address", "thread"]
PLAIN: Check = "plain"  # a wrong result in some order of the threads, or an error of the emulator
ADDRESS: Check = "address"
THREAD: Check = "thread"


class Mutant(NamedTuple):
    name: str
    file: str               # of csrc/cuda
    old: str                # must stand there `times` times, and all of them are replaced
    new: str
    runs: tuple[str, ...]   # a design, or "any", and a word of the names of cases
    check: Check = PLAIN    # the one that finds it, if the plain one does not
    times: int = 1
    # what is compiled again; files that others share name theirs in mutants.py
    object: str = "alif_f32"
