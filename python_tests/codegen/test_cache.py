"""The cache of compiled neurons on disk: the right result or a warning whatever fails."""
import errno
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import compiling
from compiling import START, Fake, is_private, load_answer, needs_compiler, shared, start
from lsnn_ext.codegen import cache

pytestmark = compiling.marks
folder, fake = compiling.folder, compiling.fake  # fixtures

# ------------------------------------------------------------------------------------ damaged files
@needs_compiler
@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "name", "remove"])
def test_damaged_file_is_compiled_anew(folder: Path, fake: Fake, damage: str) -> None:
    count, path = fake('exec "$real" "$@"'), shared()
    intact = path.read_bytes()
    damaged = {"truncate": intact[:len(intact) // 2], "empty": b"",
               "flip": intact[:-1] + bytes([intact[-1] ^ 1])}.get(damage)
    path.unlink()
    if damage == "name":
        path.with_stem(path.stem[:-1] + "x").write_bytes(intact)
    elif damaged is not None:
        path.write_bytes(damaged)
    again = shared()
    assert load_answer(again) == 129 and count() == 2 and [*folder.glob("*.so")] == [again]


def test_least_recently_used_files_are_removed(folder: Path, fake: Fake,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    fake('head -c 1000 /dev/zero > "$out"')
    monkeypatch.setattr(cache, "MAX_BYTES", 2500)
    paths = [shared(number) for number in range(2)]
    for number, path in enumerate(paths):
        os.utime(path, (number, number))
    assert shared(0) == paths[0]  # now the one used last
    new = shared(2)
    assert set(folder.glob("*.so")) == {paths[0], new}


# ---------------------------------------------------------------------------- disks without space
@needs_compiler
@pytest.mark.parametrize("message", ["ld: final link failed: No space left on device",
                                     "collect2: fatal error: ld terminated [Bus error]"])
def test_compiler_meets_a_full_disk(folder: Path, fake: Fake, message: str) -> None:
    count = fake(f'case "$out" in {folder}/*) echo half > "$out"; echo "{message}" >&2; exit 1;; '
                 'esac; exec "$real" "$@"')
    with pytest.warns(RuntimeWarning, match="No space left.* Set LSNN_CACHE_DIR"):
        path = shared()
    assert load_answer(path) == 129 and is_private(path, folder)
    assert shared() == path and count() == 2  # found, although not in the folder of the user


@needs_compiler
@pytest.mark.parametrize("name", ["replace", "open"])
def test_writing_meets_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch,
                                   name: str) -> None:
    intact = getattr(os, name)

    def fail(path: object, *rest: object, **named: object) -> object:
        if str(path).startswith(str(folder)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return intact(path, *rest, **named)

    monkeypatch.setattr(os, name, fail)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        path = shared()
    assert load_answer(path) == 129 and is_private(path, folder)


@needs_compiler
@pytest.mark.parametrize(("options", "remount"), [("size=8k", "size=8k"), ("size=1m", "ro")])
def test_real_file_systems(folder: Path, options: str, remount: str) -> None:
    """One without space and one that is read-only, mounted for one process alone."""
    folder.mkdir(mode=0o700)
    mount = f"mount -t tmpfs -o mode=700,{options} none {folder}"
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "sh", "-c", mount],
                                     capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed")
    code = START + "print(compile.shared_object(SOURCE % 1, (), 128))"
    ran = subprocess.run(
        [unshare, "-rm", "sh", "-c", f"{mount} && mount -o remount,{remount} {folder} && exec "
         f"{shlex.join([sys.executable, '-c', code])}"], capture_output=True, text=True, timeout=60)
    assert "/lsnn_ext-" in ran.stdout, ran.stderr
    assert ("Read-only file system" if remount == "ro" else "No space left") in ran.stderr


def test_no_folder_at_all(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    count = fake('echo > "$out"')
    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.warns(RuntimeWarning) as found:
        assert shared() is None
    assert "LSNN_CACHE_DIR" in str(found[0].message) and len(found) == 2 and count() == 0
    assert "an interpreter runs the step" in str(found[1].message)


# ------------------------------------------------------------------------ folders not to be trusted
def _group_writable(folder: Path, other: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def _link_to_foreign(folder: Path, other: Path) -> None:
    other.mkdir(mode=0o755)
    os.chown(other, 65534, -1)
    folder.symlink_to(other)


@needs_compiler
@pytest.mark.parametrize(("spoil", "message"), [
    (_group_writable, "expected mode 0700, got 0770"),
    (lambda folder, other: folder.parent.chmod(0o777), "got mode 0777"),
    (lambda folder, other: folder.touch(), "File exists"),
    (lambda folder, other: folder.symlink_to(other / "missing"), "File exists"),
    (_link_to_foreign, "got one of user 65534")])
def test_folder_is_not_trusted(folder: Path, tmp_path: Path, spoil: Callable[[Path, Path], None],
                               message: str) -> None:
    if spoil is _link_to_foreign and os.geteuid() != 0:
        pytest.skip("only root can make a folder of another user")
    spoil(folder, tmp_path / "other")
    with pytest.warns(RuntimeWarning, match=message) as found:
        path = shared()
    assert is_private(path, folder) and load_answer(path) == 129 and len(found) == 1
    assert found[0].filename == compiling.__file__  # which calls the package
    assert shared() == path  # without another warning


def test_foreign_folder(folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake('echo > "$out"')
    folder.mkdir(mode=0o700)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.warns(RuntimeWarning, match=f"of user {user + 1}, got one of user {user}"):
        assert is_private(shared(), folder)


def test_link_to_own_folder(folder: Path, tmp_path: Path, fake: Fake) -> None:
    fake('echo > "$out"')
    (tmp_path / "other").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "other")
    path = shared()
    assert path is not None and path.parent == tmp_path / "other"


def test_folder_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LSNN_CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.find_folder() == tmp_path / ".cache" / "lsnn_ext"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.find_folder() == tmp_path / ".cache" / "lsnn_ext"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.find_folder() == tmp_path / "xdg" / "lsnn_ext"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without a home
    with pytest.raises(OSError, match="no home"):
        cache.find_folder()


def test_private_folder_ends_with_its_process(folder: Path, fake: Fake) -> None:
    fake('echo > "$out"')
    folder.touch()
    process = start("""
import os, warnings
warnings.simplefilter("ignore")
path = compile.shared_object(SOURCE % 1, (), 128)
if os.fork() == 0:
    assert compile.shared_object(SOURCE % 1, (), 128) != path
    sys.exit()
os.wait()
print(path, path.is_file())
""")
    path, there = process.communicate(timeout=60)[0].split()
    assert there == "True" and not Path(path).parent.exists()
