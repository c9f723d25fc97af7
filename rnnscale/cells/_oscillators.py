"""`OscillatorCell`, the base of networks of oscillators, and their step under a force."""

import math
from typing import final

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from rnnscale._base import state_dtype
from rnnscale.cells._base import AffineInputCell, Units
from rnnscale.cells._warn import warn_caller

type Oscillators = tuple[Units, Units]
"""Positions and velocities."""


class OscillatorCell(AffineInputCell):
    """A cell with the state `(y, z)`, positions and velocities, and the output `y`."""

    @final
    def output(self, state: Oscillators) -> Units:
        return state[0]

    @final
    def init_state(
        self, batch_shape: tuple[int, ...] = (), dtype: DTypeLike | None = None
    ) -> Oscillators:
        zeros = jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))
        return zeros, zeros


def swing(
    state: Oscillators,
    force: Units,
    dt: Float[Array, ""],
    gamma: Float[Array, "*#hdim"],
    epsilon: Float[Array, "*#hdim"],
) -> Oscillators:
    """A step of time under a force: first the velocities, then with them the positions."""
    y, z = state
    z = z + dt * (force - gamma * y - epsilon * z)
    return y + dt * z, z


def check_oscillators(owner: type, dt: float, gamma: float, epsilon: float) -> None:
    r"""Raises unless `dt` is positive and the others at least 0; warns of an unstable step.

    The undriven map has the determinant $1 - \Delta t \epsilon$ and the trace
    $2 - \Delta t \epsilon - \Delta t^2 \gamma$. Both eigenvalues are within the unit circle if the
    determinant is at most one and the magnitude of the trace at most one plus the determinant. For
    numbers that are not negative, this is the bound below.
    """
    name = owner.__name__
    # Written as chained comparisons, which NaN fails.
    if not 0 < dt < math.inf:
        raise ValueError(f"{name}: dt must be positive and finite; got {dt}.")
    for what, value in (("gamma", gamma), ("epsilon", epsilon)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: {what} must be at least 0 and finite; got {value}.")
    bound = dt**2 * gamma + 2 * dt * epsilon
    if bound > 4:
        warn_caller(
            f"{name}: undriven units grow without bound. dt² gamma + 2 dt epsilon must be at most "
            f"4; got {bound:.3g} from dt={dt}, gamma={gamma}, epsilon={epsilon}. Lower dt."
        )
