"""Warnings that point at the line which created a cell."""

import warnings
from pathlib import Path

import equinox as eqx

# Constructors and their callers: Equinox creates instances in frames of its own.
_INTERNAL = (str(Path(__file__).parent), str(Path(eqx.__file__).parent))


def warn_caller(message: str) -> None:
    """Warns of an argument that is allowed but probably a mistake."""
    warnings.warn(message, skip_file_prefixes=_INTERNAL)
