"""The loss of a batch, as sums, so that parts of a batch add up whatever their sizes."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

type Totals = dict[str, Float[Array, ""]]


def cross_entropy(
    model: PyTree, batch: Mapping[str, Array | np.ndarray], key: Key[Array, "*#batch"] | None
) -> Totals:
    """The cross-entropy in nats of labels given logits, summed over all labels that count.

    **Arguments:**

    - `model`: called as `model(inputs, lengths=lengths, key=key)`, returns `(state, logits)` with
        logits of shape "*batch classes" or "*batch time classes".
    - `batch`: `inputs`; `labels`, integers of the shape of the logits without the last axis;
        optionally `lengths`, the valid steps of each row, and `weight`, a factor for each row.
    - `key`: for dropout: one key, or one for each row; `None` to evaluate.

    **Returns:** the sums `loss`, `correct` (labels that have the largest logit) and `count`.

    **Raises:** `ValueError` where labels and logits do not meet.
    """
    labels, lengths = batch["labels"], batch.get("lengths")
    _, logits = model(batch["inputs"], lengths=lengths, key=key)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels of shape {labels.shape} for logits of shape {logits.shape}")
    logits = logits.astype(jnp.float32)
    weight = jnp.ones(labels.shape, jnp.float32)
    if "weight" in batch:
        rows = batch["weight"]
        weight = weight * rows.reshape(rows.shape + (1,) * (labels.ndim - rows.ndim))
    if lengths is not None and labels.ndim > lengths.ndim:
        weight = jnp.where(jnp.arange(labels.shape[-1]) < lengths[..., None], weight, 0)
    # Labels that do not count may be anything: -100 is a usual mark.
    labels = jnp.where(weight > 0, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    return {
        "loss": jnp.sum(jnp.where(weight > 0, losses * weight, 0)),
        "correct": jnp.sum(correct * weight),
        "count": jnp.sum(weight),
    }
