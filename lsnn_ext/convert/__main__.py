"""python -m lsnn_ext.convert script.py:model: what convert would do, without changing a file."""
import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import convert


def _named(place: str) -> tuple[dict[str, Any], str]:
    """What a file or an importable module defines, and the name behind the colon."""
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise SystemExit(f"expected FILE.py:NAME or package.module:NAME, got {place}")
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise SystemExit(f"expected a file, got {where}, which is none")
        sys.path.insert(0, str(Path(where).resolve().parent))
        spec = importlib.util.spec_from_file_location("_converted_script", where)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return vars(module), name
    sys.path.insert(0, "")
    return vars(importlib.import_module(where)), name


def _looked_up(names: dict[str, Any], name: str) -> Any:
    first, *rest = name.split(".")
    if first not in names:
        raise SystemExit(f"expected a name that is defined there, got {first}")
    value = names[first]
    for part in rest:
        value = getattr(value, part)
    return value


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = [-1]
    if min(sizes) < 0:
        raise argparse.ArgumentTypeError(f"expected sizes such as 100,8,40, got {text}")
    return sizes


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; 1 where the results would be others."""
    parser = argparse.ArgumentParser(
        prog="python -m lsnn_ext.convert",
        description="What lsnn_ext.convert would replace in a model, how equal it is and how much "
                    "faster. No file is changed. The script is run as an import would run it: "
                    "what stands below `if __name__ == '__main__'` is not.")
    parser.add_argument("model", metavar="FILE.py:NAME",
                        help="a module, or a class or function without arguments that makes one")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--input", metavar="NAME", help="what to run it on, defined there too: a "
                       "tensor, a tuple of arguments, or a function of the model that runs it")
    given.add_argument("--shape", metavar="T,B,I", type=_sizes,
                       help="random inputs from 0 to 1 of this shape")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing; 0: none")
    options = parser.parse_args(arguments)
    names, name = _named(options.model)
    model = _looked_up(names, name)
    if not isinstance(model, nn.Module) and callable(model):
        model = model()
    if not isinstance(model, nn.Module):
        raise SystemExit(f"expected a module, or what makes one, got {type(model).__name__}")
    x: Any = None
    if options.shape:
        x = torch.rand(options.shape, generator=torch.Generator().manual_seed(0))
    elif options.input:
        x = _looked_up(names, options.input)
    _, report = convert(model, verify=x, strict=False, repeats=options.repeats)
    print(report)
    return 0 if report.changed else 1


if __name__ == "__main__":
    raise SystemExit(main())
