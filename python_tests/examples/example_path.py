"""Lets tests import the programs of examples/; where they are missing, skips."""
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("examples/ is not beside these tests", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))


def needs(*packages: str) -> None:
    """Skips the tests of a file whose program needs one of these that is not installed."""
    for package in packages:
        pytest.importorskip(package)


def load_checkpoint(folder: Path, name: str = "checkpoint.pt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def refusal(call: Callable[..., object], *arguments: Any) -> str:
    """What a program says that ends: a message, and neither a traceback nor a status alone."""
    with pytest.raises(SystemExit) as refused:
        call(*arguments)
    assert isinstance(refused.value.code, str)
    return refused.value.code


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
