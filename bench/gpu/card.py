"""The card, its clock and power while something is timed, and tools of the CUDA toolkit."""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

# For a process of its own: the process of the steps must hold neither memory nor a context.
_QUERY = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} sees no CUDA device")
p = torch.cuda.get_device_properties(0)
print(json.dumps([p.name, [p.major, p.minor], p.multi_processor_count,
                  str(getattr(p, "uuid", "")), torch.__version__, str(torch.version.cuda)]))
"""


@dataclass(frozen=True)
class Card:
    """The first CUDA device as torch sees it."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    uuid: str
    torch: str
    cuda: str
    driver: str = "unknown"

    @property
    def slug(self) -> str:
        """The name as a file name: small letters, digits and single hyphens."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "unknown"

    @property
    def architecture(self) -> str:
        """As CMAKE_CUDA_ARCHITECTURES and nvcc want it: 90."""
        return "{}{}".format(*self.capability)


class NoCard(RuntimeError):
    """There is no card; the message is the reason."""


def find(python: str = sys.executable) -> Card:
    """The card that this Python's torch sees. Raises NoCard."""
    ran = subprocess.run([python, "-c", _QUERY], capture_output=True, text=True)
    if ran.returncode != 0:
        said = ran.stderr.strip().splitlines() or [f"{python} ended with status {ran.returncode}"]
        raise NoCard(said[-1])
    name, (major, minor), *others = json.loads(ran.stdout.strip().splitlines()[-1])
    card = Card(name, (major, minor), *others)
    return replace(card, driver=Sample(card.uuid, "driver_version").read()[0] or card.driver)


class Sample:
    """Fields of nvidia-smi, which runs in a process of its own until they are read."""

    def __init__(self, uuid: str, *fields: str) -> None:
        which = [f"--id={uuid if uuid.startswith('GPU-') else f'GPU-{uuid}'}"] if uuid else []
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits",
                   *which]
        self.fields = fields
        try:
            self._process: Any = subprocess.Popen(command, stdout=subprocess.PIPE,
                                                  stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self._process = None

    def read(self) -> list[str]:
        """One text for each field, empty without nvidia-smi."""
        nothing = [""] * len(self.fields)
        if self._process is None:
            return nothing
        try:
            said = self._process.communicate(timeout=20)[0].strip().splitlines()
        except subprocess.TimeoutExpired:
            self._process.kill()
            return nothing
        return [cell.strip() for cell in said[0].split(
            ",")] if self._process.returncode == 0 and said else nothing


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, also where its folder is not on the PATH."""
    places = [os.environ.get(variable, "") for variable in ("CUDA_HOME",
                                                            "CUDA_PATH")] + ["/usr/local/cuda"]
    folders = [os.path.join(place, "bin") for place in places if place]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
