"""A folder of shared objects on disk: one file per key, with its checksum in its name.

Threads and processes may use it at once, and may be killed at any time. A file is complete or has
another checksum; what a killed process leaves is removed a day later.
"""
import atexit
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

LOCK_SECONDS = 60.0  # how long a process waits for another one that compiles the same source
OLD_SECONDS = 24 * 3600.0  # after which temporary files have lost their process
MAX_BYTES = 256 << 20  # of all shared objects; the least recently used ones are removed

_locks: dict[str, threading.Lock] = {}  # by key
_private: dict[int, Path] = {}  # by process
_warned: set[str] = set()
_PACKAGE = Path(__file__).absolute().parents[1]

# A thread that holds a lock while another thread forks does not exist in the child.
os.register_at_fork(after_in_child=_locks.clear)


def find_folder() -> Path:
    """Returns the folder that the environment names: LSNN_CACHE_DIR, else lsnn_ext in
    XDG_CACHE_HOME, else ~/.cache/lsnn_ext. Raises OSError without a home."""
    if named := os.environ.get("LSNN_CACHE_DIR"):
        return Path(os.path.abspath(named))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # ignored, as the specification of XDG says
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise OSError("this user has no home")
    return Path(base, "lsnn_ext")


def get(key: str, make: Callable[[Path], Path]) -> Path:
    """Returns the file of a key.

    make(work), which fills an empty folder and returns the path of the file in it, is called once,
    however many threads and processes ask at the same time. Where the folder of the user is not to
    be trusted or fails, a warning says so, and a private folder is used, which is removed when the
    process ends. OSError: that one fails, too.
    """
    private = _private.get(os.getpid())
    if private and (found := find(private, key)):
        return found
    wanted = None
    try:
        wanted = find_folder()
        return _find_or_make(_open_trusted(wanted), key, make)
    except OSError as error:
        warn_once(
            f"no cache folder {wanted or ''}",
            f"lsnn_ext: compiled neurons are not kept on disk, each process compiles its own: "
            f"{error}. Set LSNN_CACHE_DIR to a folder that only you can write to")
    if not private or not private.is_dir():
        private = _private[os.getpid()] = Path(tempfile.mkdtemp(prefix="lsnn_ext-"))
        atexit.register(_remove_private, private, os.getpid())
    return _find_or_make(private, key, make)


def warn_once(topic: str, message: str, kind: type[Warning] = RuntimeWarning) -> None:
    """Warns once per topic and process. The warning names the line that called this package."""
    if topic in _warned:
        return
    _warned.add(topic)
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, kind, stacklevel=level)


def find(folder: Path, key: str) -> Path | None:
    """Returns the file of a key, or None. Skips damaged files."""
    for path in folder.glob(f"{key}-*.so"):
        with suppress(FileNotFoundError):  # removed by another process
            if path.stem.rpartition("-")[2] == _checksum(path):
                with suppress(OSError):
                    os.utime(path)  # recently used
                return path
    return None


def _find_or_make(folder: Path, key: str, make: Callable[[Path], Path]) -> Path:
    if found := find(folder, key):
        return found
    with _lock(folder, key):
        if found := find(folder, key):
            return found
        for damaged in folder.glob(f"{key}-*.so"):
            damaged.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="work-", dir=folder,
                                         ignore_cleanup_errors=True) as work:
            made = make(Path(work))
            made.chmod(0o600)  # whatever the umask
            path = folder / f"{key}-{_checksum(made)}.so"
            os.replace(made, path)
        with suppress(OSError):
            _remove_old(folder, path)
        return path


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _open_trusted(folder: Path) -> Path:
    """Makes the folder; returns its real path. Raises OSError where others could write to it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder = folder.resolve(strict=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"expected a folder, got a file ({folder})")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"expected a folder of user {os.geteuid()}, got one of user "
                              f"{status.st_uid} ({folder})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"expected mode 0700, got {stat.S_IMODE(status.st_mode):04o}: other "
                              f"users can write to {folder}")
    for parent in folder.parents:
        mode = os.lstat(parent).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise PermissionError(f"expected a parent without write permission for all users, got "
                                  f"mode {stat.S_IMODE(mode):04o} of {parent}")
    return folder


def _remove_private(path: Path, process: int) -> None:
    if os.getpid() == process:  # not a forked child, which inherits the call
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _lock(folder: Path, key: str) -> Iterator[None]:
    """Excludes other threads, and other processes for LOCK_SECONDS at most."""
    with _locks.setdefault(key, threading.Lock()):
        descriptor = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _wait_for(descriptor)
            yield
        finally:
            with suppress(OSError):  # closing is not enough: a forked child may have it open, too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _wait_for(descriptor: int) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < end:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # a file system without locks: two processes may compile the same source
            return
        else:
            return


def _remove_old(folder: Path, keep: Path) -> None:
    """Removes files of killed processes, and the least recently used ones."""
    total, now = 0, time.time()
    entries = [(path, os.lstat(path)) for path in folder.iterdir()]
    for path, status in sorted(entries, key=lambda entry: -entry[1].st_mtime):
        if path.suffix == ".so":
            total += status.st_size
            if total > MAX_BYTES and path != keep:
                path.unlink(missing_ok=True)
        elif now - status.st_mtime > OLD_SECONDS:
            if path.name.startswith("work-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".lock":
                path.unlink(missing_ok=True)
