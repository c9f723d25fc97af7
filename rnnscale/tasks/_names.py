"""The error for a name that a table does not have, the same for tasks, series and data sets."""

import difflib
from collections.abc import Collection

from rnnscale._errors import UserError


def check_name(name: str, known: Collection[str], kind: str) -> None:
    """**Raises:** `ValueError` if `name` is not known; it suggests the nearest known name."""
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown {kind} {name!r}; did you mean {nearest!r}? Known: {', '.join(known)}"
        )
