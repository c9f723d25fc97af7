from ._axes import AXES as AXES
from ._describe import Layout as Layout, describe as describe, layouts as layouts
from ._halo import (
    check_halo as check_halo,
    from_neighbour as from_neighbour,
    shift as shift,
)
from ._init import sharded_init as sharded_init
from ._linear_attention import linear_attention as linear_attention
from ._max_plus import max_plus_scan as max_plus_scan
from ._mesh import make_mesh as make_mesh
from ._on_mesh import (
    Specs as Specs,
    differentiable_on_mesh as differentiable_on_mesh,
    gathered as gathered,
    row_spec as row_spec,
    unit_specs as unit_specs,
)
from ._ops import (
    block_scan as block_scan,
    diagonal_ssm as diagonal_ssm,
    elementwise_scan as elementwise_scan,
    linear_scan as linear_scan,
    matrix_scan as matrix_scan,
    persistent_rnn as persistent_rnn,
)
from ._rules import (
    ACTIVATION_AXES as ACTIVATION_AXES,
    PARAMETER_AXES as PARAMETER_AXES,
    activation_spec as activation_spec,
    automatic_axes as automatic_axes,
    batch_sharding as batch_sharding,
    constrain as constrain,
    mesh_axes as mesh_axes,
    parameter_spec as parameter_spec,
    shardings as shardings,
)
from ._selective_scan import selective_scan as selective_scan
from ._time import (
    join_time as join_time,
    split_time as split_time,
    take_step as take_step,
    time_parts as time_parts,
)
from ._time_axis import TimeAxis as TimeAxis
