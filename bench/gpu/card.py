"""The card: what it is, what it does while something is timed, and the tools that stand beside it."""
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

# In a process of its own: the one that runs the steps must hold no memory of the card and no context that could break.
_QUERY = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} sees no CUDA device")
p = torch.cuda.get_device_properties(0)
print(json.dumps({"name": p.name, "capability": [p.major, p.minor], "multiprocessors": p.multi_processor_count,
                  "uuid": str(getattr(p, "uuid", "")), "torch": torch.__version__, "cuda": str(torch.version.cuda)}))
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
    driver: str = ""

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return slug(self.name)

    @property
    def architecture(self) -> str:
        """As CMAKE_CUDA_ARCHITECTURES and nvcc want it: 90."""
        return "{}{}".format(*self.capability)


class NoCard(RuntimeError):
    """Why there is none."""


def slug(name: str) -> str:
    """Small letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def find(python: str = sys.executable) -> Card:
    """The card that this Python's torch sees; NoCard says why there is none."""
    ran = subprocess.run([python, "-c", _QUERY], capture_output=True, text=True)
    if ran.returncode != 0:
        said = ran.stderr.strip().splitlines() or [f"{python} ended with status {ran.returncode}"]
        raise NoCard(said[-1])
    found: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    found["capability"] = tuple(found["capability"])
    card = Card(**found)
    driver = smi(card.uuid, "driver_version")
    return Card(**found, driver=driver[0] if driver else "")


def smi(uuid: str, *fields: str) -> list[str]:
    """What nvidia-smi says of the card, field by field; nothing where it is missing or does not know the card."""
    try:
        ran = subprocess.run(_smi_command(uuid, fields), capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = ran.stdout.strip().splitlines()
    return [part.strip() for part in lines[0].split(",")] if ran.returncode == 0 and lines else []


def _smi_command(uuid: str, fields: tuple[str, ...]) -> list[str]:
    which = uuid if uuid.startswith("GPU-") or not uuid else f"GPU-{uuid}"
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits",
            *([f"--id={which}"] if which else [])]


class Monitor:
    """Clock of the multiprocessors and power while something runs, read twice a second by nvidia-smi if it is there."""

    def __init__(self, uuid: str = "") -> None:
        self.uuid, self.sm_mhz, self.power_w = uuid, float("nan"), float("nan")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Monitor":
        try:
            self._process = subprocess.Popen(
                [*_smi_command(self.uuid, ("clocks.sm", "power.draw")), "--loop-ms=500"], stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self._process = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            said, _error = self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _error = self._process.communicate()
        self.sm_mhz, self.power_w = read_samples(said)


def read_samples(text: str) -> tuple[float, float]:
    """The medians of the two columns; nan where nothing could be read."""
    columns: tuple[list[float], list[float]] = ([], [])
    for line in text.splitlines():
        for column, cell in zip(columns, line.split(","), strict=False):
            try:
                column.append(float(cell))
            except ValueError:  # [N/A], or a line that was cut off
                continue
    sm, power = (statistics.median(column) if column else float("nan") for column in columns)
    return sm, power


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, also where its folder is not on the PATH."""
    places = [os.environ.get(variable, "") for variable in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    folders = [os.path.join(place, "bin") for place in places if place]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def plan(T: int, B: int, N: int) -> str:
    """What the library says it will run for a shape, in one line without commas; '' where it does not say."""
    try:
        from lsnn_ext import _C  # type: ignore[attr-defined]

        said = _C.plan(T, B, N)
    except Exception:  # an older build, or one without CUDA kernels: the rows are worth having without this
        return ""
    text = "; ".join(f"{key} {value}" for key, value in said.items()) if isinstance(said, dict) else str(said)
    return " ".join(text.replace(",", ";").split())[:160]
