"""README and docs/: examples run, tables are those of the code, scripts exist."""
import csv
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_check_wheel import loaded
from torch import Tensor

from lsnn_ext import _ops, functional
from operator_calls import Calls, needs_compiled

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "docs").is_dir():
    pytest.skip("docs/ is not beside these tests", allow_module_level=True)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_EXAMPLES = [page for page in PAGES if BLOCK.search(page.read_text())]
NEEDED = {"matplotlib", "nir"}
PEERS = {"norse", "snntorch", "sinabs", "spikingjelly"}


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _program(page: Path) -> tuple[str, bool]:
    """All examples of a page as one program, on the lines that they have in the page, and whether
    all are in it: those that import a package that is not installed are left out."""
    text, program, at, is_whole = page.read_text(), [], 0, True
    for block in BLOCK.finditer(text):
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", block[1], re.MULTILINE))
        if all(map(_is_installed, imported & PEERS)):
            line = text.count("\n", 0, block.start(1))
            program.append("\n" * (line - at) + block[1])
            at = line + block[1].count("\n")
        else:
            is_whole = False
    return "".join(program), is_whole


def _without_numbers(report: str) -> str:
    """A report of convert without numbers, and of its comparison only how it begins."""
    return "\n".join(re.sub(r"\d[\d.e+-]*", "#", line).partition(" ulps")[0]
                     for line in report.splitlines())


