"""The private names of torch that lsnn_ext uses: present, tested, in one file."""
import ast
import contextlib
import importlib
import tomllib
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lsnn_ext._core import torch_internals as internals
from lsnn_ext.codegen.gradients import differentiate

PACKAGE = Path(internals.__file__).parent
# the reports name it: the first that breaks one of these is the one to look at
VERSION = f"torch {torch.__version__}"


def test_an_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the package is imported; the oldest is that of pyproject.toml."""
    module = importlib.import_module("lsnn_ext._core")
    for version in ("2.11.0+cpu", "2.13.0a0+git1234", "3.0.1"):
        monkeypatch.setattr(torch, "__version__", version)
        importlib.reload(module)
    for version in ("2.10.1", "1.13.0+cu117"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(ImportError, match=f"expected torch 2.11 or newer, got torch {version}"
                                              .replace("+", r"\+")):
            importlib.reload(module)
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        wanted = tomllib.loads(project.read_text())["project"]["dependencies"]
        assert f"torch>={'.'.join(map(str, module.OLDEST_TORCH))}" in wanted


def test_transforms() -> None:
    found: list[tuple[bool, bool, bool]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        found.append((internals.is_transforming(), internals.is_batched(x),
                      internals.requires_gradient(x)))
        return x.square().sum()

    x = torch.ones(3)
    look(x)
    torch.func.grad(look)(x)
    torch.func.grad(lambda x: torch.func.grad(look)(x).sum())(x)
    torch.func.vmap(look)(x)
    torch.func.vmap(torch.func.grad(look))(x)
    torch.func.grad(lambda x: torch.func.vmap(look)(x).sum())(x)
    torch.func.vmap(look)(x.requires_grad_())
    assert found == [(False, False, False), (True, False, True), (True, False, True),
                     (True, True, False), (True, True, True), (True, True, True),
                     (True, True, True)], VERSION


def test_no_mode_sees_what_is_called_without_modes() -> None:
    with torch._subclasses.fake_tensor.FakeTensorMode():
        with internals.without_modes():
            made, active = torch.ones(2), internals.is_mode_active()
        assert type(made) is torch.Tensor and not active, VERSION
        assert internals.is_mode_active(), VERSION


def test_constants_of_graphs() -> None:
    calls: list[int] = []

    def constant(size: int) -> int:
        calls.append(size)
        return len(calls)

    internals.mark_constant(constant)
    compiled = torch.compile(lambda x: x + constant(x.shape[0]), backend="eager", fullgraph=True)
    assert [float(compiled(torch.zeros(3))[0]) for _ in range(2)] == [1.0, 1.0], VERSION
    assert calls == [3], VERSION


def test_batches_of_gradients() -> None:
    found: list[tuple[bool, bool]] = []
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda g: found.append((internals.is_legacy_batched(g),
                                            internals.is_batched(g))))
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    assert found == [(False, False), (True, True)], VERSION


def test_forward_mode() -> None:
    assert not internals.is_forward_mode(), VERSION
    with torch.autograd.forward_ad.dual_level():
        assert internals.is_forward_mode(), VERSION
    assert not internals.is_forward_mode(), VERSION


class Functions(torch.overrides.TorchFunctionMode):
    """Counts calls."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_modes() -> None:
    class Operators(internals.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    assert not internals.is_mode_active(), VERSION
    with Functions():
        assert internals.is_mode_active() and not internals.is_mode_active(functions=False), VERSION
    with Operators():
        assert internals.is_mode_active() and internals.is_mode_active(functions=False), VERSION
        torch.ones(2) + 1
    assert "aten.add.Tensor" in seen, VERSION
    with internals.ObservingMode():
        assert not internals.is_mode_active(), VERSION
        with Operators():
            assert internals.is_mode_active(), VERSION


def test_a_mode_of_functions_is_disabled_if_it_is_the_innermost_one() -> None:
    with Functions() as outer, Functions() as inner:
        for mode in (outer, inner):
            with internals.without_function_mode(mode):
                torch.ones(2)
        assert (outer.calls, inner.calls) == (2, 1), VERSION


@pytest.mark.parametrize("has_modes", [True, False])
def test_gradients_and_modes_of_functions(has_modes: bool) -> None:
    """As torch.autograd.grad, which disables the modes and imports more."""
    x, unused = (torch.ones(3, requires_grad=True) for _ in range(2))

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient * 2

    y, ones = Double.apply(x), torch.ones(3)
    with Functions() as mode:
        for _ in range(2):  # the graph stays usable
            found = differentiate([y], [x, unused], [ones], has_modes)
    assert found[1] is None and torch.equal(found[0], 2 * ones), VERSION
    assert mode.calls == (2 if has_modes else 0), VERSION


def test_below_autograd() -> None:
    x = torch.ones(2, requires_grad=True)
    with internals.below_autograd():
        assert not (x * 2).requires_grad, VERSION
    assert (x * 2).requires_grad, VERSION


def test_backward_passes() -> None:
    """Their numbers differ, also inside each other, and a pass knows where it will come."""
    seen: list[tuple[int, bool]] = []
    x, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    node = (other * 2).sum()

    def look(g: torch.Tensor) -> None:
        seen.append((internals.current_backward_pass(), internals.is_reached(node.grad_fn)))

    def inside(_: torch.Tensor) -> None:
        with torch.enable_grad():
            again = x * 1
            again.register_hook(look)
            torch.autograd.grad(again.sum(), x)

    y = x * 3
    y.register_hook(look)
    y.register_hook(inside)
    loss = y.sum() + node
    torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()
    assert [runs for _, runs in seen] == [False, False, True, False], VERSION
    assert 0 <= min(seen)[0] and len({number for number, _ in seen}) == 4, VERSION
    assert internals.current_backward_pass() < 0, VERSION


class _Object:
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_pass_keeps_an_object(fails: bool) -> None:
    x, kept = torch.ones(2, requires_grad=True), weakref.WeakSet[_Object]()
    y = x * 3

    def keep(_: torch.Tensor) -> None:
        kept.add(one := _Object())
        internals.keep_during_pass(one)

    def look(_: torch.Tensor) -> None:
        assert len(kept) == 1, VERSION
        if fails:
            raise ZeroDivisionError

    y.register_hook(keep)
    x.register_hook(look)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        y.sum().backward()
    assert not kept, VERSION


def test_keys_after_autograd() -> None:
    keys = torch._C._dispatch_keys(torch.ones(2))
    assert keys.has(torch._C.DispatchKey.AutogradCPU), VERSION
    behind = internals.keys_after_autograd(keys)
    assert behind.has(torch._C.DispatchKey.CPU) and not behind.has(
        torch._C.DispatchKey.AutogradCPU), VERSION


def test_keys_of_memory() -> None:
    for lazy, key in ((torch.ones(2)._neg_view(), torch._C.DispatchKey.Negative),
                      (torch._efficientzerotensor(2), torch._C.DispatchKey.ZeroTensor)):
        keys = torch._C._dispatch_keys(lazy)
        behind = internals.keys_of_memory(keys)
        assert keys.has(key) and not behind.has(key), VERSION
        assert behind.has(torch._C.DispatchKey.CPU), VERSION


def test_zero_tensors() -> None:
    assert internals.is_zero_tensor(torch._efficientzerotensor(3)), VERSION
    assert not internals.is_zero_tensor(torch.zeros(3)), VERSION


def test_storages() -> None:
    one, other = torch.zeros(3), torch.zeros(3)
    assert internals.find_storage(one) == internals.find_storage(one[1:]), VERSION
    assert internals.find_storage(one) != internals.find_storage(other), VERSION


def test_assertions_on_a_device() -> None:
    internals.assert_on_device(torch.tensor(True), "never")
    with pytest.raises(RuntimeError, match="some message"):
        internals.assert_on_device(torch.tensor(False), "some message")


def test_trees() -> None:
    doubled = internals.tree_map(lambda x: 2 * x, [torch.ones(1), (torch.ones(1),)])
    assert doubled[1][0].item() == 2, VERSION
    assert internals.tree_leaves([1, (2, [3]), {"a": 4}]) == [1, 2, 3, 4], VERSION


def test_hooks_and_calls() -> None:
    module = nn.Linear(2, 2)
    assert not internals.has_hooks(module) and not internals.is_compiled_module(module), VERSION
    for register in (module.register_forward_hook, module.register_forward_pre_hook,
                     module.register_full_backward_hook, module.register_full_backward_pre_hook,
                     nn.modules.module.register_module_forward_hook):
        handle = register(lambda *_: None)
        assert internals.has_hooks(module), (VERSION, register)
        handle.remove()
        assert not internals.has_hooks(module), (VERSION, register)
    module.compile(backend="eager")
    assert internals.is_compiled_module(module), VERSION


def _private(tree: ast.AST) -> Iterator[str]:
    """Names of torch that begin with an underscore, as they are imported or reached."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] == "torch"
            and not node.level):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names, value = [node.attr], node.value
            while isinstance(value, ast.Attribute):
                names, value = [value.attr, *names], value.value
            if not isinstance(value, ast.Name) or value.id != "torch":
                continue
        else:
            continue
        yield from (f"{ast.unparse(node)}" for name in names if name.startswith("_")
                    and not name.startswith("__"))


def test_they_stand_in_one_file() -> None:
    found = {f"{path.name}: {name}" for path in PACKAGE.rglob("*.py") if path.name
             != "torch_internals.py"
             for name in _private(ast.parse(path.read_text()))}
    assert not found
    assert len(set(_private(ast.parse((PACKAGE / "torch_internals.py").read_text())))) > 5


class _Kept(torch.autograd.Function):
    """Twice its input, which it saves."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return 2 * g + 0 * ctx.saved_tensors[0]


def test_freed_graphs() -> None:
    x = torch.ones(3, requires_grad=True)
    for retain in (True, False):
        y = _Kept.apply(x).unsqueeze(0)
        assert not internals.is_graph_freed(y), VERSION
        y.sum().backward(retain_graph=retain)
        assert internals.is_graph_freed(y) != retain, VERSION
    assert not internals.is_graph_freed(x) and not internals.is_graph_freed(2 * x), VERSION
