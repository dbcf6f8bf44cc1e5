"""The TIMIT corpus as frames: its 61 phones, the speakers of its parts, sounds and labels of the
user's own copy."""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from python_speech_features import delta, mfcc
from scipy.io import wavfile
from torch import Tensor
from tqdm import tqdm

RATE, WINDOW, HOP = 16_000, 400, 160  # samples a second, of a frame, from one frame to the next
COEFFICIENTS = 13
INPUTS = 3 * COEFFICIENTS  # with first and second differences
NEAR = 2  # frames on each side that a difference is of
MANY = {"train": 3696, "valid": 400, "test": 192}  # sentences of the whole corpus
HEAD = 1024  # bytes before the samples of a file of NIST SPHERE

# 39 classes, and what counts as each of them when a network is scored (Lee and Hon, 1989); q counts
# nowhere
SCORED = ("aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh "
          "uw v w y z sil").split()
_SAME = {"aa": "ao", "ah": "ax ax-h", "er": "axr", "hh": "hv", "ih": "ix", "l": "el", "m": "em",
         "n": "en nx", "ng": "eng", "sh": "zh", "uw": "ux",
         "sil": "h# pau epi bcl dcl gcl kcl pcl tcl"}
_CLASS = {name: number for number, name in enumerate(SCORED) if name != "sil"} | {
    name: SCORED.index(one) for one, names in _SAME.items() for name in names.split()} | {"q": -1}
PHONES = sorted(_CLASS)  # 61
FOLD = torch.tensor([_CLASS[name] for name in PHONES])  # (61,) class of each, -1 for q

# Speakers of the test folder: those of the core test, and others that choose the epoch.
CORE = ("mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 mbpm0 mklt0 fnlp0 "
        "mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0").split()
VALID = ("faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 "
         "fdms0 fedw0 mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 "
         "mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0 fjsj0 majc0 mjsw0 mreb0 "
         "fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1").split()


class Sentences(NamedTuple):
    """x: of each sentence (T, 39); phone: (T,) numbers of PHONES."""

    x: list[Tensor]
    phone: list[Tensor]

    def take(self, items: Tensor) -> "Sentences":
        """Those of these numbers."""
        numbers = items.tolist()
        return Sentences([self.x[n] for n in numbers], [self.phone[n] for n in numbers])


class Data(NamedTuple):
    """Sentences to learn from, to choose the epoch by, and to be tested on."""

    train: Sentences
    valid: Sentences
    test: Sentences


def _wrong(path: Path, wanted: str, got: str) -> SystemExit:
    return SystemExit(f"{path}: expected {wanted}, got {got}")


# ------------------------------------------------------------------------------------------- a file
def read_sound(path: Path) -> np.ndarray:
    """(n,) int16: a file of NIST SPHERE as the corpus has them, or a copy of it as RIFF."""
    content = path.read_bytes()
    if content[:4] == b"RIFF":
        try:
            rate, samples = wavfile.read(path)
        except ValueError as error:
            raise _wrong(path, "a RIFF file that is whole", str(error)) from None
        if rate != RATE or samples.dtype != np.int16 or samples.ndim != 1:
            raise _wrong(path, f"{RATE} samples a second of 16 bits, one channel",
                         f"{rate} of {samples.dtype}, shape {samples.shape}")
        return samples
    if content[:16].split() != [b"NIST_1A", str(HEAD).encode()]:
        raise _wrong(path, "a sound of NIST SPHERE or RIFF", "another file")
    fields = {words[0]: words[2] for line in content[:HEAD].decode("ascii", "replace").splitlines()
              if len(words := line.split(maxsplit=2)) == 3}
    wanted = {"sample_rate": str(RATE), "channel_count": "1", "sample_n_bytes": "2"}
    for name, value in wanted.items():
        if fields.get(name) != value:
            raise _wrong(path, f"{name} {value} in its head", fields.get(name, "none"))
    if (coding := fields.get("sample_coding", "pcm")) != "pcm":
        raise _wrong(path, "sample_coding pcm, not compressed", coding)
    if (order := fields.get("sample_byte_format", "none")) not in ("01", "10"):
        raise _wrong(path, "sample_byte_format 01 or 10 in its head", order)
    samples = np.frombuffer(content[HEAD:len(content) - len(content) % 2],
                            "<i2" if order == "01" else ">i2").astype(np.int16)
    if fields.get("sample_count") != str(len(samples)):
        raise _wrong(path, f"{fields.get('sample_count')} samples as its head says",
                     str(len(samples)))
    return samples


