from ._check import Check as Check, relative_error as relative_error
from ._laws import (
    batching_agrees as batching_agrees,
    bfloat16_keeps_dtypes as bfloat16_keeps_dtypes,
    chunks_equal_one_call as chunks_equal_one_call,
    flip_law as flip_law,
    gradient_reaches_parameters as gradient_reaches_parameters,
    padding_is_inert as padding_is_inert,
    padding_spares_gradient as padding_spares_gradient,
    reset_equals_fresh as reset_equals_fresh,
    state_is_stable as state_is_stable,
    step_equals_call as step_equals_call,
)
from ._s5 import hippo_diagonalised as hippo_diagonalised
from ._ssm import (
    gradient_matches_oracle as gradient_matches_oracle,
    matches_oracle as matches_oracle,
)
from ._subject import (
    CellSubject as CellSubject,
    cell_matches_oracle as cell_matches_oracle,
)
from ._subjects import (
    CAUSAL_LAYERS as CAUSAL_LAYERS,
    CELLS as CELLS,
    LAYERS as LAYERS,
    MODELS as MODELS,
    NETWORKS as NETWORKS,
    Builder as Builder,
    sample_inputs as sample_inputs,
)
from ._suites import (
    SUITES as SUITES,
    Suite as Suite,
    cell_laws as cell_laws,
    laws as laws,
)
