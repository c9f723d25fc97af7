"""Laws, invariants and oracles that show a layer to be what it says, on any machine.

Every check returns a `Check` or several; the test suite asserts that they pass.
"""

from rnnscale.verify._check import Check as Check, relative_error as relative_error
from rnnscale.verify._laws import (
    batching_agrees as batching_agrees,
    bfloat16_keeps_dtypes as bfloat16_keeps_dtypes,
    cut_equals_whole as cut_equals_whole,
    flip_law as flip_law,
    gradient_reaches_parameters as gradient_reaches_parameters,
    padding_is_inert as padding_is_inert,
    padding_spares_gradient as padding_spares_gradient,
    reset_equals_fresh as reset_equals_fresh,
    state_is_stable as state_is_stable,
    step_equals_call as step_equals_call,
)
from rnnscale.verify._oracles import lru_oracle as lru_oracle, s5_oracle as s5_oracle
from rnnscale.verify._ssm import (
    bilinear_approaches_zoh as bilinear_approaches_zoh,
    decay_below_one as decay_below_one,
    gradient_matches_oracle as gradient_matches_oracle,
    hippo_decay_rate as hippo_decay_rate,
    hippo_diagonalised as hippo_diagonalised,
    matches_oracle as matches_oracle,
    ring_is_uniform as ring_is_uniform,
    s5_kernel_is_hippo as s5_kernel_is_hippo,
    step_rescale_follows_rate as step_rescale_follows_rate,
    white_noise_power as white_noise_power,
)
from rnnscale.verify._subjects import (
    CAUSAL_LAYERS as CAUSAL_LAYERS,
    LAYERS as LAYERS,
    MODELS as MODELS,
    Builder as Builder,
    sample_inputs as sample_inputs,
)
