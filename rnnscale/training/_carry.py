"""`Carry`, the recurrent state that is handed from one batch to the next."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from rnnscale._base import SequenceModel, State, batch_axes
from rnnscale._checks import FloatDType, Size, check_arguments


class Carry(eqx.Module):
    """A model's state for each row of a batch, in the form in which it is kept between steps: in
    the training state, in checkpoints, and on a mesh, where each device holds its own rows.

    A state is opaque, and its batch axis is not always the leading one: in a stack of layers, depth
    comes first. Here the batch axis leads, so that its annotation says how it is sharded.
    """

    arrays: tuple[Shaped[Array, "batch ..."], ...]
    axes: tuple[int, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    @classmethod
    @check_arguments
    def zeros(
        cls, model: SequenceModel, batch_size: Size, dtype: FloatDType | None = None
    ) -> "Carry":
        """The state before the first step.

        **Arguments:**

        - `model`: any causal layer or model.
        - `batch_size`: rows in a batch, at least 1.
        - `dtype`: the compute dtype. Default float32.

        **Raises:** `ValueError` if the model is not causal, or a state array has no batch axis.
        """
        if not model.causal:
            raise ValueError(
                f"{type(model).__name__} looks ahead, so its state can't be carried to the next "
                "batch: use causal layers"
            )
        axes = tuple(jax.tree.leaves(batch_axes(model, dtype)))
        leaves, structure = jax.tree.flatten(model.init_state((batch_size,), dtype))
        return cls(_leading(leaves, axes), axes, structure)

    @property
    def state(self) -> State:
        """The state in the form that the model takes."""
        moved = [jnp.moveaxis(x, 0, axis) for x, axis in zip(self.arrays, self.axes, strict=True)]
        return jax.tree.unflatten(self.structure, moved)

    def after(self, state: State) -> "Carry":
        """The carry with `state`, which the model returned."""
        arrays = _leading(jax.tree.leaves(state), self.axes)
        return Carry(arrays, self.axes, self.structure)


def _leading(leaves: list[Array], axes: tuple[int, ...]) -> tuple[Array, ...]:
    return tuple(jnp.moveaxis(x, axis, 0) for x, axis in zip(leaves, axes, strict=True))
