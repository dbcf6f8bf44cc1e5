"""docs/from_*.md: their code runs, in the order of the page, and what they call before and after is
the same."""
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from originals import package

DOCS = Path(__file__).resolve().parents[2] / "docs"
if not DOCS.is_dir():
    pytest.skip("docs/ is not beside these tests", allow_module_level=True)
PAGES = sorted(path.name for path in DOCS.glob("from_*.md"))


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(),
                      re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page: str) -> None:
    for name in ("norse", "snntorch", "sinabs", "spikingjelly"):
        if name in page:
            package(name)
    names: dict[str, Any] = {}
    for number, code in enumerate(_blocks(page), 1):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    before, after = names["before"], names["after"]
    assert torch.equal(after, before) and 0.02 < float(before.detach().mean()) < 0.9


def test_there_are_pages() -> None:
    assert len(PAGES) == 6 and all(len(_blocks(page)) >= 3 for page in PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit(page: str) -> None:
    """What is copied has no lines that are longer than those of the project."""
    assert [line for code in _blocks(page) for line in code.splitlines() if len(line) > 130] == []
