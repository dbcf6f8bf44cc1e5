"""Parsers of the commands, and types of their arguments."""
import argparse
from collections.abc import Callable, Iterable


def make_parser(command: str, about: str | None) -> argparse.ArgumentParser:
    """A parser of `python -m command`; about: the docstring of its module."""
    return argparse.ArgumentParser(f"python -m {command}", description=about,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def names_among(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Names with commas between them."""
    def read(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, "
                                             f"got {unknown[0]!r}")
        return names

    return read


def at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value
