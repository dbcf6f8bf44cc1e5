"""A small corpus in the format of TIMIT, of tones: each phone has a frequency of its own."""
from pathlib import Path

import numpy as np

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
