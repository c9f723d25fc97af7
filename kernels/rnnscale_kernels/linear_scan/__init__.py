"""The diagonal linear recurrence h_t = a_t h_{t-1} + b_t."""

from ._api import (
    SCAN as SCAN,
    cuts as cuts,
    linear_scan as linear_scan,
    scan_implementations as scan_implementations,
)
from ._backward import previous as previous
from ._implementations import DISPATCH as DISPATCH, NARROW as NARROW
from ._operation import (
    scan as scan,
    time_invariant as time_invariant,
    transpose as transpose,
)
from ._spec import ScanSpec as ScanSpec
from ._steps import advance as advance, keep as keep
