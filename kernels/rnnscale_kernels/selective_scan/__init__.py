"""Selective scan: diagonal recurrences whose step, input map and output map vary over time."""

from ._api import SELECTIVE as SELECTIVE, selective_scan as selective_scan
