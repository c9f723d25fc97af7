"""A recurrence whose channels do not see one another, with any step."""

from ._api import (
    ELEMENTWISE as ELEMENTWISE,
    elementwise_scan as elementwise_scan,
)
