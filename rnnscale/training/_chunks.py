"""`in_chunks`, which computes a loss of long sequences in pieces of time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from rnnscale._base import SequenceModel
from rnnscale._checks import Size, check_arguments
from rnnscale._over_time import check_time_is_not_split, lengths_within, over_time
from rnnscale.layers import fold_keys, row_keys
from rnnscale.training._loss import Totals
from rnnscale.training._loss_form import LOSS_PAGE, as_sums, takes_state
from rnnscale_kernels import checked_lengths


@check_arguments
def in_chunks(loss: Callable[..., tuple[Any, Totals]], steps: Size) -> Callable[..., Any]:
    """The same loss, computed on `steps` time steps at a time.

    The model runs on one chunk after another, with its state handed on, and the totals are summed.
    The backward pass computes each chunk again from the state that entered it, so only the
    activations and logits of one chunk exist at a time. With `steps` of about the square root of
    the length, memory grows with that root. Value and gradient equal those without chunks, up to
    rounding, if no random numbers are drawn; a chunk's number is folded into its keys.

    ```python
    from rnnscale.training import cross_entropy, in_chunks, make_train_step

    optimiser = optax.adam(1e-3)
    train_step = make_train_step(in_chunks(cross_entropy, 1024), optimiser)
    ```

    Over a mesh, each chunk gathers the parameters that `fsdp` splits, and sums its gradients over
    devices. A train step with an `accumulation` of 2 or more does both only once.

    **Arguments:**

    - `loss`: `loss(model, batch, key, state) -> (state, totals)`, where the totals are sums over
        labels, and each step has a label.
    - `steps`: the steps in a chunk, at least 1; the last chunk may be shorter.

    **Returns:** `loss(model, batch, key, state=None) -> (state, totals)`. It cuts every array of
    `batch` that begins with the axes `batch time` of `inputs`; `lengths` become those within the
    chunk; all other arrays are passed to every chunk. The default `state` is `model.init_state`.

    **Raises:** `TypeError` if the loss is not of this form; `ValueError` if `steps` is below 1, and
    when it is called, if the labels are not one for each step, the model is not a causal
    `SequenceModel`, or the mesh has `seq` above 1.
    """
    loss = _sums_with_state(loss)

    def chunked(
        model: PyTree,
        batch: Mapping[str, Array | np.ndarray],
        key: Key[Array, "*#batch"] | None,
        state: PyTree[Array] | None = None,
    ) -> tuple[PyTree[Array], Totals]:
        check_time_is_not_split("in_chunks")
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        inputs = batch["inputs"]
        axes = inputs.shape[:2]
        _check_cuts(model, batch, axes)
        xs = {name: array for name, array in batch.items() if array.shape[:2] == axes}
        same = {name: array for name, array in batch.items() if name not in xs}
        keys = row_keys(key, axes[:1])
        if "lengths" in same:
            same["lengths"] = checked_lengths(same["lengths"], axes[:1], axes[1])
        if state is None:
            floating = jnp.issubdtype(inputs.dtype, jnp.floating)
            state = model.init_state(axes[:1], inputs.dtype if floating else None)

        def on_chunk(state: Any, piece: dict[str, Array], start: Int[Array, ""]) -> tuple:
            held = piece["inputs"].shape[1]
            chunk = {**same, **piece}
            if "lengths" in same:
                chunk["lengths"] = lengths_within(same["lengths"], start, held)
            return loss(model, chunk, _fold(keys, start // steps), state)

        def add(carry: tuple, piece: dict[str, Array], start: Int[Array, ""]) -> tuple:
            state, sums = carry
            state, totals = on_chunk(state, piece, start)
            return (state, jax.tree.map(jnp.add, sums, totals)), None

        first = {name: array[:, :steps] for name, array in xs.items()}
        _, shapes = jax.eval_shape(on_chunk, state, first, jnp.zeros((), jnp.int32))
        zeros = jax.tree.map(lambda total: jnp.zeros(total.shape, total.dtype), shapes)
        (state, totals), _ = over_time(add, (state, zeros), xs, steps=steps, axis=1)
        return state, totals

    return chunked


def _sums_with_state(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Totals]]:
    """`as_sums(loss)`. Raises `TypeError` for a loss that takes no state."""
    if not takes_state(loss):
        raise TypeError(
            "in_chunks hands a state from chunk to chunk and adds up sums, so it takes a "
            "loss(model, batch, key, state) -> (state, sums), not numbers for rows. "
            f"See {LOSS_PAGE}."
        )
    return as_sums(loss)


def _check_cuts(model: PyTree, batch: Mapping[str, Array], axes: tuple[int, ...]) -> None:
    labels = batch["labels"]
    if labels.shape[:2] != axes:
        raise ValueError(
            f"in_chunks: there must be a label for each step, so labels must have a shape that "
            f"begins with {axes}; got {labels.shape}. For one label per sequence, give the chunk "
            "to the model: "
            "SequenceClassifier(..., chunk=...), RNN(..., chunk=...) or DeepRNN(..., chunk=...)."
        )
    if not isinstance(model, SequenceModel):
        raise ValueError(
            f"in_chunks: {type(model).__name__} is not a rnnscale.SequenceModel, so whether it is "
            "causal is unknown. Derive it from that class, or use the loss without in_chunks."
        )
    if not model.causal:
        raise ValueError(
            f"in_chunks: {type(model).__name__} sees later steps. Use a causal model, or the loss "
            "without in_chunks."
        )


def _fold(keys: Key[Array, "*batch"] | None, chunk: Int[Array, ""]) -> Key[Array, "*batch"] | None:
    return None if keys is None else fold_keys(keys, chunk)
