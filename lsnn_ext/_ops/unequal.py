"""The recurrence of sequences of unequal length, given in any order."""
from .._core.lengths import Lengths
from .._core.rows import Rows
from .autograd import Outputs, Settings, Tensors, _run_in_order

# The axis of the batch in what the operator takes and returns.
_BATCH_IN = {"x": 1, "v": 0, "a": 0, "i": 0, "r": 0, "z": 1, "x_bits": 1, "p": 0}
_BATCH_OUT = {"spikes": 1, "v": 0, "a": 0, "i": 0, "r": 0, "z": 1, "trace_v": 1, "trace_a": 1,
              "threshold": 1, "p": 1, "p_last": 0}


def run_recurrence(t: Tensors, rows: Rows, settings: Settings, lengths: Lengths | None) -> Outputs:
    """The operator: of sequences that end early, in the order of the caller."""
    if lengths is None:
        return _run_in_order(t, rows, settings)
    t = t._replace(lengths=lengths.descending)
    if lengths.order is None:
        return _run_in_order(t, rows, settings)
    given = {name: getattr(t, name) for name in _BATCH_IN}
    out = _run_in_order(t._replace(**{
        name: None if value is None else lengths.sort(value, _BATCH_IN[name])
        for name, value in given.items()
    }), rows, settings)
    found = {name: getattr(out, name) for name in _BATCH_OUT}
    return out._replace(**{  # what was not asked for has the shape (0,)
        name: lengths.restore(value, _BATCH_OUT[name]) if value.dim() > 1 else value
        for name, value in found.items()
    })
