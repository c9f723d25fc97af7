"""What tests, benchmarks and compile checks share: argument specs, references in NumPy, programs
compiled for devices that are not here."""

from . import _reference as reference
from ._benchmark import (
    BASELINES as BASELINES,
    MODES as MODES,
    environment as environment,
    failure as failure,
    measure_scan as measure_scan,
    minimal_bytes as minimal_bytes,
    usable_implementations as usable_implementations,
)
from ._specs import (
    SCAN_ARGUMENTS as SCAN_ARGUMENTS,
    ScanArguments as ScanArguments,
    rounded as rounded,
    to_jax as to_jax,
    to_numpy as to_numpy,
)
from ._targets import (
    Call as Call,
    Kernel as Kernel,
    Program as Program,
    compile_for as compile_for,
    missing as missing,
    shared_memory_limit as shared_memory_limit,
    target_devices as target_devices,
)

__all__ = [
    "BASELINES",
    "MODES",
    "SCAN_ARGUMENTS",
    "Call",
    "Kernel",
    "Program",
    "ScanArguments",
    "compile_for",
    "environment",
    "failure",
    "measure_scan",
    "minimal_bytes",
    "missing",
    "reference",
    "rounded",
    "shared_memory_limit",
    "target_devices",
    "to_jax",
    "to_numpy",
    "usable_implementations",
]
