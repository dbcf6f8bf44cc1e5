"""Small electrocardiograms: beats whose phases have inputs of their own."""
from pathlib import Path
from typing import Any

import numpy as np

SHARES = 0.22, 0.1, 0.1, 0.1, 0.24, 0.24  # of the phases in a beat


def beats(recordings: int, steps: int, random: np.random.Generator) -> tuple[Any, Any]:
    """x (recordings, steps, 4): each phase begins with events of some of the inputs, then there are
    none; y (recordings, steps, 6)."""
    x = np.zeros((recordings, steps, 4), np.int16)
    y = np.zeros((recordings, steps, 6), np.uint8)
    for item in range(recordings):
        t, phase = 0, int(random.integers(6))
        while t < steps:
            end = t + round(int(random.integers(40, 60)) * SHARES[phase])
            y[item, t:end, phase] = 1
            x[item, t:t + 3, phase % 4] = 1 if phase < 4 else -1
            t, phase = end, (phase + 1) % 6
    return x, y


def write_recordings(folder: Path, recordings: int, steps: int,
                     change: dict[str, Any] | None = {}) -> tuple[Any, Any]:  # noqa: B006
    """Writes both files, with as many recordings to learn from, and what they hold. change: other
    arrays of the test's file, None for one that is left out; None: that file is none of MATLAB."""
    from scipy import io

    random = np.random.default_rng(1)
    arrays = []
    for name, many in (("train", recordings), ("test", 8)):
        x, y = beats(many, steps, random)
        arrays.append((x, y))
        given = {"x": x, "y": y, "t": np.zeros((many, steps)), "max_i": np.zeros((many, 1))}
        path = folder / f"QTDB_{name}.mat"
        if name == "test" and change is None:
            path.write_bytes(b"nothing of MATLAB")
            continue
        given |= change if name == "test" and change else {}
        io.savemat(path, {key: value for key, value in given.items() if value is not None},
                   do_compression=True)
    return arrays[0]
