"""The diagonal linear recurrence h_t = a_t h_{t-1} + b_t."""

from ._api import cuts as cuts
from ._api import linear_scan as linear_scan
from ._implementations import DISPATCH as DISPATCH
from ._operation import scan as scan
from ._operation import transpose as transpose
