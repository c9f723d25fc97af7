"""What a source does with records that can't be used: raise an error, or leave them out."""

import logging

from rnnscale._errors import UserError
from rnnscale.data.sources._source import Skipped

_LOG = logging.getLogger(__name__)


class Unusable:
    """Collects the records that a source leaves out while it is built.

    **Arguments:**

    - `skip`: whether to leave them out; otherwise the first one is an error.
    """

    def __init__(self, skip: bool):
        self._skip = skip
        self._found: list[tuple[str, str]] = []

    def note(self, name: str, reason: str) -> None:
        """Notes a record, by its name in messages.

        **Raises:** `ValueError` with name and reason, unless such records are left out.
        """
        if not self._skip:
            raise UserError(f"{name}: {reason}; correct it, or skip it")
        self._found.append((name, reason))

    def all(self) -> Skipped:
        """All noted records. Logs their number, if there are any."""
        if self._found:
            name, reason = self._found[0]
            _LOG.warning("left out %d, the first: %s: %s", len(self._found), name, reason)
        return tuple(self._found)
