"""Small files in the formats of the data that the examples learn from."""
import tarfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

# ------------------------------------------------------------------ MNIST: random pixels and labels
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
         "t10k-labels-idx1-ubyte")


def idx(*shape: int, highest: int = 255) -> bytes:
    """An IDX file of random bytes."""
    values = torch.randint(highest + 1, shape, generator=torch.Generator().manual_seed(1),
                           dtype=torch.uint8)
    head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return head + values.numpy().tobytes()


def write_digits(folder: Path) -> None:
    """Twelve digits to learn from and five to be tested on."""
    contents = idx(12, 28, 28), idx(12, highest=9), idx(5, 28, 28), idx(5, highest=9)
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_bytes(content)


def excite(net: Any) -> None:
    """Lets a BRF fire more, and makes its sums exact for inputs of eight bits."""
    with torch.no_grad():
        for weight, factor in (net.neurons.weight_ih_l0, 5), (net.neurons.weight_hh_l0, 1):
            weight.mul_(factor * 1024).round_().div_(1024)


# -------------------------------------- electrocardiograms: each phase of a beat has its own inputs
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


# ------------------------------------------------ Free Spoken Digit Dataset: the pitch is the digit
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


# --------------------------------------------------------------------- TIMIT: a tone for each phone
RATE = 16_000
TONES = {"h#": 0, "iy": 350, "zh": 700, "q": 1300, "ao": 2300, "tcl": 4000}  # Hz, 0: noise alone
Labels = list[tuple[int, int, str]]  # begin and end in samples, and name, of each phone
SPEAKERS = {"train": ("fcjf0", "mdac0", "fsah0"), "test": ("mdab0", "faks0", "mzzz0")}


def sphere(samples: np.ndarray, order: str = "01", **changed: str) -> bytes:
    """A file of NIST SPHERE, byte order "01" or "10"; changed: fields of its head."""
    fields = {"channel_count": "1", "sample_count": str(len(samples)), "sample_rate": str(RATE),
              "sample_n_bytes": "2", "sample_byte_format": order, "sample_sig_bits": "16"}
    lines = ["NIST_1A", "   1024", "database_id -s5 TIMIT"]
    for name, value in (fields | changed).items():
        lines.append(f"{name} {'-i' if value.isdigit() and name != 'sample_byte_format' else '-s2'}"
                     f" {value}")
    head = "\n".join([*lines, "end_head", ""]).encode().ljust(1024)
    return head + samples.astype("<i2" if order == "01" else ">i2").tobytes()


def spoken(random: np.random.Generator, phones: int) -> tuple[np.ndarray, Labels]:
    """Samples (n,) int16 and the phones; silence at both ends."""
    names = ["h#", *random.choice(list(TONES)[1:], phones - 2), "h#"]
    ends = np.cumsum(random.integers(900, 2500, phones)).tolist()
    labels = [(begin, end, str(name)) for begin, end, name
              in zip([0, *ends[:-1]], ends, names, strict=True)]
    samples = 30 * random.standard_normal(ends[-1] + 60)
    for begin, end, name in labels:
        samples[begin:end] += 3000 * np.sin(2 * np.pi * TONES[name] / RATE * np.arange(end - begin))
    return samples.astype(np.int16), labels


def write_sentence(folder: Path, name: str, samples: np.ndarray, labels: Labels) -> None:
    """Sound and phones, in the letters of the name."""
    ends = (".WAV", ".PHN") if name.isupper() else (".wav", ".phn")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (name + ends[0])).write_bytes(sphere(samples))
    (folder / (name + ends[1])).write_text(
        "".join(f"{begin} {end} {phone}\n" for begin, end, phone in labels))


def write_corpus(folder: Path, sentences: int, phones: int = 8, upper: bool = True) -> None:
    """Three speakers to learn from, one who chooses the epoch, one of the core test and one of
    neither, with as many sentences each, and the two that all say."""
    random = np.random.default_rng(1)
    for part, speakers in SPEAKERS.items():
        for speaker in speakers:
            for name in ("sa1", "sa2", *(f"sx{n + 1}" for n in range(sentences))):
                path = f"{part}/dr1/{speaker}"
                write_sentence(folder / (f"timit/{path}".upper() if upper else path),
                               name.upper() if upper else name, *spoken(random, phones))
