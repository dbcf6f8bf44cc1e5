"""Numbers that are the same in each call, such as those of a counter before the loop, and ranges of
integers."""
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..codegen.integers import LIMIT
from .ir import Recording

FILLS = {f"{before}{name}{behind}": number for name, number in (("zeros", 0), ("ones", 1))
         for before, behind in (("", ""), ("", "_like"), ("new_", ""))}
FULL = {"full": 1, "full_like": 1, "new_full": 2}  # the place of the number
COPIES = frozenset({"int", "long", "to", "clone", "detach", "contiguous", "reshape", "expand",
                    "repeat", "squeeze", "unsqueeze"})
# which hold each integer below the limit
DTYPES = frozenset({torch.int32, torch.int64, torch.float32, torch.float64})

BEFORE = range(-4095, 4096)  # of integers before a loop; the product of two is below the limit


def is_in_range(tensor: Tensor) -> bool:
    """Whether integers may be those before a loop."""
    return not tensor.numel() or all(int(one) in BEFORE for one in tensor.aminmax())


def find_number(recording: Recording, value: int) -> int | None:
    """Returns the integer that all numbers of a tensor are; None: it may differ by call."""
    kind, numbers = recording.kinds[value], recording.numbers.get(value)
    if kind.dtype not in DTYPES or kind.requires_grad:
        return None
    call = recording.find_maker(value)
    number = None
    if call is None:
        if (recording.leaves[value].kind == "input" or numbers is None or numbers.numel() != 1
                or kind.dtype.is_floating_point):
            return None
        recording.read[value] = numbers  # which each call compares from now on
        number = int(numbers)
    elif call.name in FILLS:
        number = FILLS[call.name]
    elif call.name in FULL:
        args, kwargs = pytree.tree_unflatten(call.leaves, call.spec)
        place = FULL[call.name]
        number = args[place] if len(args) > place else kwargs.get("fill_value")
    elif call.name in COPIES and not call.written and len(call.inputs) == 1:
        number = find_number(recording, call.inputs[0])
    return number if type(number) is int and abs(number) < LIMIT else None
