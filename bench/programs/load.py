"""Programs of the manifest: their statements run, their model built, their inputs drawn.

A program is a script more often than a module: it loads data sets and trains when it is imported.
Only those of its statements run that its model depends on, unchanged, with the line numbers of the
file.
"""
import ast
import dis
import importlib.machinery
import json
import linecache
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

MANIFEST = Path(__file__).with_name("manifest.toml")
OWN = Path(__file__).parent  # the folder of programs without a repository


@dataclass(frozen=True)
class Program:
    """An entry of the manifest, whose head explains the fields."""

    name: str
    path: str
    model: str
    inputs: tuple[dict[str, Any], ...]
    repository: str = ""
    commit: str = ""
    roots: tuple[str, ...] = ()
    stubs: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    replaced: tuple[tuple[int, str], ...] = ()
    first: str = ""
    setup: str = ""
    before: str = ""
    parameters: tuple[str, ...] = ()
    cuda_is_cpu: bool = False
    gradients: bool = True
    note: str = ""


@dataclass
class Loaded:
    """A program that is ready to run."""

    model: Callable[..., Any]
    inputs: tuple[Any, ...]
    parameters: dict[str, Tensor]
    before: Callable[[], None]
    gradients: bool
    seed: int = 1
    weights: dict[torch.Size, Tensor] = field(default_factory=dict)

    def run(self) -> Any:
        """What the model returns, with the same random numbers each time."""
        self.before()
        torch.default_generator.manual_seed(self.seed)  # manual_seed takes 80 us
        with torch.set_grad_enabled(self.gradients):
            return self.model(*self.inputs)

    def step(self) -> tuple[Any, dict[str, Tensor | None]]:
        """What the model returns, and the gradients of its parameters."""
        for parameter in self.parameters.values():
            parameter.grad = None
        result = self.run()
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)
                   and one.requires_grad]
        if outputs:
            loss = sum((one * self._weight(one)).sum() for one in outputs)
            loss.backward()
        return result, {name: one.grad for name, one in self.parameters.items()}

    def _weight(self, one: Tensor) -> Tensor:
        """Of an output in the loss, the same one each time."""
        if one.shape not in self.weights:
            random = torch.Generator().manual_seed(3)
            self.weights[one.shape] = torch.randn(one.shape, generator=random)
        return self.weights[one.shape].to(one.dtype)


def programs() -> list[Program]:
    """All entries of the manifest."""
    entries = tomllib.loads(MANIFEST.read_text())["program"]
    return [Program(**{key: tuple(value) if isinstance(value, list) else value
                       for key, value in entry.items()}) for entry in entries]


def folder_of(program: Program, folder: Path) -> Path:
    """The copy of the repository below `folder`: OWNER/NAME."""
    return folder / program.repository if program.repository else OWN


def load(program: Program, folder: Path, dtype: torch.dtype = torch.float32) -> Loaded:
    """A program with its weights and inputs, the same ones each time.

    With float64 the default dtype, torch.float and Tensor.float become float64, so that a program
    that names float32 runs in float64. This holds until the process ends.
    """
    root = folder_of(program, folder)
    path = root / program.path
    sys.path[:0] = [str(path.parent), *(str(root / name) for name in program.roots)]
    for name in program.stubs:
        _stub(name)
    torch.set_default_dtype(dtype)
    if dtype == torch.float64:
        torch.float = torch.float64
        Tensor.float = Tensor.double
    if program.cuda_is_cpu:
        Tensor.cuda = lambda tensor, *_, **__: tensor
    torch.manual_seed(0)
    names = {"torch": torch, "partial": partial, "SimpleNamespace": types.SimpleNamespace,
             **_execute(program, path)}
    exec(program.first, names)
    names["model"] = model = eval(program.model, names)
    exec(program.setup, names)
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    parameters |= {name: eval(name, names) for name in program.parameters}
    before = compile(program.before, "before", "exec")
    random = torch.Generator().manual_seed(2)
    inputs = tuple(_draw(random, dtype=dtype, **entry) for entry in program.inputs)
    return Loaded(model, inputs, parameters, lambda: exec(before, names),
                  program.gradients)


def _draw(random: torch.Generator, dtype: torch.dtype, kind: str, value: Any = None,
          shape: tuple[int, ...] = (), rate: float = 0.02, scale: float = 1.0) -> Any:
    """An argument; scale is the largest number, the standard deviation, or that of a spike."""
    if kind == "constant":
        return value
    uniform = torch.rand(shape, generator=random, dtype=torch.float64)
    drawn = {"uniform": lambda: scale * uniform, "spikes": lambda: scale * (uniform < rate),
             "normal": lambda: scale * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))}
    return drawn[kind]().to(dtype)


def _execute(program: Program, path: Path) -> dict[str, Any]:
    """The globals after those statements of a file that the entry needs."""
    module = types.ModuleType(f"program_{path.stem}")
    module.__file__ = str(path)
    module.__package__ = ".".join(Path(program.path).parent.parts) if program.roots else ""
    sys.modules[module.__name__] = module
    source = _source(path)
    lines = source.splitlines()
    for number, new in program.replaced:
        if not 1 <= number <= len(lines):
            raise ValueError(f"{program.name}: replaced: expected a line of {program.path}, which "
                             f"has {len(lines)}, got {number}")
        line = lines[number - 1]
        lines[number - 1] = line[: len(line) - len(line.lstrip())] + (new or "pass")
    source = "\n".join(lines)
    linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))
    statements = ast.parse(source).body
    needed = ast.parse("\n".join([program.first, program.model, program.setup, program.before,
                                  *program.parameters])).body
    for statement in select(statements, needed, program.run):
        code = ast.Module([statement], type_ignores=[])
        exec(compile(code, str(path), "exec"), module.__dict__)
    return module.__dict__


def _source(path: Path) -> str:
    text = path.read_text()
    if path.suffix != ".ipynb":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]
             if cell["cell_type"] == "code"]
    return "\n".join(line for line in "\n".join(cells).splitlines()
                     if not line.startswith(("!", "%")))


def select(statements: list[ast.stmt], needed: list[ast.stmt],
           run: tuple[str, ...] = ()) -> list[ast.stmt]:
    """The statements that bind the names which `needed` and the selected ones read, in their order.

    run: beginnings of statements that are selected, too.
    """
    names = {name for statement in needed for name in _read(statement)}
    kept: set[int] = set()
    while True:
        more = [i for i, statement in enumerate(statements) if i not in kept
                and (_is_star(statement) or names & _bound(statement)
                     or ast.unparse(statement).startswith(run))]
        if not more:
            return [statements[i] for i in sorted(kept)]
        kept.update(more)
        names |= {name for i in more for name in _read(statements[i])}


def _is_star(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Expr):
        return set()
    return {node.id for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _read(statement: ast.stmt) -> Iterator[str]:
    """The global names that a statement reads, when it runs or later."""
    todo = [compile(ast.Module([statement], type_ignores=[]), "statement", "exec")]
    while todo:
        code = todo.pop()
        todo += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        yield from (str(step.argval) for step in dis.get_instructions(code)
                    if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))


class _Stub(types.ModuleType):
    """A module that is not installed: it has every name, each a class without anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _stub(name: str) -> None:
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        module = _Stub(".".join(parts[:i]))
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=True)
        sys.modules.setdefault(module.__name__, module)
