"""The linear part of a diagonal state-space layer: input map, recurrence and output map in one."""

from ._api import (
    SSM as SSM,
    diagonal_ssm as diagonal_ssm,
)