@needs_compiled
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    program, is_whole = _program(page)
    if page.name == "modules.md":
        missing = [name for name in NEEDED if not _is_installed(name)]
        if missing:
            pytest.skip(f"{', '.join(missing)} not installed")
        if "v_reset" not in importlib.import_module("nir").LIF.__dataclass_fields__:
            # before 1.0.6 a spike subtracts, as the page says
            program = program.replace('"sj_hard"', '"sj_soft"')
    start = "" if "import lsnn_ext" in program else "import torch, lsnn_ext; "
    (tmp_path / "net.py").write_text(start + program)
    ran = subprocess.run([sys.executable, "-W", "ignore", "net.py"], cwd=tmp_path,
                         env={**os.environ, "PYTHONPATH": os.pathsep.join(
                             [str(ROOT), os.environ.get("PYTHONPATH", "")]), "MPLBACKEND": "Agg"},
                         capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, f"{page.name}: {ran.stderr[-2000:]}"
    shown = re.findall(r"^```text\n(\w+: converted\n.*?)^```", page.read_text(), re.DOTALL | re.M)
    for report in shown if is_whole else ():
        assert _without_numbers(report) in _without_numbers(ran.stdout)


def test_numbers_of_reports_are_not_compared() -> None:
    one, other = ("Net: converted\n  loop of 100 iterations\n  each step within 0.9 ulps, a",
                  "Net: converted\n  loop of 99 iterations\n  each step within 1e-1 ulps, b")
    assert _without_numbers(one) == _without_numbers(other) != _without_numbers("Net: converted")


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1200


def test_error_messages_are_those_of_the_code() -> None:
    """Each heading of faq.md is a part of a message: "..." stands for what a call puts there."""
    files = [ROOT / "setup.py", *(ROOT / "lsnn_ext").rglob("*.py"), *(ROOT / "csrc").glob("*/*.h"),
             *(ROOT / "csrc").glob("*/*.cpp")]
    sources = [re.sub(r'"\s*f?"', "", path.read_text()) for path in files]
    headings = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert len(headings) >= 20
    assert [heading for heading in headings if not any(
        all(part in source for part in heading.split("...")) for source in sources)] == []


def _rows(heading: str, page: str = "architecture.md") -> list[list[str]]:
    """The cells of the table below a heading of a page of docs/, without its head."""
    page = (ROOT / "docs" / page).read_text()
    section = re.split(r"^#+ ", page.partition(f" {heading}\n")[2], flags=re.MULTILINE)[0]
    lines = [line.strip("|") for line in section.splitlines() if re.match(r"\| *[^ -]", line)]
    return [[cell.strip() for cell in line.split("|")] for line in lines[1:]]


def test_answers_exist() -> None:
    """Each file that architecture.md names is there and holds the words of the page."""
    rows = _rows("Which file answers which question")
    assert len(rows) >= 20 and all(question.endswith("?") for question, _ in rows)
    for part in (part for _, cell in rows for part in cell.split(";")):
        name, *words = re.findall(r"`([^`]+)`", part)
        text = (ROOT / name).read_text()
        assert [word for word in words if word not in text] == [], name


T, B, I, N = 60, 64, 40, 96
K: dict[str, Any] = {"alpha": 0.9375, "theta": 0.25, "rho": 0.96875}
CALLS: dict[str, Callable[..., Any]] = {
    "`alif` of a current": lambda f, x, z, w, u, k: f.alif(x, u, **K)[0],
    "`layer`, dense inputs": lambda f, x, z, w, u, k: f.layer(x[..., :I], w, u, **K).spikes,
    "`layer`, mostly zero inputs": lambda f, x, z, w, u, k: f.layer(z, w, u, **K).spikes,
    "`layer` with a readout": lambda f, x, z, w, u, k: f.layer(
        z, w, u, w_out=u[:10], k_out=0.9, spikes=False, **K).readout,
    "`linear`, mostly zero inputs": lambda f, x, z, w, u, k: f.linear(z, w),
    "`leaky_readout`": lambda f, x, z, w, u, k: f.leaky_readout(z, w, 0.9)[0],
    "`leaky_readout`, learned decay": lambda f, x, z, w, u, k: f.leaky_readout(z, w, k)[0]}


@pytest.mark.skipif(not _ops.available or _ops._C.emulator, reason="needs the compiled part")
def test_operators_are_those_of_the_page() -> None:
    torch.manual_seed(0)
    x, spikes, w_in = torch.randn(T, B, N), (torch.rand(T, B, I) < 0.05).float(), torch.randn(N, I)
    leaves: list[Tensor] = [one.requires_grad_() for one in (
        w_in / 4, torch.randn(N, N) / 16, torch.full((N,), 0.9))]
    rows = {}
    for name, call in CALLS.items():
        with Calls() as forward:
            result = call(functional, x, spikes, *leaves)
        with Calls() as backward:
            result.square().sum().backward()
        rows[name] = [list(forward.last), list(backward.last)]
    page = {name: [re.findall(r"`([^`]+)`", cell) for cell in cells]
            for name, *cells in _rows("Operators of a call")}
    assert rows == page


def _both_passes(folder: str, file: str) -> list[dict[str, str]]:
    """The rows of a CSV file of bench/results that time forward and backward."""
    with (ROOT / "bench/results" / folder / file).open() as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return [row for row in rows if row.get("timed", "forward+backward") == "forward+backward"]


def _show(number: str) -> str:
    """A number as speed.md writes it: three digits, or whole."""
    value = float(number)
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


@pytest.mark.parametrize(("folder", "way", "yardsticks", "columns"), [
    ("amd-epyc-2-cores", "layer", ("small", "P", "M"), slice(1, 4)),
    ("amd-epyc-2-cores-converted", "converted", ("small", "P"), slice(4, 6))])
def test_models_are_as_much_faster_as_measured(
        folder: str, way: str, yardsticks: tuple[str, ...], columns: slice) -> None:
    measured = [row for row in _both_passes(f"like_for_like/{folder}", "like_for_like.csv")
                if row["way"] == way]
    columns_measured = [[f"{float(row['times_faster']):.1f}" for row in measured
                         if row["yardstick"] == yardstick] for yardstick in yardsticks]
    page = [cells[columns] for cells in _rows("The same equations on both sides", "speed.md")]
    assert page == [list(one) for one in zip(*columns_measured, strict=True)]


def test_layers_take_the_time_that_was_measured() -> None:
    measured = [row for folder in ("layer", "long")
                for row in _both_passes(f"{folder}/amd-epyc-2-cores", "bench.csv")
                if row["contestant"] != "lsnn_ext" or row["base"] == "True"]
    cells = [cell for row in _rows("Layers as they are", "speed.md") for cell in row[1:] if cell]
    ours = {_show(row["median_ms"]) for row in measured if row["contestant"] == "lsnn_ext"}
    peers = {f"{_show(row['median_ms'])} ({_show(row['ratio_to_ours'])})"
             for row in measured if row["contestant"] != "lsnn_ext"}
    assert sorted(cells) == sorted(ours | peers)


def test_neurons_take_the_time_that_was_measured() -> None:
    measured = _both_passes("any_neuron/amd-epyc-2-cores", "any_neuron.csv")
    for name, *cells in _rows("Any neuron", "speed.md"):
        assert cells == [_show(row["ratio"]) for row in measured
                         if row["neuron"] == name.strip("`") and float(row["ratio"]) != 1], name


def test_the_readme_has_the_ranges_of_the_tables() -> None:
    text = (ROOT / "README.md").read_text().replace("\n", " ")
    models = _rows("The same equations on both sides", "speed.md")
    programs = _rows("Public programs, unchanged", "speed.md")
    for before, rows, column in (("nine layers and loops of other packages, ", models, 5),
                                 ("Smaller models gain ", models, 4),
                                 ("published programs ", programs, 2)):
        gains = [float(row[column]) for row in rows]
        assert f"{before}{min(gains)} to {max(gains)}" in text, before


def _anchors(page: str) -> set[str]:
    without_code = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)}


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text()), link


