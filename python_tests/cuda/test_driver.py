"""Which driver a build with CUDA kernels needs, and what it says of one that is too old."""
from types import SimpleNamespace

import pytest
import torch

from lsnn_ext import _ops
from lsnn_ext.tools import info

if _ops._C is None:
    pytest.skip("the compiled part is missing", allow_module_level=True)


@pytest.mark.parametrize(("runtime", "driver", "texts"), [
    (13000, 12040, ("build (CUDA 13.0)", "driver 580 or newer", "got one for CUDA 12.4 at most")),
    (12080, 11080, ("build (CUDA 12.8)", "driver 525 or newer", "got one for CUDA 11.8 at most")),
    (11080, 0, ("build (CUDA 11.8)", "driver 450 or newer", "got none")),
    (14010, 13000, ("build (CUDA 14.1)", "driver one for CUDA 14.1",
                    "got one for CUDA 13.0 at most"))])
def test_a_driver_that_is_too_old_is_told_what_is_needed(runtime: int, driver: int,
                                                         texts: tuple[str, ...]) -> None:
    said = _ops._C.driver_too_old(runtime, driver)
    assert all(text in said for text in (*texts, "update the driver, or build lsnn_ext with")), said


def test_a_build_names_its_driver() -> None:
    cuda = _ops._C.cuda
    if cuda is None:
        pytest.skip("this build has no CUDA kernels")
    major = int(cuda["version"].partition(".")[0])
    assert f"driver {cuda['driver']} or newer" in _ops._C.driver_too_old(1000 * major, 0)


@pytest.mark.parametrize(("of_torch", "also"), [("12.6", "an nvcc 12 has to build lsnn_ext"),
                                                ("13.0", ""), (None, "this torch is a CPU build")])
def test_the_configuration_names_the_driver(of_torch: str | None, also: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = {"version": "13.0.88", "architectures": "90-real", "driver": "580"}
    monkeypatch.setattr(_ops, "_C", SimpleNamespace(cuda=cuda, emulator=False))
    monkeypatch.setattr(torch.version, "cuda", of_torch)
    said = info._cuda()
    assert "nvcc 13.0.88 for 90-real, needs an NVIDIA driver 580 or newer" in said and also in said
    assert ("an nvcc 12" in said) == (of_torch == "12.6")
