"""Recordings in the form of the Free Spoken Digit Dataset; the pitch is the digit."""
import tarfile
import wave
from pathlib import Path

import numpy as np


def sound(digit: int, seconds: float, random: np.random.Generator) -> np.ndarray:
    """16-bit samples of a tone that glides, with noise."""
    t = np.arange(round(8000 * seconds)) / 8000
    begin, end = 300 + 300 * (digit % 5), 600 + 1200 * (digit // 5)
    phase = 2 * np.pi * (begin * t + (end - begin) * t**2 / (2 * seconds))
    value = 0.3 * np.sin(phase) + 0.02 * random.standard_normal(len(t))
    return (value * 2**15).astype("<i2")


def write_words(folder: Path, numbers: int = 8, digits: int = 10, archive: bool = False) -> Path:
    """The folder of the words of two speakers, each digit so many times, or their archive."""
    random = np.random.default_rng(1)
    inside = folder / "recordings"
    inside.mkdir()
    for digit in range(digits):
        for speaker in ("ada", "max"):
            for number in range(numbers):
                with wave.open(str(inside / f"{digit}_{speaker}_{number}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(8000)
                    file.writeframes(sound(digit, random.uniform(0.15, 0.5), random).tobytes())
    if not archive:
        return inside
    with tarfile.open(folder / "recordings.tar", "w") as packed:
        packed.add(inside, "recordings")
    return folder / "recordings.tar"
