"""The rules of the house: who may include, import and print what.

Every rule is shown a violation that it must find.
"""
import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
Rule = Callable[[Path], list[str]]

RULES_FILE = ROOT / "docs" / "dependencies.toml"
if not RULES_FILE.exists():
    pytest.skip("docs/ is not beside these tests", allow_module_level=True)
DEPENDENCIES = tomllib.loads(RULES_FILE.read_text())
LOWEST = DEPENDENCIES["includes"].pop("lowest")
INCLUDES: dict[str, set[str]] = {name: set(LOWEST) for name in LOWEST} | {
    part: {*seen, *(LOWEST if "lowest" in seen else ())} for part, seen in DEPENDENCIES[
        "includes"].items()}
IMPORTS: dict[str, list[str]] = DEPENDENCIES["imports"]
FOREIGN: list[str] = DEPENDENCIES["packages"]["foreign"]
EXTRAS: dict[str, list[str]] = DEPENDENCIES["packages"]["extras"]
LINES = 404
BUDGET: dict[str, int] = DEPENDENCIES["budget"]


def _files(root: Path, *patterns: str) -> Iterator[tuple[PurePosixPath, str]]:
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            if path.is_file():
                yield PurePosixPath(path.relative_to(root).as_posix()), path.read_text()


def _csrc(root: Path) -> Iterator[tuple[PurePosixPath, str]]:
    return _files(root, *(f"csrc/**/*.{suffix}" for suffix in ("h", "cpp", "cu", "cuh")))


def _without_comments(text: str) -> str:
    """C++ without comments, on the same lines; what stands in quotes is kept."""
    def blank(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith('"') else "\n" * found[0].count("\n")

    return re.sub(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', blank, text, flags=re.DOTALL)


def _found(path: PurePosixPath, text: str, pattern: str) -> list[str]:
    return [f"{path}:{number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1)
            if re.search(pattern, line)]


# ---------------------------------------------------------------------------------------------- C++
def includes_go_down(root: Path) -> list[str]:
    bad = []
    for path, text in _csrc(root):
        part = path.parts[1]
        for target in re.findall(r'^\s*#\s*include\s*"([^"]+)"', _without_comments(text),
                                 re.MULTILINE):
            where: list[str] = []  # the path of the target, from csrc/
            for step in (*path.parts[1:-1], *PurePosixPath(target).parts):
                where = where[:-1] if step == ".." else [*where, step]
            if part not in INCLUDES or not where or where[0] not in INCLUDES[part]:
                bad.append(f"{path}: includes {target}")
    return bad


def headers_from_outside_have_their_place(root: Path) -> list[str]:
    bad = []
    for headers, parts in DEPENDENCIES["headers"].items():
        pattern = rf'^\s*#\s*include\s*[<"]({"|".join(map(re.escape, headers.split()))})\b'
        bad += [line for path, text in _csrc(root)
                if path.parts[1] not in parts for line in _found(path, text, pattern)]
    return bad


def only_platform_asks_who_compiles(root: Path) -> list[str]:
    compilers = (r"\b(__CUDACC__|__CUDA_ARCH__|__NVCC__|__HIPCC__|__GNUC__|__clang__|_MSC_VER"
                 r"|__INTEL_\w*COMPILER)\b")
    machines = r"\b(__x86_64__|__i386__|__aarch64__|__SSE\w*__|__AVX\w*__|__FMA__)\b"
    bad = []
    for path, text in _csrc(root):
        code = _without_comments(text)
        bad += _found(path, code, compilers) if path.name != "platform.h" else []
        # Instruction sets are the CPU kernels' alone, and the switch of fibers is written for each
        # machine.
        bad += _found(path, code,
                      machines) if path.parts[1] != "cpu" and path.name != "fiber.cpp" else []
    return bad


def kernels_do_not_print(root: Path) -> list[str]:
    pattern = (r"\b(v?f?printf|f?puts|putchar|_?exit|quick_exit|abort|terminate|assert)\s*\("
               r"|\bstd::(cout|cerr|clog)\b")
    return [line for path, text in _csrc(root) if "tests" not in path.parts
            for line in _found(path, _without_comments(text), pattern)]


# ------------------------------------------------------------------------------------------- Python
def messages_have_one_form(root: Path) -> list[str]:
    """Errors of the operators are "name: expected X, got Y"."""
    return [f"{path}: {' '.join(found[1].split())}"
            for path, text in _files(root, "csrc/torch/*.h", "csrc/torch/*.cpp")
            for found in re.finditer(r'\bLSNN_EXPECT\(((?:"[^"]*"|[^";])*)\);',
                                     _without_comments(text))
            if '"' in found[1]
            and not re.search(r"expected .*\bgot\b|not enough memory", found[1], re.DOTALL)]


def _imports(path: PurePosixPath, text: str) -> Iterator[str]:
    """The full names of what a module imports; a.b of `from a import b`, as b may be a module."""
    package = path.parts[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[: len(package) - node.level + 1], node.module or "")
                            if node.level else (node.module or "",)).strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def package_imports_go_down(root: Path) -> list[str]:
    bad = []
    for path, text in _files(root, "lsnn_ext/**/*.py"):
        part = PurePosixPath(path.parts[1]).stem
        paths = (other for other, _ in _files(root, "lsnn_ext/**/*.py"))
        submodules = {"_C", *(PurePosixPath(other.parts[1]).stem for other in paths)}
        for name in _imports(path, text):
            package, *inside = name.split(".")
            known = package == "lsnn_ext" and inside and inside[0] in submodules
            if known and inside[0] not in [part, *IMPORTS.get(part, [])]:
                bad.append(f"{path}: imports {name}")
    return bad


def imports_have_no_cycle(root: Path) -> list[str]:
    """Of files, type checking included; an import inside of a function waits until it is called."""
    files = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): (path, text)
             for path, text in _files(root, "lsnn_ext/**/*.py")}
    graph = {}
    for module, (path, text) in files.items():
        tree = ast.parse(text)
        for node in [*ast.walk(tree)]:
            if isinstance(node, ast.FunctionDef):
                node.body = [ast.Pass()]
        names = _imports(path, ast.unparse(tree))
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in names
                         if not name.endswith("._C")} & files.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"{files[error.args[1][0]][0]}: imports itself: {' <- '.join(error.args[1])}"]
    return []


