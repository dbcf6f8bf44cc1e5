"""Spoken digits: recordings of the Free Spoken Digit Dataset, read from its archive or folder, and
their mel spectra step by step."""
import io
import math
import re
import tarfile
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import signal
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

RATE, CHANNELS, DIGITS = 8000, 40, 10
WINDOW = 200  # samples of a spectrum, 25 ms
LONGEST = 1.0  # seconds; what comes after is cut off
TESTED = 5  # the first so many recordings of each digit and speaker are for the test, as is usual
_NAME = re.compile(r"(\d)_([^_/]+)_(\d+)\.wav")


class Recordings(NamedTuple):
    """x: a tensor (T, 40) of each, of its own length; digit (n,), whole numbers."""

    x: list[Tensor]
    digit: Tensor

    def take(self, items: Tensor) -> tuple[PackedSequence, Tensor]:
        """Those of these numbers, in this order, and their digits."""
        packed = pack_sequence([self.x[item] for item in items.tolist()], enforce_sorted=False)
        return packed, self.digit[items]

    def __len__(self) -> int:
        return len(self.x)


class Data(NamedTuple):
    """Recordings to learn from, and to be tested on."""

    train: Recordings
    test: Recordings


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the WAV files of a folder, with those inside, or of a tar archive."""
    if path.is_dir():
        for file in sorted(path.rglob("*.wav")):
            yield file.name, file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                source = archive.extractfile(member) if member.isfile() else None
                if source is not None and member.name.endswith(".wav"):
                    yield Path(member.name).name, source.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise SystemExit(f"--data: expected a folder or a tar archive of the recordings, got "
                         f"{path}: {error}") from None


def samples(name: str, data: bytes) -> np.ndarray:
    """A recording as numbers from -1 to 1."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            form = file.getframerate(), file.getnchannels(), file.getsampwidth()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise SystemExit(f"{name}: expected a WAV file, got one that cannot be read as such "
                         f"({error})") from None
    if form != (RATE, 1, 2):
        raise SystemExit(f"{name}: expected {RATE} samples a second, one channel, two bytes each, "
                         f"got {form[0]}, {form[1]} and {form[2]}")
    return np.frombuffer(raw, "<i2").astype(np.float32) / 2**15


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def filters(bins: int) -> np.ndarray:
    """Triangles (40, bins), evenly spaced in mel, for a spectrum of so many bins from 0 to half the
    rate."""
    corners = 700 * (10 ** (np.linspace(_mel(60), _mel(RATE / 2), CHANNELS + 2) / 2595) - 1)
    frequency = np.linspace(0, RATE / 2, bins)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rise, fall = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    return np.clip(np.minimum(rise, fall), 0, None)


def spectrum(sound: np.ndarray, dt: float) -> Tensor:
    """Logarithms of the energies in 40 mel bands, (T, 40), every dt ms."""
    sound = sound[:round(LONGEST * RATE)]
    sound = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    hop = round(dt * RATE / 1000)
    power = signal.ShortTimeFFT(signal.windows.hann(WINDOW), hop, RATE, mfft=512, scale_to="psd")
    energy = power.spectrogram(sound, p0=0, p1=-(-len(sound) // hop))
    return torch.from_numpy(np.log(filters(257) @ energy + 1e-10).T.astype(np.float32))


def load(path: Path | None, dt: float) -> Data:
    """All recordings, with a mean of 0 and a deviation of 1 in each band over the training's steps.

    Raises SystemExit where path is neither a folder nor an archive of recordings.
    """
    if path is None or not Path(path).exists():
        raise SystemExit(f"--data: expected a folder or a tar archive of the recordings, got "
                         f"{path}; python examples/speech/train.py --help says where they are from")
    found: dict[bool, list[tuple[Tensor, int]]] = {True: [], False: []}
    for name, data in _files(Path(path)):
        match = _NAME.fullmatch(name)
        if match:
            found[int(match[3]) < TESTED].append((spectrum(samples(name, data), dt),
                                                  int(match[1])))
    if not all(found.values()):
        raise SystemExit(f"--data: expected recordings DIGIT_SPEAKER_NUMBER.wav with numbers below "
                         f"{TESTED}, for the test, and others, got {len(found[True])} and "
                         f"{len(found[False])} in {path}")
    whole = torch.cat([x for x, _ in found[False]])
    mean, deviation = whole.mean(0), whole.std(0).clamp(min=1e-3)
    train, test = (Recordings([(x - mean) / deviation for x, _ in found[tested]],
                              torch.tensor([digit for _, digit in found[tested]]))
                   for tested in (False, True))
    return Data(train, test)
