"""The linear part of a diagonal state-space layer: input map, recurrence and output map in one."""

from ._api import (
    diagonal_ssm as diagonal_ssm,
    options as options,
    prepare as prepare,
    ssm_implementations as ssm_implementations,
)
from ._operation import DISPATCH as DISPATCH, operation as operation