def package_imports_torch_and_numpy_only(root: Path) -> list[str]:
    """Beside these a module may import its extras, but not when it is itself imported."""
    allowed = {"lsnn_ext", *FOREIGN, *sys.stdlib_module_names}
    bad = []
    for path, text in _files(root, "lsnn_ext/**/*.py"):
        extras = set(EXTRAS.get(PurePosixPath(path.parts[1]).stem, ()))
        at_once = "\n".join(ast.unparse(node) for node in ast.parse(text).body
                            if isinstance(node, ast.Import | ast.ImportFrom))
        early = {name.split(".")[0] for name in _imports(path, at_once)}
        bad += [f"{path}: imports {name}" for name in _imports(path, text)
                if (package := name.split(".")[0]) not in allowed
                and (package not in extras or package in early)]
    return bad


# ----------------------------------------------------------------------------------------- the rest
def build_is_for_every_machine(root: Path) -> list[str]:
    """Neither for the processor of the builder alone nor with other numbers than IEEE's."""
    pattern = (
        r"^[^#]*(-m(arch|tune|cpu)=native|-ffast-math|-Ofast|-funsafe-math|-ffp-contract=(fast|on))"
    )
    return [line for path, text in _files(root, "CMakeLists.txt", "setup.py", "pyproject.toml",
                                          "Makefile") for line in _found(path, text, pattern)]


def files_are_short(root: Path) -> list[str]:
    python = (f"{folder}/**/*.py" for folder in ("lsnn_ext", "python_tests", "bench", "examples"))
    code = [*_csrc(root), *_files(root, "setup.py", "CMakeLists.txt", "Makefile", *python)]
    lengths = [(path, len(text.splitlines())) for path, text in code]
    return [f"{path}: {n} lines, more than {LINES}" for path, n in lengths if n > LINES]


def folders_keep_their_budget(root: Path) -> list[str]:
    """Lines of code, and words of docs, as [budget] says; a commit that raises one says why."""
    code = {"lsnn_ext": ["py"], "csrc": ["h", "cpp", "cu", "cuh", "py"], "python_tests": ["py"]}
    counts = [(part, {path: len(text.splitlines()) for suffix in suffixes
                      for path, text in _files(root, f"{part}/**/*.{suffix}")})
              for part, suffixes in code.items()]
    counts.append(("docs", {path: len(text.split()) for path, text in _files(
        root, "README.md", "docs/**/*.md")}))
    return [f"{max(count, key=lambda path: count[path])}: the largest of {part}, which has "
            f"{sum(count.values())}, more than {BUDGET[part]}"
            for part, count in counts if sum(count.values()) > BUDGET[part]]


