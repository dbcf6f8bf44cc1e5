"""Facts about a run: the machine, the versions, the date and the command."""
import datetime
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

import lsnn_ext
from bench.peers import PACKAGES
from lsnn_ext.tools.info import find_processor


def command(program: str, arguments: Sequence[str] | None) -> str:
    """The command line that measures the same again, without --out and the paths of this machine;
    arguments None: of this process."""
    kept = list(sys.argv[1:] if arguments is None else arguments)
    while "--out" in kept:
        at = kept.index("--out")
        del kept[at:at + 2]
    return without_paths(shlex.join(["python", "-m", program,
                                     *(text for text in kept if not text.startswith("--out="))]))


def facts(command: str) -> dict[str, str]:
    """What the numbers depend on besides the code, by name; command: that measures them again."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES
                if importlib.util.find_spec(name)]
    return {"processor": find_processor(), "cores": str(cores()),
            "instruction set": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
            "lsnn_ext": without_paths("; ".join(lsnn_ext.show_config().splitlines())),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "packages": ", ".join(versions),
            **{name: without_paths(value) for name, value in os.environ.items()
               if name.startswith("LSNN_")}, "command": command}


def without_paths(text: str) -> str:
    """The text with "(path)" for each absolute path, since results are published."""
    return re.sub(r"(?<![\w.])/[^\s,;'\"]+", "(path)", text)


def results(experiment: str, machine: str | None = None) -> Path:
    """The folder of an experiment on a machine. Default: this machine."""
    return Path("bench/results") / experiment / (machine or slug())


def slug() -> str:
    """The name of this machine in the folder of results."""
    name = re.sub(r"\([^)]*\)|@.*", "", find_processor())
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{cores()}-cores"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
