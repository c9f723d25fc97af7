"""Records that can't be used: an error, or left out and counted."""

import logging

from rnnscale._errors import UserError

type Skipped = tuple[tuple[str, str], ...]

_LOG = logging.getLogger(__name__)


class Unusable:
    """Collects what a source leaves out while it is made.

    **Arguments:**

    - `skip`: whether to leave it out; otherwise the first one is an error.
    """

    def __init__(self, skip: bool):
        self._skip = skip
        self._found: list[tuple[str, str]] = []

    def note(self, where: str, reason: str) -> None:
        """**Raises:** `ValueError` with both unless such records are to be left out."""
        if not self._skip:
            raise UserError(f"{where}: {reason}; correct it, or skip it")
        self._found.append((where, reason))

    def all(self) -> Skipped:
        """All that was noted; says in the log how many, if any."""
        if self._found:
            where, reason = self._found[0]
            _LOG.warning("left out %d, the first: %s: %s", len(self._found), where, reason)
        return tuple(self._found)