def dependencies_are_not_pinned(root: Path) -> list[str]:
    bad = []
    for path, text in _files(root, "pyproject.toml"):
        table = tomllib.loads(text)
        project = table.get("project", {})
        groups = {"build-system": table.get("build-system", {}).get("requires", []),
                  "project": project.get("dependencies", []), **project.get("optional-dependencies",
                                                                            {})}
        bad += [f"{path}: {group} pins "
                f"{wanted}" for group, all_wanted in groups.items() for wanted in all_wanted
                if "==" in wanted]
    return bad


def installed_is_what_an_index_has(root: Path) -> list[str]:
    """Advice to install names the versions of pyproject.toml, and extras that stand there, of the
    sources: no index has the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = {*project["dependencies"], *(one for group in extras.values() for one in group)}
    folders = ("lsnn_ext", "bench", "examples")
    bad = []
    for path, text in _files(root, *(f"{folder}/**/*.py" for folder in folders), "docs/**/*.md",
                             "README.md", "CONTRIBUTING.md"):
        joined = re.sub(r"""['"]\n\s*f?['"]""", "", text)
        for advice in re.findall(r"pip\s+install\s([^`)]{,100})", joined):
            bad += [f"{path}: installs {name}[{names}]"
                    for name, names in re.findall(r"([\w.]+)\[([\w,]+)\]", advice)
                    if name != "." or not {*names.split(",")} <= {*extras}]
            bad += [f"{path}: installs {one}" for one in re.findall(r"[\w-]+>=[\d.]*\d", advice)
                    if one not in listed]
    return bad


# a rule, a file, and a text that breaks the rule in its last line
VIOLATIONS: list[tuple[Rule, str, str]] = [
    (includes_go_down, "csrc/cpu/a.h", '#include "../alif_math.h"\n#include "../torch/checks.h"'),
    (includes_go_down, "csrc/cpu/a.h", '#include "../cuda/config.h"'),
    (includes_go_down, "csrc/alif.h", '#include "dynamics.h"\n#include "alif_math.h"'),
    (includes_go_down, "csrc/alif_math.h", '#include "alif.h"\n#include "cpu/simd.h"'),
    (includes_go_down, "csrc/tests/a.cpp", '#include "../cpu/run.h"\n#include "../torch/checks.h"'),
    (includes_go_down, "csrc/emulator/a.h", '#include "types.h"\n#include "../alif.h"'),
    (includes_go_down, "csrc/other.h", '#include "alif.h"'),
    (headers_from_outside_have_their_place, "csrc/cpu/a.h",
     "#include <vector>\n#include <torch/csrc/stable/tensor.h>"),
    (headers_from_outside_have_their_place, "csrc/alif.h", "#include <pybind11/pybind11.h>"),
    (only_platform_asks_who_compiles, "csrc/cuda/a.cuh",
     "// not __CUDACC__\n#if defined(__CUDACC__)"),
    (only_platform_asks_who_compiles, "csrc/cpu/a.h",
     "#if defined(__x86_64__)\n#elif defined(_MSC_VER)"),
    (only_platform_asks_who_compiles, "csrc/alif_math.h", "#ifdef __AVX2__"),
    (kernels_do_not_print, "csrc/cpu/a.h",
     '// printf("fine")\nsnprintf(t, 1, "x");\nstd::printf("%d", 1);'),
    (kernels_do_not_print, "csrc/torch/a.cpp", "std::cerr << 1;"),
    (kernels_do_not_print, "csrc/cpu/a.cpp", "if (wrong) std::abort();"),
    (messages_have_one_form, "csrc/torch/a.h",
     'LSNN_EXPECT(ok, "x: expected 1, got ", x);\nLSNN_EXPECT(ok, "x must be 1, got ", x);'),
    (package_imports_go_down, "lsnn_ext/reference.py", "import torch\nfrom . import functional"),
    (package_imports_go_down, "lsnn_ext/functional.py",
     "from . import _ops\nfrom .modules import ALIF"),
    (package_imports_go_down, "lsnn_ext/modules/alif.py",
     "from .. import functional\nfrom .. import tools"),
    (package_imports_go_down, "lsnn_ext/modules/alif.py", "import lsnn_ext._C"),
    (package_imports_go_down, "lsnn_ext/other.py",
     "def f():\n    import math\n    from lsnn_ext._ops import alif"),
    (imports_have_no_cycle, "lsnn_ext/modules/alif.py",
     "def f():\n    from . import alif\nfrom . import alif"),
    (package_imports_torch_and_numpy_only, "lsnn_ext/modules/a.py",
     "import math\nimport scipy.sparse"),
    (package_imports_torch_and_numpy_only, "lsnn_ext/a.py",
     "import numpy as np\nfrom bench.measure import Result"),
    (package_imports_torch_and_numpy_only, "lsnn_ext/a.py", "from examples import mnist"),
    (package_imports_torch_and_numpy_only, "lsnn_ext/tools/plot.py",
     "import math\nimport matplotlib"),
    (package_imports_torch_and_numpy_only, "lsnn_ext/tools/plot.py", "import math\nimport nir"),
    (build_is_for_every_machine, "CMakeLists.txt", "# never -march=native\nadd_compile_options(-O3 "
                                                   "-march=native)"),
    (build_is_for_every_machine, "setup.py", 'flags = ["-ffast-math"]'),
    (files_are_short, "lsnn_ext/a.py", "x = 1\n" * (LINES + 1)),
    (files_are_short, "csrc/cpu/a.h", "\n" * (LINES + 1)),
    (folders_keep_their_budget, "lsnn_ext/a.py", "\n" * (BUDGET["lsnn_ext"] + 1)),
    (folders_keep_their_budget, "docs/a.md", "word " * BUDGET["docs"] + "\nword"),
    (dependencies_are_not_pinned, "pyproject.toml",
     '[project]\ndependencies = ["numpy", "torch==2.11"]'),
    (dependencies_are_not_pinned, "pyproject.toml", '[project.optional-dependencies]\ntest = ["a '
                                                    '>= 8", "b == 1"]'),
    (installed_is_what_an_index_has, "lsnn_ext/a.py",
     'a = \'pip install ".[plot]"\'\nb = ("missing; pip "\n     "install lsnn_ext[plot]")'),
    (installed_is_what_an_index_has, "docs/a.md",
     '`pip install ".[plot,nir]"`\n`pip install ".[plot,pictures]"`'),
    (installed_is_what_an_index_has, "README.md",
     'pip install "nir>=1.0.4"\npip install -U "nir>=2"'),
    (dependencies_are_not_pinned, "pyproject.toml", '[build-system]\nrequires = ["cmake==3.22.*"]')]
