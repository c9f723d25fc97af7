"""The recurrence on NVIDIA GPUs that have TMA, in Pallas Mosaic GPU.

The kernel is in `_mosaic_gpu_sweep`, which loads Pallas and is imported when it is first lowered.
"""

import jax.numpy as jnp

from ._mosaic_gpu_plan import CHANNELS
from ._steps import SweepKernels


class MosaicGPU(SweepKernels):
    """The kernels for NVIDIA GPUs of compute capability 9 and 10."""

    dtypes = ("float32", "bfloat16", "float16")

    def unavailable(self, target):
        if target.platform != "cuda":
            return "it is for NVIDIA GPUs"
        if target.capability is None:
            return "the compute capability of the GPU is not known"
        if target.capability[0] not in (9, 10):
            return "needs a GPU of compute capability 9.0 or 10.0, this is {}.{}".format(
                *target.capability
            )
        return None

    def unsuited(self, target, spec):
        streamed = [spec.dtype, spec.decay_dtype] if spec.varying else [spec.dtype]
        itemsize = min(jnp.dtype(x).itemsize for x in streamed)
        if spec.channels * itemsize % 16:
            return f"TMA needs {spec.channels} channels padded to a multiple of {16 // itemsize}"
        return None

    def takes_side_by_side(self, spec):
        # A block of channels must not reach into the other plane.
        return spec.planes == 2 and not spec.varying and spec.channels % CHANNELS == 0

    def chunk_steps(self, target, spec):
        return spec.time  # a sweep splits time by itself

    def sweep(self, step, a, inputs, entering, cut, launch, **options):
        from ._mosaic_gpu_sweep import sweep

        return sweep(step, a, inputs, entering, cut, launch, **options)