def test_pages_with_examples_are_found() -> None:
    assert {page.name for page in WITH_EXAMPLES} >= {
        "README.md", "index.md", "quick_start.md", "modules.md", "speed.md",
        "any_loop.md", "any_neuron.md"}


def test_the_site_has_every_page() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text[text.index("\nnav:"):])["nav"]))
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


RENDERED = '<span class="arithmatex"><mjx-container><mjx-c class="mjx-c1D465"></mjx-c>' \
    "</mjx-container></span>"


@pytest.mark.parametrize(("html", "wrong"), [
    (f"<p>x: {RENDERED}</p><pre>cost: $HOME, \\(</pre><script>a = '$'</script>", []),
    (RENDERED + '<p><span class="arithmatex">\\(x\\)</span></p>',
     ["expected 2 rendered formulas, got 1", "TeX is shown as it is written: \\(x\\)"]),
    ("<p>and $x$</p>", ["TeX is shown as it is written: and $x$"]),
    ("<pre><code>\\begin{aligned} c</code></pre>",
     ["a block of mathematics is shown as code: \\begin{aligned} c"]),
    (RENDERED.replace("1D465", "5C"), ["a formula shows a backslash"]),
    (RENDERED.replace("<mjx-c ", '<mjx-merror data-mjx-error="Missing }"></mjx-merror><mjx-c '),
     ["a formula has an error: Missing }"])])
def test_formulas_that_are_not_rendered_are_found(html: str, wrong: list[str]) -> None:
    assert loaded("check_site").problems(html) == wrong


def test_workflows_call_scripts_that_are_there() -> None:
    yaml = pytest.importorskip("yaml")
    called: set[str] = set()
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                called |= set(re.findall(r"\.ci/[\w.]+", step.get("run", "")))
    assert called == {".ci/run", ".ci/site", ".ci/check_wheel.py"}
    assert all((ROOT / name).is_file() for name in called)
    for path in sorted((ROOT / ".github").rglob("*.yml")):
        assert yaml.safe_load(path.read_text()), path


@needs_compiled
def test_info_for_reports_of_bugs() -> None:
    ran = subprocess.run([sys.executable, "-m", "lsnn_ext.tools.info"], cwd=ROOT,
                         capture_output=True, text=True, timeout=300,
                         env={**os.environ, "LSNN_CACHE_MB": "17", "SECRET_TOKEN": "hidden",
                              "PYTHONPATH": str(ROOT)})
    assert ran.returncode == 0, ran.stderr
    for part in ("lsnn_ext 0.1.0, Python 3.", "torch 2.", "CPU kernels: ", "LSNN_CACHE_MB=17"):
        assert part in ran.stdout
    spikes = re.search(r"spikes of a small layer are those of the reference \((\d+)", ran.stdout)
    assert spikes and int(spikes[1]) > 0 and "hidden" not in ran.stdout
