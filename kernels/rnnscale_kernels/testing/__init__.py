"""What tests, benchmarks and compile checks share: argument specs, references in NumPy, programs
compiled for absent devices, and timing."""

from . import _reference
from ._attention_specs import (
    ATTENTION_ARGUMENTS as ATTENTION_ARGUMENTS,
    AttentionArguments as AttentionArguments,
)
from ._call_arguments import (
    MODES as MODES,
    CallArguments as CallArguments,
    Run as Run,
    relative_error as relative_error,
    rounded as rounded,
    to_jax as to_jax,
    to_numpy as to_numpy,
)
from ._call_timing import (
    measure_call as measure_call,
    usable_implementations as usable_implementations,
)
from ._gpu_kernels import Kernel as Kernel
from ._hlo import KERNEL_CALLS as KERNEL_CALLS, Call as Call, Collective as Collective
from ._program import Program as Program
from ._races import find_races as find_races
from ._specs import (
    BLOCK_ARGUMENTS as BLOCK_ARGUMENTS,
    SCAN_ARGUMENTS as SCAN_ARGUMENTS,
    BlockArguments as BlockArguments,
    ScanArguments as ScanArguments,
)
from ._ssm_specs import SSMArguments as SSMArguments
from ._targets import (
    compile_for as compile_for,
    compile_on as compile_on,
    missing as missing,
    shared_memory_limit as shared_memory_limit,
    target_devices as target_devices,
    target_shape as target_shape,
)
from ._timing import (
    Thunk as Thunk,
    compile_timed as compile_timed,
    environment as environment,
    failure as failure,
    orders as orders,
    quartiles as quartiles,
    take_turns as take_turns,
)

reference = _reference
