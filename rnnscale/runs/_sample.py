"""The text that a model of bytes writes during its training."""

from functools import partial
from itertools import takewhile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from rnnscale._base import SequenceModel
from rnnscale.models import generate
from rnnscale.sharding import batch_sharding

# The byte before and after each file in the training of a model of bytes.
END_OF_FILE = 0


class Writer:
    """Writes the beginning of a file with a model of bytes, the same for the same parameters.

    **Arguments:**

    - `mesh`: the mesh that the model is on.
    - `steps`: the number of bytes, at least 1.
    - `seed`: seed of the draws.
    """

    def __init__(self, mesh: Mesh, steps: int, seed: int):
        # Each device of the batch axes draws a row of its own; the first row is shown.
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        self._start = jax.device_put(
            np.full((rows, 1), END_OF_FILE, np.int32), batch_sharding(mesh, 2)
        )
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._tokens = jax.jit(partial(_tokens, steps=steps, seed=seed), out_shardings=everywhere)

    def __call__(self, model: SequenceModel) -> str:
        tokens: list[int] = np.asarray(self._tokens(model, self._start)).tolist()
        # A model whose logits are NaN writes -1.
        written = list(takewhile(lambda token: token > END_OF_FILE, tokens))
        return bytes(written).decode("utf-8", "replace")


def _tokens(
    model: SequenceModel, start: Int[Array, "batch 1"], *, steps: int, seed: int
) -> Int[Array, "steps"]:
    _, tokens = generate(model, start, steps=steps, key=jax.random.key(seed))
    return jnp.asarray(tokens)[0]
