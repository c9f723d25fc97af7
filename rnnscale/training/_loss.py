"""Losses as sums over a batch, so that parts of a batch of any sizes add up."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from rnnscale._base import State, TakesIntervals
from rnnscale.layers import RecurrentNetwork

type Batch = Mapping[str, Array | np.ndarray]
type Totals = dict[str, Float[Array, "..."]]

# The arrays of a batch that are arguments of the model, in addition to its inputs.
_MODEL_ARGUMENTS = ("reset", "lengths", "intervals")


def cross_entropy(
    model: PyTree, batch: Batch, key: Key[Array, "*#batch"] | None, state: State | None = None
) -> tuple[State, Totals]:
    """The cross-entropy of labels given logits, in nats, summed over all labels that count.

    **Arguments:**

    - `model`: a `RecurrentNetwork`, such as `RNN`, whose readout gives the logits; or any model
        whose call, like that of a sequence layer, returns `(state, logits)`. It gets `reset`,
        `lengths` and `intervals` if the batch has them. Logits have the shape "*batch classes" or
        "*batch time classes".
    - `batch`: `inputs`; `labels`, integers with the shape of the logits without the last axis;
        optionally `lengths`, the valid steps of each row; `weight`, a factor for each row or each
        label; and `scored`, booleans with the shape of the labels, true for those that count for
        the accuracy.
    - `key`: for dropout: one key, or one for each row. `None` means evaluation.
    - `state`: the state to start from, if it is carried from batch to batch. Default zero.

    **Returns:** `(state, totals)`: the model's last state, and the sums `loss`, `correct` (the
    number of labels with the largest logit) and `count`. If the batch has `scored`, `correct`
    counts those labels only, and the sum `scored` is their number.

    **Raises:** `ValueError` if the shape of labels or `scored` does not match the logits.
    """
    labels = batch["labels"]
    state, logits = call_model(model, batch, key, state, label_axes=jnp.ndim(labels))
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of the logits without classes, {logits.shape[:-1]}; got "
            f"{labels.shape}"
        )
    logits = logits.astype(jnp.float32)
    weight = _weight(batch, labels.shape)
    # Labels that do not count may have any value, often -100.
    labels = jnp.where(weight > 0, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    totals = {
        "loss": jnp.sum(jnp.where(weight > 0, losses * weight, 0)),
        "correct": jnp.sum(correct * weight),
        "count": jnp.sum(weight),
    }
    if "scored" not in batch:
        return state, totals
    scored = batch["scored"]
    if scored.shape != labels.shape:
        raise ValueError(
            f"scored must have the shape of labels, {labels.shape}; got {scored.shape}"
        )
    weight = weight * scored
    return state, {**totals, "correct": jnp.sum(correct * weight), "scored": jnp.sum(weight)}


def squared_error(
    model: PyTree, batch: Batch, key: Key[Array, "*#batch"] | None, state: State | None = None
) -> tuple[State, Totals]:
    """The squared error of predictions, summed over all entries of the labels that count.

    **Arguments:**

    - `model`: as for `cross_entropy`, with predictions of shape "*batch odim" or "*batch time
        odim".
    - `batch`: `inputs`; `labels`, real, with the shape of the predictions; optionally `lengths`,
        the valid steps of each row, and `weight`, a factor for each row or each step.
    - `key`, `state`: as for `cross_entropy`.

    **Returns:** `(state, totals)`: the model's last state; the sums `loss` and `count` over
    entries; and, for the NRMSE, the sums `label` and `label_square` of each feature of the labels,
    shape `(odim,)`. These are in float32, so labels should be of order one: the variance is lost if
    the mean is a thousand times the standard deviation.

    **Raises:** `ValueError` if the shapes of labels and predictions differ.
    """
    labels = batch["labels"]
    state, predictions = call_model(model, batch, key, state, label_axes=jnp.ndim(labels) - 1)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels must have the shape of the predictions, {predictions.shape}; got "
            f"{labels.shape}"
        )
    weight = jnp.broadcast_to(_weight(batch, labels.shape[:-1])[..., None], labels.shape)
    # Labels and predictions that do not count may have any value.
    labels = jnp.where(weight > 0, labels, 0).astype(jnp.float32)
    errors = jnp.where(weight > 0, predictions.astype(jnp.float32) - labels, 0)
    all_but_features = tuple(range(labels.ndim - 1))
    return state, {
        "loss": jnp.sum(jnp.square(errors) * weight),
        "count": jnp.sum(weight),
        "label": jnp.sum(labels * weight, axis=all_but_features),
        "label_square": jnp.sum(jnp.square(labels) * weight, axis=all_but_features),
    }


def means(totals: Mapping[str, Any]) -> dict[str, Any]:
    r"""Means over the labels that count, from the sums of a loss.

    **Arguments:**

    - `totals`: the sums that a loss returned, possibly added up over batches.

    **Returns:** each sum divided by `count`, with two exceptions. `correct` becomes `accuracy`, and
    is divided by `scored` if there is one. `label` and `label_square` become `nrmse`, the root of
    the mean loss divided by the labels' variance, which is averaged over features.
    """
    totals = dict(totals)
    count = totals.pop("count")
    metrics = {}
    if "correct" in totals:
        metrics["accuracy"] = totals.pop("correct") / totals.pop("scored", count)
    if "label" in totals:
        label, square = totals.pop("label"), totals.pop("label_square")
        # `count` includes all features.
        per_feature = count / label.size
        variance = (square / per_feature - (label / per_feature) ** 2).mean()
        metrics["nrmse"] = (totals["loss"] / count / variance) ** 0.5
    return {**{name: total / count for name, total in totals.items()}, **metrics}


def with_metric(means: Mapping[str, Any], metric: str | None) -> dict[str, Any]:
    """`means` with `metric` added, if it is the loss in another unit or under another name."""
    match metric:
        case "bits_per_byte":
            return {**means, "bits_per_byte": means["loss"] / math.log(2)}
        case "mse":
            return {**means, "mse": means["loss"]}
    return dict(means)


def call_model(
    model: PyTree,
    batch: Batch,
    key: Key[Array, "*#batch"] | None = None,
    state: State | None = None,
    *,
    label_axes: int,
) -> tuple[State, Array]:
    """Calls a model on a batch, as the losses do.

    **Arguments:**

    - `model`, `key`, `state`: as for `cross_entropy`.
    - `batch`: the inputs, and those of `reset`, `lengths` and `intervals` that there are.
    - `label_axes`: the axes of the labels without features: those of the batch for a label per
        sequence, and one more for a label per step.

    **Returns:** the last state, and an output for each label.

    **Raises:** `ValueError` if the batch has `intervals` that the model does not take.
    """
    inputs = jnp.asarray(batch["inputs"])
    options: dict[str, Any] = {name: batch[name] for name in _MODEL_ARGUMENTS if name in batch}
    if "intervals" in options and not isinstance(model, TakesIntervals):
        raise ValueError(
            f"the batch has `intervals`, but {type(model).__name__} does not take them: leave them "
            "out, or use a model of S5 layers"
        )
    if state is not None:
        options["state"] = state
    if isinstance(model, RecurrentNetwork):
        per_step = label_axes == inputs.ndim - 1
        return model.outputs(inputs, per_step=per_step, **options, key=key)
    return model(inputs, **options, key=key)


def _weight(
    batch: Batch, shape: tuple[int, ...]
) -> Float[Array, "*batch"] | Float[Array, "*batch time"]:
    """The factor of each label, zero beyond `lengths`."""
    lengths = batch.get("lengths")
    weight = jnp.ones(shape, jnp.float32)
    if "weight" in batch:
        rows = batch["weight"]
        if rows.shape != shape[: rows.ndim]:
            raise ValueError(
                f"weight of shape {rows.shape} for labels of shape {shape}: give one for each row, "
                "or one for each label"
            )
        weight = weight * rows.reshape(rows.shape + (1,) * (len(shape) - rows.ndim))
    if lengths is not None and len(shape) > lengths.ndim:
        weight = jnp.where(jnp.arange(shape[-1]) < lengths[..., None], weight, 0)
    return weight
