"""The diagonal linear recurrence h_t = a_t h_{t-1} + b_t."""

from ._api import cuts as cuts
from ._api import linear_scan as linear_scan
from ._api import prepare as prepare
from ._api import scan_implementations as scan_implementations
from ._implementations import DISPATCH as DISPATCH
from ._operation import operation as operation
from ._operation import scan as scan
from ._operation import transpose as transpose
