"""The barrier that GPUs have for the programs of a cluster, in Pallas Mosaic GPU.

The interpreter does not know it: there `plgpu.ClusterBarrier` takes its place.
"""

from collections.abc import Callable
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir.dialects import nvvm


def cluster_arrive() -> None:
    """Arrives at the barrier of the cluster, and releases what this thread wrote to it."""
    _emit(nvvm.cluster_arrive)


def cluster_wait() -> None:
    """Waits for all threads of the cluster at its barrier, and acquires what they wrote."""
    _emit(nvvm.cluster_wait)


def _emit(operation: Callable[..., Any]) -> None:
    def emit(_: Any) -> None:
        operation(aligned=True)

    inlined: Any = plgpu.inline_mgpu()(emit)
    inlined()
