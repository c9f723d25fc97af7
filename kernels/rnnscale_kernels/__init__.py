"""Linear recurrences: kernels for GPUs and TPUs, and plain XLA for everything else."""

from ._algebra import (
    Planar as Planar,
    adjoint as adjoint,
    identity as identity,
    product as product,
)
from ._checks import check_reset as check_reset, checked_lengths as checked_lengths
from ._implementations import implementations as implementations
from ._operation import Operation as Operation, vary_alike as vary_alike
from ._recurrent_op import (
    CanonicalOp as CanonicalOp,
    OpArguments as OpArguments,
    RecurrentOp as RecurrentOp,
)
from ._sequential_op import SequentialOp as SequentialOp
from ._target import local_platform as local_platform
from .block_scan import (
    BLOCK as BLOCK,
    block_scan as block_scan,
)
from .diagonal_ssm import (
    SSM as SSM,
    diagonal_ssm as diagonal_ssm,
)
from .elementwise_scan import (
    ELEMENTWISE as ELEMENTWISE,
    elementwise_scan as elementwise_scan,
)
from .linear_attention import (
    ATTENTION as ATTENTION,
    linear_attention as linear_attention,
)
from .linear_scan import (
    SCAN as SCAN,
    linear_scan as linear_scan,
)
from .matrix_scan import (
    MATRIX as MATRIX,
    matrix_scan as matrix_scan,
)
from .persistent_rnn import (
    PERSISTENT as PERSISTENT,
    persistent_rnn as persistent_rnn,
)
from .selective_scan import (
    SELECTIVE as SELECTIVE,
    selective_scan as selective_scan,
)
