"""The compiled table, README and pages of docs/ follow lsnn_ext/models.py."""
import math
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from lsnn_ext import _ops
from lsnn_ext._core.surrogates import SURROGATES
from lsnn_ext._ops.load import check_tables
from lsnn_ext.models import COEFFICIENTS, MODELS, SURROGATE_NAMES, Default, Model, Rate
from lsnn_ext.modules.neuron import RANGES
from operator_calls import needs_compiled

ROOT = Path(__file__).resolve().parents[2]
needs_docs = pytest.mark.skipif(not (ROOT / "docs").is_dir(),
                                reason="docs/ is not beside these tests")
needs_sources = pytest.mark.skipif(not (ROOT / "csrc").is_dir(),
                                   reason="these tests stand apart from the sources")
CHOICES = ("test", "scale", "reset", "when", "drive", "detach")


# -------------------------------------------------------------------------------- the compiled part
@needs_compiled
def test_the_compiled_table_is_this_one() -> None:
    check_tables(_ops._C)
    compiled = {model["name"]: model for model in _ops._C.dynamics()}
    assert list(compiled) == list(_ops.DYNAMICS) == list(MODELS)
    assert compiled["sinabs_zero"] == {
        "name": "sinabs_zero", "test": "new", "ge": True, "scale": "A", "reset": "to",
        "when": "now", "drive": "spike", "detach": {"thr", "reset"}}


@needs_compiled
@pytest.mark.parametrize("what", ["coefficients", "surrogates", "dynamics", "a choice"])
def test_a_compiled_part_of_another_table_is_refused(what: str) -> None:
    tables: dict[str, Any] = {
        name: getattr(_ops._C, name)() for name in ("coefficients", "surrogates", "dynamics")}
    if what == "a choice":
        tables["dynamics"][3]["reset"] = "A"
    else:
        tables[what] = tables[what][1:]
    with pytest.raises(ImportError, match="expected the .* of lsnn_ext/models.py, got those of "
                                          "another version"):
        check_tables(
            SimpleNamespace(**{name: lambda table=table: table for name, table in tables.items()}))


def _compiled_with(models: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """csrc/alif_math.h in the compiler, with this text of models.py."""
    for name in ("csrc/model_table.py", "lsnn_ext/models.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "lsnn_ext" / "models.py").write_text(models)
    made = [sys.executable, "-I", "-S", str(tmp_path / "csrc" / "model_table.py"),
            str(tmp_path / "made")]
    subprocess.run(made, check=True, capture_output=True)
    compiler = shutil.which("c++") or shutil.which("g++") or pytest.skip("no C++ compiler")
    source = tmp_path / "use.cpp"
    source.write_text(f'#include "{ROOT}/csrc/alif_math.h"\n' + "".join(
        f"auto use_{name}(lsnn::Surrogate s) {{ return lsnn::{name}(s, {arguments}); }}\n"
        for name, arguments in (("psi_shape", "1.0"), ("psi_integral", "1.0"),
                                ("psi_vanishes", "1.0, 1.0, true, 1.0"))))
    flags = "-std=gnu++20", "-Wall", "-Werror=switch", "-fsyntax-only", f"-I{tmp_path / 'made'}"
    return subprocess.run([compiler, *flags, str(source)], capture_output=True, text=True)


@needs_sources
@pytest.mark.parametrize(("old", "new", "said"), [
    ("", "", ""),
    ('    "se_adlif": Model(', '    "another": Model(_BELLEC, ge=True, detach=("thr",)),\n    '
                               '"se_adlif": Model(', ""),
    ('reset="to"', 'reset="new kind"', "place"),
    ('detach=("thr",)', 'detach=("new path",)', "place"),
    ('    "multi_gaussian",\n', '    "multi_gaussian", "parabola",\n',
     "(?s)(parabola.* not handled in switch.*){3}"),
], ids=["as it is", "a model more", "an unknown reset", "an unknown path", "an unknown surrogate"])
@pytest.mark.slow
def test_what_the_kernels_do_not_know_is_not_compiled(old: str, new: str, said: str,
                                                      tmp_path: Path) -> None:
    models = (ROOT / "lsnn_ext" / "models.py").read_text()
    assert old in models
    ran = _compiled_with(models.replace(old, new), tmp_path)
    assert (ran.returncode == 0) == (not said), ran.stderr
    assert re.search(said, ran.stderr)


# ---------------------------------------------------------------------------------------- the table
def test_surrogates_have_their_functions() -> None:
    assert tuple(SURROGATES) == SURROGATE_NAMES
    assert {model.surrogate for model in MODELS.values()} <= set(SURROGATE_NAMES)


def test_rules_that_hold_for_every_model() -> None:
    assert all((model.R == "0") == (model.reset == "to") for model in MODELS.values())
    assert all((model.R == "unused") == (model.reset == "A") for model in MODELS.values())


def test_origins_have_what_modules_take() -> None:
    """All constants that every model needs, and others by names that modules know."""
    for name, model in MODELS.items():
        origin, own = model.origin, model.origin.defaults
        assert origin.name and origin.source, name
        assert {"beta", "threshold", "refractory", "autapses"} <= set(own), name
        assert ("tau_mem" in own) != ("alpha" in own) and ("tau_adapt" in own) != ("rho" in own)
        for known in (own, origin.alif, origin.lif, origin.ranges):
            assert set(known) <= {*RANGES, "refractory", "autapses", "delay"}, name


# ---------------------------------------------------------------------------------------- the pages
def _rows(text: str, head: str) -> list[list[str]]:
    """The cells of the Markdown table whose first line begins so."""
    lines = iter(text[text.index(f"\n{head}") + 1:].splitlines()[2:])
    table = []
    for line in lines:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in line.strip("|").split(" |")])
    return table


