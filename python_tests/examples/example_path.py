"""Lets tests import the programs of examples/; where they are not beside these tests, who imports
this is skipped."""
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("examples/ is not beside these tests", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))


def needs(*packages: str) -> None:
    """Skips the tests of a file whose program needs one of these that is not installed."""
    for package in packages:
        pytest.importorskip(package)
