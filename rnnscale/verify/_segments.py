"""The comparison of a sequence layer with an oracle of one sequence, segment by segment."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.verify._check import Check, agrees, relative_error
from rnnscale.verify._double import Doubles, directional_derivative, to_double
from rnnscale.verify._laws import call_layer
from rnnscale.verify._probe import generator

type SequenceOracle = Callable[[Any, Doubles], Doubles]
"""`oracle(layer, xs)`: the outputs of one sequence from the initial state, in float64 NumPy."""


def sequence_matches_oracle(
    oracle: SequenceOracle,
    layer: Any,
    xs: Float[Array, "time idim"] | NDArray[np.floating],
    reset: NDArray[np.bool_] | None = None,
    bound: float = 1e-5,
) -> Check:
    """Compares the outputs of one sequence with the oracle.

    With resets, each segment is a sequence of its own.
    """
    _, ys = call_layer(layer, xs, reset=reset)
    double, wide = to_double((layer, xs))
    expected = _in_segments(oracle, double, wide, reset)
    name = f"{type(layer).__name__} matches oracle in {ys.dtype.name}"
    return agrees(name, ys, expected, bound)


def layer_matches_oracle(
    oracle: SequenceOracle,
    layer: Any,
    key: PRNGKeyArray,
    *,
    time: int,
    starts: list[int],
    gradient_bound: float = 1e-6,
) -> Iterator[Check]:
    """Compares outputs in both precisions and the gradient with the oracle, over several segments.

    The gradient is taken along a random direction of all parameters and inputs; that of the oracle
    by central differences.
    """
    random = generator(key)
    xs = random.standard_normal((time, layer.idim)).astype(np.float32)
    reset = np.zeros(time, bool)
    reset[starts] = True
    yield sequence_matches_oracle(oracle, layer, xs, reset)

    moving, fixed = eqx.partition(to_double((layer, xs)), eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(moving)
    weights = random.standard_normal((time, layer.odim))

    def arguments(leaves: list[Any]) -> Any:
        return eqx.combine(jax.tree.unflatten(structure, leaves), fixed)

    @jax.jit
    def value_and_gradient(leaves: list[Array]) -> tuple[Array, list[Array]]:
        def objective(leaves: list[Array]) -> tuple[Array, Array]:
            layer, xs = arguments(leaves)
            _, ys = layer(xs, reset=reset)
            return (weights * ys).sum(), ys

        gradient, ys = jax.grad(objective, has_aux=True)(leaves)
        return ys, gradient

    def expected(leaves: list[Any]) -> Doubles:
        layer, xs = arguments(leaves)
        return _in_segments(oracle, layer, xs, reset)

    with jax.enable_x64(True):
        ys, gradient = value_and_gradient(leaves)
    name = f"{type(layer).__name__} matches oracle in float64"
    yield agrees(name, ys, expected(leaves), 1e-10)

    direction = [random.standard_normal(x.shape) for x in leaves]
    slope = sum(np.vdot(*pair) for pair in zip(gradient, direction, strict=True))
    expected_slope = directional_derivative(
        lambda leaves: float((weights * expected(leaves)).sum()), leaves, direction, 1e-5
    )
    error = relative_error(np.float64(slope), np.float64(expected_slope))
    yield Check("gradient equals the oracle's", error, gradient_bound)


def _in_segments(
    oracle: SequenceOracle, layer: Any, xs: Doubles, reset: NDArray[np.bool_] | None
) -> Doubles:
    starts = [] if reset is None else np.flatnonzero(reset)
    segments = [segment for segment in np.split(xs, starts) if len(segment)]
    return np.concatenate([oracle(layer, segment) for segment in segments])
