"""The implementations of the recurrence with matrices, in one table."""

from .._dispatch import Dispatch
from .._target import Target
from ..linear_scan import LONG, ScanSpec, associative, chunked, sequential

# Powers of larger matrices take longer on a CPU than the steps that they replace. Measured on two
# cores in float32.
_SMALL = 32


def _chunked_unsuited(target: Target, spec: ScanSpec) -> str | None:
    if spec.varying:
        return "products of matrices cost more than the steps that they replace"
    if spec.batch == 1 or spec.channels > _SMALL or spec.time < LONG:
        return f"{spec.batch} rows of {spec.time} steps run as fast one after another"
    return None


DISPATCH = Dispatch(
    "matrix_scan",
    ScanSpec.of,
    # The gradient of a matrix is one product over all steps, after the loop over them.
    (sequential(fused=False), chunked(unsuited=_chunked_unsuited), associative()),
    order={
        "cpu": ("chunked", "sequential"),
        "cuda": ("associative",),
        "rocm": ("associative",),
        "tpu": ("associative",),
    },
)
