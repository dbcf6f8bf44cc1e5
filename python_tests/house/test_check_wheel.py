""".ci/check_wheel.py finds what is wrong with a wheel, and nothing wrong with a right one."""
import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from lsnn_ext import _ops

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "check_wheel.py"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPT.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pytestmark = [
    pytest.mark.skipif(not SCRIPT.is_file(), reason="these tests stand apart from the sources"),
    pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed"),
    pytest.mark.skipif(not _ops.available, reason="the compiled part of lsnn_ext is not built")]


@pytest.fixture
def script() -> ModuleType:
    return loaded("check_wheel")


def _wheel(folder: Path, *left_out: str, **more: bytes) -> Path:
    files = {"lsnn_ext/__init__.py": b"", "lsnn_ext/py.typed": b"",
             "lsnn_ext-1.dist-info/licenses/LICENSE": b"MIT",
             f"lsnn_ext/{Path(_ops._C.__file__).name}": Path(_ops._C.__file__).read_bytes()}
    files = {name: data for name, data in files.items() if name not in left_out} | more
    wheel = folder / "lsnn_ext-1-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return wheel


def test_what_lies_in_it(script: ModuleType, tmp_path: Path) -> None:
    wrong = set(script.wrong_of_wheel(_wheel(tmp_path, "lsnn_ext/py.typed", **{"tests/a.py": b""})))
    assert {"has no lsnn_ext/py.typed", "has tests/a.py"} <= wrong
    module = f"lsnn_ext/{Path(_ops._C.__file__).name}"
    assert "has 0 compiled modules, expected one" in script.wrong_of_wheel(_wheel(tmp_path, module))


def test_the_module_of_this_build(script: ModuleType, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever glibc this machine has: the rest of the checks holds for it."""
    monkeypatch.setattr(script, "NEWEST", dict.fromkeys(script.NEWEST, (99,)))
    assert script.wrong_of_wheel(_wheel(tmp_path)) == []
    said = capsys.readouterr().out
    assert "exports PyInit__C" in said and "libtorch_cpu.so" in said and "GLIBC " in said


def test_what_is_wrong_with_a_module(script: ModuleType, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "NEWEST", dict.fromkeys(script.NEWEST, (1,)))
    monkeypatch.setattr(script, "LIBRARIES", {"libc.so.6"})
    monkeypatch.setattr(script, "EXPORTS", set())
    monkeypatch.setattr(script, "MEGABYTES", 0.001)
    monkeypatch.setattr(script, "MEGABYTES_CUDA", 0.001)
    name = f"lsnn_ext/{Path(_ops._C.__file__).name}"
    built = Path(_ops._C.__file__).read_bytes() + b"\0/home/somebody/csrc/a.cpp\0"
    wrong = "\n".join(script.wrong_of_wheel(_wheel(tmp_path, **{name: built})))
    for part in ("needs GLIBC ", "needs GLIBCXX ", "linked with libtorch_cpu.so",
                 "exports PyInit__C", "has ", "names a folder of its builder: /home/somebody"):
        assert part in wrong
    monkeypatch.setattr(sys, "argv", ["check_wheel", str(_wheel(tmp_path))])
    assert script.main() is True


def test_the_wheel_for_a_python(tmp_path: Path) -> None:
    """.ci/wheels.py finds a wheel by the tag of the Python, and ends where a command fails."""
    script = loaded("wheels")
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    wheels = [tmp_path / f"lsnn_ext-1-{tag}-{tag}-linux_x86_64.whl" for tag in (here, "cp38")]
    assert script.given_for(sys.executable, wheels) == wheels[0].resolve()
    with pytest.raises(SystemExit, match=f"--wheels: expected one for .*, {here}, got 0"):
        script.given_for(sys.executable, wheels[1:])
    with pytest.raises(SystemExit, match="(?s)said before.*wheels: FAILED: .*print"):
        script.run(sys.executable, "-c", "print('said before'); raise SystemExit(3)")
    assert "--exclude libtorch_cpu.so" in script.REPAIR and "torch>=2.11" in script.REQUIREMENTS


def test_versions(script: ModuleType) -> None:
    text = "0x10: Name: GLIBC_2.4  Flags\n Name: GLIBC_2.14 x\n Name: GLIBCXX_3.4.9 y"
    assert script.needed_versions(text) == {"GLIBC": (2, 14), "GLIBCXX": (3, 4, 9)}
