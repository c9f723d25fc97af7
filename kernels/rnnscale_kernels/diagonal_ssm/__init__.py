"""The linear part of a diagonal state-space layer: input map, recurrence and output map in one."""

from ._api import (
    canonical as canonical,
    checked as checked,
    diagonal_ssm as diagonal_ssm,
    options as options,
    ssm_implementations as ssm_implementations,
)
from ._operation import (
    DISPATCH as DISPATCH,
    operation as operation,
    totals as totals,
    transpose_totals as transpose_totals,
)
