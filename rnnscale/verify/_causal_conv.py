"""The causal convolution, compared with the one of NumPy."""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.layers import CausalConv
from rnnscale.verify._check import Check, relative_error
from rnnscale.verify._double import to_double
from rnnscale.verify._laws import call_layer, chunks_equal_one_call
from rnnscale.verify._probe import build, draw, with_arrays


def invariants(layer: Any, key: PRNGKeyArray) -> list[Check]:
    """Compares the outputs of one sequence with `numpy.convolve` in double precision, for each
    feature and each segment on its own."""
    layer = with_arrays(layer, bias=np.arange(1.0, 1.0 + layer.idim))
    (xs,) = draw(key, (30, layer.idim))
    reset = np.zeros(30, bool)
    reset[[0, 4, 5, 29]] = True
    _, ys = call_layer(layer, xs, reset=reset)
    layer, xs = to_double((layer, xs))
    outputs = [
        np.stack(
            [np.convolve(x, w)[: len(x)] for x, w in zip(each.T, layer.weight, strict=True)], -1
        )
        for each in np.split(xs, np.flatnonzero(reset))
        if len(each)
    ]
    error = relative_error(ys, np.concatenate(outputs) + layer.bias)
    wide = build(lambda key: CausalConv(3, 5, use_bias=False, key=key), key)
    (xs,) = draw(key, (2, 6, 3))
    # Pieces shorter than what the convolution remembers.
    pieces = [chunks_equal_one_call(wide, xs, cut) for cut in (1, 3)]
    return [Check("CausalConv matches oracle", error, 1e-6), *pieces]
