"""Losses against NumPy in float64, and figures that don't depend on how labels are cut up."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnscale.layers import Linear
from rnnscale.sharding import batch_sharding, make_mesh
from rnnscale.training import (
    Log,
    TrainState,
    cross_entropy,
    evaluate,
    fit,
    make_eval_step,
    make_train_step,
    squared_error,
)

ROWS, TIME, IDIM, ODIM = 16, 6, 3, 2


class Readout(eqx.Module):
    """A linear map of every step, or of the first one."""

    linear: Linear
    each_step: bool = eqx.field(static=True)

    def __call__(self, xs, *, lengths=None, key=None):
        return None, self.linear(xs if self.each_step else xs[..., 0, :])


def readout(key, odim=ODIM, each_step=True):
    return Readout(Linear(IDIM, odim, key=key), each_step)


def regression_batch(seed, each_step=True):
    rng = np.random.default_rng(seed)
    shape = (ROWS, TIME, ODIM) if each_step else (ROWS, ODIM)
    return {
        "inputs": rng.normal(size=(ROWS, TIME, IDIM)).astype(np.float32),
        # Every feature and every batch with a mean and a scale of its own.
        "labels": (rng.normal([2.0, -1.0], [0.5, 3.0], shape) + seed).astype(np.float32),
        "lengths": rng.integers(1, TIME + 1, ROWS),
        "weight": rng.integers(0, 3, ROWS).astype(np.float32),
    }


def copy_batch(seed, classes=4):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.normal(size=(ROWS, TIME, IDIM)).astype(np.float32),
        "labels": rng.integers(0, classes, (ROWS, TIME)),
        "scored": rng.random((ROWS, TIME)) < 0.3,
        "weight": rng.integers(0, 2, ROWS).astype(np.float32),
    }


def outputs_of(model, batch):
    xs = batch["inputs"].astype(np.float64)
    xs = xs if model.each_step else xs[:, 0]
    weight, bias = (np.asarray(p, np.float64) for p in (model.linear.weight, model.linear.bias))
    return xs @ weight.T + bias


def weights_of(model, batch):
    """What each label counts for, by a loop."""
    if not model.each_step:
        return batch["weight"].astype(np.float64)
    weights = np.zeros((ROWS, TIME))
    for row, step in itertools.product(range(ROWS), range(TIME)):
        if step < batch.get("lengths", np.full(ROWS, TIME))[row]:
            weights[row, step] = batch["weight"][row]
    return weights


def figures_by_hand(model, batches):
    """MSE and NRMSE of all labels of all batches, each repeated as often as its weight says."""
    labels, outputs = [], []
    for batch in batches:
        often = weights_of(model, batch).astype(int).ravel()
        labels.append(np.repeat(batch["labels"].reshape(-1, ODIM), often, axis=0))
        outputs.append(np.repeat(outputs_of(model, batch).reshape(-1, ODIM), often, axis=0))
    labels, outputs = np.concatenate(labels, dtype=np.float64), np.concatenate(outputs)
    mse = np.mean((outputs - labels) ** 2)
    return mse, np.sqrt(mse / np.mean(np.std(labels, axis=0) ** 2))


@pytest.mark.parametrize("each_step", [True, False])
def test_squared_error_against_numpy(key, each_step):
    model, batch = readout(key, each_step=each_step), regression_batch(0, each_step)
    weights = weights_of(model, batch)
    errors = (outputs_of(model, batch) - batch["labels"]) ** 2
    _, got = squared_error(model, batch, None)
    np.testing.assert_allclose(got["loss"], np.sum(errors * weights[..., None]), rtol=1e-5)
    assert float(got["count"]) == weights.sum() * ODIM


@pytest.mark.parametrize("metric", ["mse", "nrmse"])
@pytest.mark.parametrize("each_step", [True, False])
def test_evaluation_is_over_all_labels_together(key, metric, each_step):
    model = readout(key, each_step=each_step)
    batches = [regression_batch(seed, each_step) for seed in range(4)]
    expected = dict(zip(("mse", "nrmse"), figures_by_hand(model, batches), strict=True))
    got = evaluate(make_eval_step(squared_error), model, batches, metric=metric)
    assert got == pytest.approx({"loss": expected["mse"], metric: expected[metric]}, rel=1e-5)


def test_the_mean_of_each_feature_has_an_nrmse_of_one(key):
    batches = [{**regression_batch(seed), "weight": np.ones(ROWS, np.float32)} for seed in range(3)]
    for batch in batches:
        del batch["lengths"]
    mean = np.concatenate([b["labels"].reshape(-1, ODIM) for b in batches], dtype=np.float64)
    model = eqx.tree_at(
        lambda m: (m.linear.weight, m.linear.bias),
        readout(key),
        (jnp.zeros((ODIM, IDIM)), jnp.asarray(mean.mean(0), jnp.float32)),
    )
    got = evaluate(make_eval_step(squared_error), model, batches, metric="nrmse")
    assert got is not None and got["nrmse"] == pytest.approx(1, rel=1e-5)


def test_what_does_not_count_may_be_anything(key):
    model, batch = readout(key), regression_batch(0)
    padded = np.arange(TIME) >= batch["lengths"][:, None]
    marked = {
        **batch,
        "labels": np.where(padded[..., None], np.nan, batch["labels"]),
        "inputs": np.where(padded[..., None], np.inf, batch["inputs"]),
    }
    (_, got), (_, expected) = (squared_error(model, each, None) for each in (marked, batch))
    assert padded.any()
    for name, total in expected.items():
        np.testing.assert_array_equal(got[name], total)


def gradient_by_hand(model, batch):
    weights = weights_of(model, batch)
    slope = 2 * (outputs_of(model, batch) - batch["labels"]) * weights[..., None]
    count = weights.sum() * ODIM
    return np.einsum("bto,bti->oi", slope, batch["inputs"].astype(np.float64)) / count


@pytest.mark.parametrize("axes", [{"data": 1}, {"data": 8}, {"data": 2, "fsdp": 2}], ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_descent_on_every_mesh_and_in_parts(key, axes, accumulation):
    batch, optimiser = regression_batch(3), optax.sgd(0.25)
    model = readout(key)
    expected = np.asarray(model.linear.weight) - 0.25 * gradient_by_hand(model, batch)
    mse, nrmse = figures_by_hand(model, [batch])
    mesh = make_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])
    with jax.set_mesh(mesh):
        placed = {n: jax.device_put(x, batch_sharding(mesh, x.ndim)) for n, x in batch.items()}
        step = make_train_step(squared_error, optimiser, accumulation=accumulation)
        state, metrics = step(TrainState.create(model, optimiser, key), placed)
        np.testing.assert_allclose(state.model.linear.weight, expected, rtol=1e-5, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(mse, rel=1e-5)
    assert float(metrics["nrmse"]) == pytest.approx(nrmse, rel=1e-5)


def test_the_accuracy_is_of_scored_labels_and_the_loss_of_all(key):
    model, batches = readout(key, odim=4), [copy_batch(seed) for seed in range(3)]
    losses, hits, scored = [], [], []
    for batch in batches:
        logits = outputs_of(model, batch)
        chosen = np.take_along_axis(logits, batch["labels"][..., None], -1)[..., 0]
        counts = batch["weight"] == 1
        losses.append((np.log(np.exp(logits).sum(-1)) - chosen)[counts].ravel())
        hits.append(logits.argmax(-1)[counts] == batch["labels"][counts])
        scored.append(hits[-1][batch["scored"][counts]])
    got = evaluate(make_eval_step(cross_entropy), model, batches)
    expected = {
        "loss": np.mean(np.concatenate(losses)),
        "accuracy": np.mean(np.concatenate(scored)),
    }
    assert got == pytest.approx(expected, rel=1e-5)
    unscored = [{n: x for n, x in batch.items() if n != "scored"} for batch in batches]
    got = evaluate(make_eval_step(cross_entropy), model, unscored)
    expected["accuracy"] = np.mean(np.concatenate(hits))
    assert got == pytest.approx(expected, rel=1e-5)

    optimiser = optax.sgd(0.1)
    step = make_train_step(cross_entropy, optimiser, accumulation=2)
    _, metrics = step(TrainState.create(model, optimiser, key), batches[0])
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses[0]), rel=1e-5)
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(scored[0]), rel=1e-5)
    assert "scored" not in metrics


def test_the_mse_stands_in_the_log(key):
    mse, nrmse = figures_by_hand(readout(key), [regression_batch(0)])
    optimiser, rows = optax.sgd(0.1), []
    fit(
        TrainState.create(readout(key), optimiser, key),
        make_train_step(squared_error, optimiser),
        map(regression_batch, itertools.count()),
        steps=2,
        callbacks=[Log(rows.append, every=1, metric="mse")],
    )
    assert [row["mse"] for row in rows] == [row["loss"] for row in rows]
    assert (rows[0]["mse"], rows[0]["nrmse"]) == pytest.approx((mse, nrmse), rel=1e-5)


def test_bfloat16_predictions_are_judged_in_float32(key):
    model, batch = readout(key), regression_batch(0)
    half = {**batch, "inputs": batch["inputs"].astype(jnp.bfloat16)}
    _, got = squared_error(model, half, None)
    assert {total.dtype for total in got.values()} == {np.dtype(np.float32)}
    _, exact = squared_error(model, batch, None)
    np.testing.assert_allclose(got["loss"], exact["loss"], rtol=1e-2)
    np.testing.assert_array_equal(got["label_square"], exact["label_square"])


def test_errors(key):
    model, batch = readout(key), regression_batch(0)
    message = r"shape of the predictions, \(16, 6, 2\); got \(16, 6\)"
    with pytest.raises(ValueError, match=message):
        squared_error(model, {**batch, "labels": batch["labels"][..., 0]}, None)
    scored = {**copy_batch(0), "scored": np.ones(ROWS, bool)}
    with pytest.raises(ValueError, match=r"scored must have .* \(16, 6\); got \(16,\)"):
        cross_entropy(readout(key, odim=4), scored, None)
    with pytest.raises(ValueError, match="'accuracy' is not one of the figures .*, loss, nrmse;"):
        evaluate(make_eval_step(squared_error), model, [batch], metric="accuracy")
    with pytest.raises(ValueError, match="nothing to evaluate"):
        none = {**copy_batch(0), "scored": np.zeros((ROWS, TIME), bool)}
        evaluate(make_eval_step(cross_entropy), readout(key, odim=4), [none])


def test_nrmse_of_labels_that_do_not_vary_is_not_finite(key):
    batch = {**regression_batch(0), "labels": np.zeros((ROWS, TIME, ODIM), np.float32)}
    got = evaluate(make_eval_step(squared_error), readout(key), [batch], metric="nrmse")
    assert got is not None and np.isinf(got["nrmse"]) and np.isfinite(got["loss"])


def test_every_sum_of_a_loss_is_a_figure(key):
    def absolute_error(model, batch, key, state=None):
        state, predictions = model(batch["inputs"], key=key)
        errors = jnp.abs(predictions - batch["labels"])
        return state, {
            "loss": jnp.sum(errors),
            "count": jnp.float32(errors.size),
            "within_one": jnp.sum(errors < 1),
        }

    model, batches = readout(key), [regression_batch(0), regression_batch(1)]
    errors = [np.abs(np.asarray(model(b["inputs"])[1]) - b["labels"]) for b in batches]
    expected = {"loss": np.mean(errors), "within_one": np.mean(np.asarray(errors) < 1)}
    eval_step = make_eval_step(absolute_error)
    assert evaluate(eval_step, model, batches) == pytest.approx(expected, rel=1e-5)
    assert evaluate(eval_step, model, batches, metric="within_one") == pytest.approx(
        expected, rel=1e-5
    )
    assert set(evaluate(make_eval_step(squared_error), model, batches) or ()) == {"loss", "nrmse"}
