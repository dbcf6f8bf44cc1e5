"""What a call goes through around the compiled operators: arguments, resolve, route, call. Nothing
here is public."""
from . import oldest_torch  # noqa: F401  raises ImportError before any other file meets an old torch
