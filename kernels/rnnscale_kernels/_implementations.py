"""All operations, and what can run them on a platform."""

from .block_scan._implementations import DISPATCH as BLOCK
from .diagonal_ssm._implementations import DISPATCH as SSM
from .elementwise_scan._implementations import DISPATCH as ELEMENTWISE
from .linear_attention._implementations import DISPATCH as ATTENTION
from .linear_scan import DISPATCH as SCAN
from .matrix_scan._implementations import DISPATCH as MATRIX
from .persistent_rnn._implementations import DISPATCH as PERSISTENT
from .selective_scan._implementations import DISPATCH as SELECTIVE

_ALL = SCAN, SSM, BLOCK, MATRIX, ATTENTION, SELECTIVE, ELEMENTWISE, PERSISTENT
DISPATCHES = {each.operation: each for each in _ALL}
"""The table of each operation, by its name."""


def implementations(platform: str) -> dict[str, list[tuple[str, bool, str]]]:
    """What can run each operation on a platform: `"cpu"`, `"cuda"`, `"rocm"` or `"tpu"`.

    The device meant is that of the ambient mesh (`jax.set_mesh`), otherwise that of this machine.

    **Returns:** the implementations by the name of the operation. Of each there is its name,
    whether it can be used there, and if not, why. Those that are tried by default come first, in
    their order.

    **Raises:** `ValueError` if there is no such platform.
    """
    return {operation: dispatch.describe(platform) for operation, dispatch in DISPATCHES.items()}
