"""What a causal convolution promises beyond the laws."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from rnnscale.layers import CausalConv
from rnnscale.verify._check import Check, relative_error


def causal_conv_matches_oracle(
    layer: CausalConv,
    xs: Float[Array, "time idim"],
    reset: NDArray[np.bool_],
    bound: float = 1e-6,
) -> Check:
    """Outputs of one sequence against `numpy.convolve` in double precision, each feature and each
    segment on its own."""
    _, ys = eqx.filter_jit(lambda layer, xs, reset: layer(xs, reset=reset))(layer, xs, reset)
    weight, bias = (np.asarray(p, np.float64) for p in (layer.weight, layer.bias))
    segments = np.split(np.asarray(xs, np.float64), np.flatnonzero(reset))
    outputs = [
        np.stack([np.convolve(x, w)[: len(x)] for x, w in zip(each.T, weight, strict=True)], -1)
        for each in segments
        if len(each)
    ]
    return Check(
        "CausalConv matches oracle", relative_error(ys, np.concatenate(outputs) + bias), bound
    )
