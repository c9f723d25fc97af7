"""Losses of a batch, as sums, so that parts of a batch add up whatever their sizes."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from rnnscale._base import State, TakesIntervals
from rnnscale.layers import RecurrentNetwork

type Batch = Mapping[str, Array | np.ndarray]
type Totals = dict[str, Float[Array, "..."]]
type Metric = Literal["accuracy", "bits_per_byte", "mse", "nrmse"]

# The arrays of a batch that are arguments of the model, in addition to its inputs.
_MODEL_ARGUMENTS = ("reset", "lengths", "intervals")


def cross_entropy(
    model: PyTree, batch: Batch, key: Key[Array, "*#batch"] | None, state: State | None = None
) -> tuple[State, Totals]:
    """The cross-entropy in nats of labels given logits, summed over all labels that count.

    **Arguments:**

    - `model`: called as a sequence layer is, with those of `reset`, `lengths` and `intervals` that
        the batch has, returns `(state, logits)` with logits of shape "*batch classes" or "*batch
        time classes"; or an `RNN`, `DeepRNN` and the like, whose readout gives the logits.
    - `batch`: `inputs`; `labels`, integers of the shape of the logits without the last axis;
        optionally `lengths`, the valid steps of each row, `weight`, a factor for each row or each
        label, and `scored`, booleans of the shape of the labels: those that the accuracy is of.
    - `key`: for dropout: one key, or one for each row; `None` to evaluate.
    - `state`: to start from, where it is carried from batch to batch; zero by default.

    **Returns:** `(state, totals)`: the model's last state, and the sums `loss`, `correct` (labels
    that have the largest logit) and `count`; where the batch has `scored`, `correct` is over those
    labels, and `scored` is how many they are.

    **Raises:** `ValueError` where labels, or `scored`, and logits do not meet.
    """
    labels = batch["labels"]
    state, logits = _call(model, batch, key, state, label_axes=jnp.ndim(labels))
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels of shape {labels.shape} for logits of shape {logits.shape}")
    logits = logits.astype(jnp.float32)
    weight = _weight(batch, labels.shape)
    # Labels that do not count may be anything: -100 is a usual mark.
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
        raise ValueError(f"scored of shape {scored.shape} for labels of shape {labels.shape}")
    weight = weight * scored
    return state, {**totals, "correct": jnp.sum(correct * weight), "scored": jnp.sum(weight)}


def squared_error(
    model: PyTree, batch: Batch, key: Key[Array, "*#batch"] | None, state: State | None = None
) -> tuple[State, Totals]:
    """The squared error of predictions, summed over all entries of the labels that count.

    **Arguments:**

    - `model`: called as for `cross_entropy`, returns `(state, predictions)` with predictions of
        shape "*batch odim" or "*batch time odim".
    - `batch`: `inputs`; `labels`, real, of the shape of the predictions; optionally `lengths`, the
        valid steps of each row, and `weight`, a factor for each row, or for each step of it.
    - `key`, `state`: as for `cross_entropy`.

    **Returns:** `(state, totals)`: the model's last state, and the sums `loss` and `count`, over
    entries; and of each feature of the labels the sums `label` and `label_square`, shape `(odim,)`,
    for the NRMSE. These are in float32, so labels should be of order one: a mean a thousand times
    the standard deviation would drown it.

    **Raises:** `ValueError` where labels and predictions do not meet.
    """
    labels = batch["labels"]
    state, predictions = _call(model, batch, key, state, label_axes=jnp.ndim(labels) - 1)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels of shape {labels.shape} for predictions of shape {predictions.shape}"
        )
    weight = jnp.broadcast_to(_weight(batch, labels.shape[:-1])[..., None], labels.shape)
    # Labels and predictions that do not count may be anything.
    labels = jnp.where(weight > 0, labels, 0).astype(jnp.float32)
    errors = jnp.where(weight > 0, predictions.astype(jnp.float32) - labels, 0)
    labels_apart = tuple(range(labels.ndim - 1))
    return state, {
        "loss": jnp.sum(jnp.square(errors) * weight),
        "count": jnp.sum(weight),
        "label": jnp.sum(labels * weight, axis=labels_apart),
        "label_square": jnp.sum(jnp.square(labels) * weight, axis=labels_apart),
    }


def means(totals: Mapping[str, Any]) -> dict[str, Any]:
    r"""What the sums of a loss say: means over the labels that count.

    **Arguments:**

    - `totals`: as of a loss, or added up over batches.

    **Returns:** each sum over `count`, but for `correct`, which gives `accuracy` and is over
    `scored` where that is there, and for `label` and `label_square`, which give `nrmse`: the root
    of the loss over that of the labels' variance, a mean over their features.
    """
    totals = dict(totals)
    count = totals.pop("count")
    found = {}
    if "correct" in totals:
        found["accuracy"] = totals.pop("correct") / totals.pop("scored", count)
    if "label" in totals:
        label, square = totals.pop("label"), totals.pop("label_square")
        # `count` is over all features.
        per_feature = count / label.size
        variance = (square / per_feature - (label / per_feature) ** 2).mean()
        found["nrmse"] = (totals["loss"] / count / variance) ** 0.5
    return {**{name: total / count for name, total in totals.items()}, **found}


def with_metric(means: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """The means and a metric that is the loss in other words, if `metric` is one."""
    match metric:
        case "bits_per_byte":
            return {**means, "bits_per_byte": means["loss"] / math.log(2)}
        case "mse":
            return {**means, "mse": means["loss"]}
    return dict(means)


def _call(
    model: PyTree,
    batch: Batch,
    key: Key[Array, "*#batch"] | None,
    state: State | None,
    *,
    label_axes: int,
) -> tuple[State, Array]:
    """The last state, and an output for each label; labels have so many axes."""
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
    """What each label counts for."""
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
