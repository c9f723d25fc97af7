"""The diagonal linear recurrence h_t = a_t h_{t-1} + b_t, and what all linear recurrences share."""

from ._api import (
    RECURRENCE as RECURRENCE,
    SCAN as SCAN,
    linear_scan as linear_scan,
)
from ._backward import previous as previous
from ._by_xla import associative as associative, chunked as chunked, sequential as sequential
from ._implementations import (
    DISPATCH as DISPATCH,
    LONG as LONG,
    NARROW as NARROW,
    takes_side_by_side as takes_side_by_side,
)
from ._kernels import Launch as Launch, SideBySide as SideBySide
from ._mosaic_gpu import MosaicGPU as MosaicGPU
from ._mosaic_tpu import MosaicTPU as MosaicTPU
from ._operation import Recurrence as Recurrence, time_invariant as time_invariant
from ._recurrent_op import (
    check_steps as check_steps,
    cuts as cuts,
    op_arguments as op_arguments,
    recurrent_op as recurrent_op,
)
from ._spec import ScanSpec as ScanSpec
from ._split_time import by_kernels as by_kernels
from ._steps import SweepKernels as SweepKernels, advance as advance, keep as keep

scan, transpose = RECURRENCE.scan, RECURRENCE.transpose
