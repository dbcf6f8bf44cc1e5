"""Around the layers: graphs (nir), pictures (plot), answers (plan, profiler, info)."""
import importlib
from typing import Any


def import_extra(module: str, user: str, requirement: str) -> Any:
    """Returns a module that lsnn_ext.<user> needs. Raises ImportError with the command of pip."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'lsnn_ext.{user}: expected {module.partition(".")[0]}, which is not '
                          f'installed; pip install "{requirement}"') from error