def read_phones(path: Path, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends, in samples, and numbers of the phones of a sound of so many samples."""
    ends, numbers, before = [], [], 0
    for line, text in enumerate(path.read_text("ascii", "replace").splitlines(), 1):
        words = text.split()
        if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
            raise _wrong(path, f"begin, end and phone in line {line}", repr(text))
        begin, end = int(words[0]), int(words[1])
        if begin != before or end <= begin:
            raise _wrong(path, f"a phone that begins where the last one ends, at {before}, in line "
                               f"{line}", repr(text))
        if words[2] not in _CLASS:
            raise _wrong(path, f"one of the corpus's 61 phones in line {line}", repr(words[2]))
        ends.append(end)
        numbers.append(PHONES.index(words[2]))
        before = end
    if not ends or abs(before - samples) > WINDOW + HOP:
        raise _wrong(path, f"phones up to the end of the sound, {samples} samples", str(before))
    return np.array(ends), np.array(numbers)


def read_sentence(sound: Path, phones: Path) -> tuple[Tensor, Tensor]:
    """(T, 39) coefficients with their differences, and (T,) phones at the middles of the frames."""
    samples = read_sound(sound)
    ends, numbers = read_phones(phones, len(samples))
    found = mfcc(samples, RATE, WINDOW / RATE, HOP / RATE, COEFFICIENTS, nfft=512,
                 winfunc=np.hamming)
    once = delta(found, NEAR)
    x = np.concatenate([found, once, delta(once, NEAR)], 1)
    middles = HOP * np.arange(len(x)) + WINDOW // 2
    at = np.searchsorted(ends, middles, side="right").clip(max=len(ends) - 1)
    return torch.from_numpy(x).float(), torch.from_numpy(numbers[at])


# --------------------------------------------------------------------------------------- the corpus
def find_parts(folder: Path | None) -> dict[str, Path]:
    """The folders train and test, in any case, here or up to two folders below."""
    places = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))] if folder else []
    for place in places:
        inside = {one.name.lower(): one for one in place.iterdir()} if place.is_dir() else {}
        if all(name in inside and inside[name].is_dir() for name in ("train", "test")):
            return inside
    raise SystemExit(f"--data: expected a folder of the TIMIT corpus, with its folders train and "
                     f"test, got {folder}; the corpus is LDC93S1 of the Linguistic Data Consortium")


def find_sentences(part: Path) -> list[tuple[str, Path, Path]]:
    """Speaker, sound and phones of the sentences of a folder, but for the two that all speakers
    say; in the order of their paths in small letters, whatever letters the copy has."""
    found = []
    for path in part.rglob("*"):
        name = path.name.lower()
        if not name.endswith(".phn") or name.startswith("sa"):
            continue
        beside = {one.name.lower(): one for one in path.parent.iterdir()}
        sound = beside.get(name[:-4] + ".wav")
        if sound is None:
            raise _wrong(path, f"a sound {name[:-4]}.wav beside it", "none")
        found.append((path.parent.name.lower(), sound, path))
    return sorted(found, key=lambda one: str(one[2].relative_to(part)).lower())


def load(folder: Path | None) -> Data:
    """All sentences, each coefficient with mean 0 and deviation 1 over the frames to learn from."""
    parts = find_parts(Path(folder) if folder else None)
    train, test = (find_sentences(parts[name]) for name in ("train", "test"))
    chosen = {"train": train, "valid": [one for one in test if one[0] in VALID],
              "test": [one for one in test if one[0] in CORE]}
    for name, sentences in chosen.items():
        if not sentences:
            speakers = {"valid": f", of speakers like {VALID[0]}",
                        "test": f", of those of the core test like {CORE[0]}"}.get(name, "")
            where = parts["train" if name == "train" else "test"]
            raise _wrong(where, f"sentences, .phn beside .wav{speakers}", "none")
        if len(sentences) != MANY[name]:
            print(f"{name}: {len(sentences)} sentences, where the whole corpus has {MANY[name]}: "
                  "not what published figures are of")
    read = {}
    with tqdm(total=sum(map(len, chosen.values())), desc="reading", unit="sentence",
              leave=False) as bar:
        for name, sentences in chosen.items():
            pairs = []
            for _, sound, phones in sentences:
                pairs.append(read_sentence(sound, phones))
                bar.update()
            read[name] = Sentences([x for x, _ in pairs], [phone for _, phone in pairs])
    frames = torch.cat(read["train"].x)
    mean, deviation = frames.mean(0), frames.std(0).clamp(min=1e-6)
    for part in read.values():
        part.x[:] = [(x - mean) / deviation for x in part.x]
    return Data(**read)
