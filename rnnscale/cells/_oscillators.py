"""`OscillatorCell`, the base of networks of oscillators, and their step under a force."""

from typing import ClassVar, final

import jax.numpy as jnp
from jaxtyping import Array, Float

from rnnscale._base import state_dtype
from rnnscale._checks import BatchShape, FloatDType, check_arguments
from rnnscale.cells._base import AffineInputCell, JacobianKind, Units
from rnnscale.cells._warn import warn_caller

type Oscillators = tuple[Units, Units]
"""Positions and velocities."""


class OscillatorCell(AffineInputCell):
    """A cell with the state `(y, z)`, positions and velocities, and the output `y`."""

    jacobian: ClassVar[JacobianKind] = "block"

    @final
    def output(self, state: Oscillators) -> Units:
        return state[0]

    @final
    @check_arguments
    def init_state(
        self, batch_shape: BatchShape = (), dtype: FloatDType | None = None
    ) -> Oscillators:
        zeros = jnp.zeros((*batch_shape, self.hdim), state_dtype(dtype))
        return zeros, jnp.zeros_like(zeros)


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


def warn_of_growth(owner: type, dt: float, gamma: float, epsilon: float) -> None:
    r"""Warns of a step with which undriven units are not stable.

    The undriven map has the determinant $1 - \Delta t \epsilon$ and the trace
    $2 - \Delta t \epsilon - \Delta t^2 \gamma$. Both eigenvalues are within the unit circle if the
    determinant is at most one and the magnitude of the trace at most one plus the determinant. For
    numbers that are not negative, this is the bound below.
    """
    bound = dt**2 * gamma + 2 * dt * epsilon
    if bound > 4:
        warn_caller(
            f"{owner.__name__}: undriven units grow without bound. dt² gamma + 2 dt epsilon must "
            f"be at most 4; got {bound:.3g} from dt={dt}, gamma={gamma}, epsilon={epsilon}. "
            "Lower dt."
        )