def _number(value: float | None) -> str:
    return r"$\theta$" if value is None else r"$1/\pi$" if value == 1 / math.pi else f"{value:g}"


def _described(name: str, model: Model) -> list[str]:
    """A row of the table in docs/equations.md."""
    words = {"1-alpha": r"$1-\alpha$", "1-rho": r"$1-\rho$", "theta": r"$\theta$",
             "alpha": r"$\alpha$"}
    others = [f"drive {model.drive}"] if model.drive != "spike" else []
    others += [rf"$\beta={words[model.beta][1:-1]}$"] if model.beta != "0" else []
    others += [rf"$\eta={model.eta:g}$"] if model.eta else []
    return [f"`{name}`", model.test + (" ≥" if model.ge else ""), model.scale, model.reset,
            model.when, " ".join(model.detach), model.surrogate, _number(model.dampening),
            _number(model.width),
            *(words.get(rule, rule) for rule in (model.kappa, model.q, model.R)), ", ".join(others)]


@pytest.fixture
def equations() -> str:
    return (ROOT / "docs" / "equations.md").read_text()


@needs_docs
def test_the_page_has_the_table(equations: str) -> None:
    assert _rows(equations, "| model | test |") == [
        _described(name, model) for name, model in MODELS.items()]
    assert f"names one of {len(MODELS)} models" in equations


@needs_docs
def test_the_page_has_the_sources(equations: str) -> None:
    papers = {tuple(re.findall(r"`([\w*]+)`", names)): paper
              for names, _, paper in _rows(equations, "| models | neuron | paper")}
    for name, model in MODELS.items():
        found = [paper for names, paper in papers.items()
                 if any(fnmatch(name, pattern) for pattern in names[:1])]
        assert found == [model.origin.source], name


@needs_docs
def test_the_page_has_the_choices(equations: str) -> None:
    kinds = get_type_hints(Model)
    table = {choice: re.findall(r"\*\*(\w+)\*\*", text)
             for choice, text in _rows(equations, "| choice | values")}
    assert set(table) == {*CHOICES, "ge"}
    for choice in set(CHOICES) - {"detach"}:
        assert table[choice] == list(get_args(kinds[choice])), choice
    paths = [name for name, _ in _rows(equations, "| name | no gradient through")]
    assert paths == list(get_args(get_args(kinds["detach"])[0]))


@needs_docs
def test_the_page_has_surrogates_and_coefficients(equations: str) -> None:
    names = [row[0].strip("`") for row in _rows(equations, "| name | $\\psi(m)$")]
    assert names == list(SURROGATE_NAMES)
    given = [re.findall(r"`(\w+)`", row[0])[0]
             for row in _rows(equations, "| coefficient | what it does")]
    assert sorted(given) == sorted(COEFFICIENTS)


@needs_docs
def test_the_readme_names_the_models() -> None:
    readme = (ROOT / "README.md").read_text()
    named = [name
             for cells in _rows(readme, "| models | neuron")
             for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(named) == sorted(MODELS)
    assert f"One recurrence with {len(MODELS)} models" in readme


def _constant(name: str, value: Default) -> str:
    if isinstance(value, str):
        return f"`{name}` —"
    return f"`{name}=1-dt/{value.tau:g}`" if isinstance(value, Rate) else f"`{name}={value}`"


def _said(value: Default) -> str:
    if value is None:
        return "the rule"
    return "—" if isinstance(value, str) else f"{value:g}"


@needs_docs
def test_the_page_of_modules_has_the_table() -> None:
    text = (ROOT / "docs" / "modules.md").read_text()
    found = {cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
             for cells in (line.strip("|").split(" |") for line in text.splitlines()
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
        wanted += [said(key, _said(own[key])) for key in ("beta", "threshold", "refractory")]
        wanted += [str(own["autapses"])]
        wanted += [", ".join(_constant(key, own[key]) for key in ("sigma", "p", "q", "delay")
                             if key in own)]
        assert found[name] == wanted, name


@needs_docs
def test_the_page_of_modules_has_what_no_argument_says() -> None:
    """Of each model whose makers' layer has more, in the list behind the table."""
    text = (ROOT / "docs" / "modules.md").read_text()
    for name, model in MODELS.items():
        if model.origin.beyond:
            assert re.search(rf"^\* `({name}|{name.split('_')[0]}_\*)`: "
                             rf"{re.escape(model.origin.beyond)}", text, re.MULTILINE), name
