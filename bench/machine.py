"""What the numbers depend on besides the code: the machine, the versions, the day and the command."""
import contextlib
import datetime
import importlib.metadata
import io
import os
import platform
import re
from pathlib import Path

import torch

from bench.peers import PACKAGES

CHOICES = ("LSNN_CPU", "LSNN_PRODUCT", "LSNN_MEMBERS", "LSNN_CUDA", "LSNN_CACHE_MB")  # variables that change times


def facts(command: str = "python -m bench") -> dict[str, str]:
    """What the numbers depend on besides the code, and the command that measures them again."""
    import lsnn_ext

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        returned = lsnn_ext.show_config()
    config = said.getvalue() + ("" if returned is None else str(returned))
    # The CSV may be published, and where a compiler or a file lies on this machine is nobody's concern.
    config = re.sub(r"(?<![\w.])/[^\s,;'\"]+", "(path)", config)
    return {"processor": _processor(), "cores": str(cores()),
            "instruction set": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            "lsnn_ext": "; ".join(line.strip() for line in config.splitlines() if line.strip()),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "packages": ", ".join(_versions()),
            **{name: os.environ[name] for name in CHOICES if name in os.environ}, "command": command}


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found


def slug() -> str:
    """The name of the folder for this machine's results."""
    name = re.sub(r"\([^)]*\)|@.*", "", _processor())
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{cores()}-cores"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
