"""The linear part of a diagonal state-space layer: input map, recurrence and output map in one."""

from ._api import diagonal_ssm as diagonal_ssm
from ._api import options as options
from ._api import prepare as prepare
from ._operation import DISPATCH as DISPATCH
from ._operation import operation as operation
