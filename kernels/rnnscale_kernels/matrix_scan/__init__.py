"""The linear recurrence whose coefficients are dense matrices."""

from ._api import (
    MATRIX as MATRIX,
    matrix_scan as matrix_scan,
)
