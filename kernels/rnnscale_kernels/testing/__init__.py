"""What tests, benchmarks and compile checks share: argument specs and references in NumPy."""

from . import _reference as reference
from ._specs import SCAN_ARGUMENTS as SCAN_ARGUMENTS
from ._specs import ScanArguments as ScanArguments
from ._specs import rounded as rounded
from ._specs import to_jax as to_jax
from ._specs import to_numpy as to_numpy

__all__ = ["SCAN_ARGUMENTS", "ScanArguments", "reference", "rounded", "to_jax", "to_numpy"]
