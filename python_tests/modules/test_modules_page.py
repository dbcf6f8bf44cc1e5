"""docs/modules.md: its table is that of lsnn_ext/models.py."""
import re
from pathlib import Path
from typing import Any

import pytest

from lsnn_ext.models import MODELS, Default, Rate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "modules.md"
if not PAGE.exists():
    pytest.skip("docs/ is not beside these tests", allow_module_level=True)
TEXT = PAGE.read_text()


def _constant(name: str, value: Default) -> str:
    if isinstance(value, str):
        return f"`{name}` —"
    return f"`{name}=1-dt/{value.tau:g}`" if isinstance(value, Rate) else f"`{name}={value}`"


def _number(value: Default) -> str:
    if value is None:
        return "the rule"
    return "—" if isinstance(value, str) else f"{value:g}"


def test_table() -> None:
    found = {cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
             for cells in (line.strip("|").split(" |") for line in TEXT.splitlines()
                           if line.startswith("| `")) if cells[0].strip("` ") in MODELS}
    assert list(found) == list(MODELS)
    for name, model in MODELS.items():
        own, wanted = model.origin.defaults, []
        others = [("ALIF", model.origin.alif), ("LIF", model.origin.lif)]

        def said(key: str, text: str, others: Any = others) -> str:
            more = [f" (`{kind}` `{values[key]}`)" for kind, values in others if key in values]
            return text + "".join(more)

        for pair in (("tau_mem", "alpha"), ("tau_adapt", "rho")):
            key = next(key for key in pair if key in own)
            wanted.append(said(key, _constant(key, own[key])))
        wanted += [said(key, _number(own[key])) for key in ("beta", "threshold", "refractory")]
        wanted += [str(own["autapses"])]
        wanted += [", ".join(_constant(key, own[key]) for key in ("sigma", "p", "q", "delay")
                             if key in own)]
        assert found[name] == wanted, name


def test_what_no_argument_says() -> None:
    """Of each model whose makers' layer has more, in the list behind the table."""
    for name, model in MODELS.items():
        if model.origin.beyond:
            assert re.search(rf"^\* `({name}|{name.split('_')[0]}_\*)`: "
                             rf"{re.escape(model.origin.beyond)}", TEXT, re.MULTILINE), name
