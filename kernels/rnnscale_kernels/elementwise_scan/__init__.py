"""A recurrence whose channels do not see one another, with any elementwise step."""

from ._api import ELEMENTWISE as ELEMENTWISE, elementwise_scan as elementwise_scan