RULES = list(dict.fromkeys(rule for rule, _, _ in VIOLATIONS))
CXX_RULES = {includes_go_down, headers_from_outside_have_their_place,
             only_platform_asks_who_compiles, kernels_do_not_print, messages_have_one_form}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule) -> None:
    if rule in CXX_RULES and not (ROOT / "csrc").is_dir():
        pytest.skip("these tests stand apart from the sources")
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "name", "text"), VIOLATIONS,
                         ids=[f"{rule.__name__}-{name}" for rule, name, _ in VIOLATIONS])
def test_violation_is_found(rule: Rule, name: str, text: str, tmp_path: Path) -> None:
    *innocent, _ = text.rstrip("\n").split("\n")
    path = tmp_path / name
    # so that the names of the package are known
    for module in (*IMPORTS, "modules/__init__", "_ops/__init__"):
        (tmp_path / "lsnn_ext" / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lsnn_ext" / f"{module}.py").touch()
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(innocent) < LINES:
        path.write_text("\n".join(innocent))
        assert rule(tmp_path) == []
    path.write_text(text)
    assert len(found := rule(tmp_path)) == 1 and found[0].startswith(name), found


def test_the_rules_name_what_is_there() -> None:
    """A part that was moved or renamed leaves no rule behind."""
    missing = [name for name in IMPORTS if not list((ROOT / "lsnn_ext").glob(f"{name}*"))]
    if (ROOT / "csrc").is_dir():
        missing += [name for name in INCLUDES if not (ROOT / "csrc" / name).exists()]
    assert missing == []


def test_the_rules_see_the_project() -> None:
    seen = {str(path) for path, _ in [*_csrc(ROOT), *_files(ROOT, "lsnn_ext/**/*.py")]}
    assert seen >= {"lsnn_ext/functional.py", "lsnn_ext/modules/alif.py"}
    if (ROOT / "csrc").is_dir():
        assert seen >= {"csrc/alif.h", "csrc/cpu/simd.h", "csrc/torch/module.cpp"}
