"""Warnings that point at the line which created a cell."""

import warnings
from pathlib import Path

import equinox as eqx

# Constructors and their callers: Equinox and `check_arguments` have frames of their own. To Python,
# the full name of a file is no prefix of it.
_CELLS = Path(__file__).parent
_INTERNAL = tuple(map(str, (_CELLS, _CELLS.parent / "_checks", Path(eqx.__file__).parent)))


def warn_caller(message: str) -> None:
    """Warns of an argument that is allowed but probably a mistake."""
    warnings.warn(message, skip_file_prefixes=_INTERNAL)
