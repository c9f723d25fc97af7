"""The recurrence on TPUs, in Pallas Mosaic TPU.

The kernel is in `_mosaic_tpu_sweep`, which loads Pallas and is imported when it is first lowered.
"""

from ._steps import SweepKernels


class MosaicTPU(SweepKernels):
    """The kernels for TPUs from v4 on."""

    dtypes = ("float32", "bfloat16")

    def unavailable(self, target):
        if target.platform != "tpu":
            return "it is for TPUs"
        if target.device_kind in ("TPU v2", "TPU v3"):
            return f"needs a TPU v4 or newer, this is a {target.device_kind}"
        return None

    def chunk_steps(self, target, spec):
        """All steps.

        A chip has one core or two, and on a core one program follows another: chunks would fill no
        more of it. Only a single program leaves a second core idle, and there chunks would save at
        most a sixth of the time (backward a third), since the kernel for their totals reads the
        inputs once more.
        """
        return spec.time

    def sweep(self, step, a, inputs, entering, cut, launch, **options):
        from ._mosaic_tpu_sweep import sweep

        return sweep(step, a, inputs, entering, cut, launch, **options)
