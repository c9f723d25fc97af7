"""The recurrence on NVIDIA GPUs that have TMA, in Pallas Mosaic GPU.

The kernel is in `_mosaic_gpu_sweep`, which loads Pallas and is imported when it is first lowered.
"""

import jax.numpy as jnp

from .._sizes import round_up
from ._mosaic_gpu_plan import CHANNELS, MAX_ROWS, cores
from ._steps import SweepKernels

# Shorter chunks save less than it takes to launch the kernel for their totals.
_MIN_CHUNK = 512


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
        """Steps in a chunk.

        By Little's law about half the multiprocessors, with one program each, have enough bytes on
        their way for the full bandwidth of the memory. Chunks reach it with fewer rows and
        channels, but the kernel for their totals reads the inputs once more: 5 arrays of the size
        of the sequence go through memory instead of 3 (backward 7 instead of 5). So chunks pay if
        programs are fewer than 3/5 of half the multiprocessors, which leaves each about 4 chunks or
        more.
        """
        programs = spec.batch * -(-spec.channels // CHANNELS)
        chunks = min(cores(target) // programs, spec.time // _MIN_CHUNK)
        return round_up(-(-spec.time // chunks), MAX_ROWS) if chunks >= 4 else spec.time

    def sweep(self, step, a, inputs, entering, cut, launch, **options):
        from ._mosaic_gpu_sweep import sweep

        return sweep(step, a, inputs, entering, cut, launch, **options)
