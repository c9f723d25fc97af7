"""What tests, benchmarks and compile checks share: argument specs and references in NumPy."""

from . import _reference as reference
from ._specs import (
    SCAN_ARGUMENTS as SCAN_ARGUMENTS,
    ScanArguments as ScanArguments,
    rounded as rounded,
    to_jax as to_jax,
    to_numpy as to_numpy,
)

__all__ = ["SCAN_ARGUMENTS", "ScanArguments", "reference", "rounded", "to_jax", "to_numpy"]
