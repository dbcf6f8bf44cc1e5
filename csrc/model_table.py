"""Writes model_table.h for the compiled part, made of lsnn_ext/models.py: `python
csrc/model_table.py FOLDER`.

The build calls it (CMakeLists.txt). It needs Python only, as models.py does.
"""
import runpy
import sys
from pathlib import Path
from typing import Any

MODELS = Path(__file__).resolve().parents[1] / "lsnn_ext" / "models.py"
# of struct Model, csrc/dynamics.h
FIELDS = ("test", "ge", "scale", "reset", "when", "drive", "detach", "surrogate")


def words(value: Any) -> str:
    """A choice as C++ reads it: true or false, or its words in quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value if isinstance(value, str) else " ".join(value)}"'


def header() -> str:
    """The text of model_table.h."""
    known = runpy.run_path(str(MODELS))
    entries = [", ".join([f'"{name}"', *(words(getattr(model, field)) for field in FIELDS)])
            for name, model in known["MODELS"].items()]
    return "\n".join(
        [
            "// Made of lsnn_ext/models.py by csrc/model_table.py; edit those.",
            f"// LSNN_MODELS: X(name, {', '.join(FIELDS)}) for each model.",
            "#pragma once",
            "#define LSNN_MODELS(X) \\\n  " + " \\\n  ".join(f"X({entry})" for entry in entries),
            "#define LSNN_SURROGATES(X) \\\n  "
            + " \\\n  ".join(f"X({name})" for name in known["SURROGATE_NAMES"]),
            "",
        ]
    )


def main() -> None:
    path = Path(sys.argv[1]) / "model_table.h"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = header()
    if not path.exists() or path.read_text() != text:  # what has not changed compiles nothing again
        path.write_text(text)


if __name__ == "__main__":
    main()
