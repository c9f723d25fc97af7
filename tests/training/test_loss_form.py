"""Losses of one's own: the form that returns a mean, the form that returns sums, and neither."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float

from rnnscale import RNN, ElmanRNNCell
from rnnscale.training import (
    Carry,
    TrainState,
    evaluate,
    in_chunks,
    make_eval_step,
    make_train_step,
    squared_error,
)

KEY = jax.random.key(0)
OPTIMISER = optax.sgd(0.1)
BATCH = {
    "inputs": jax.random.normal(KEY, (8, 5, 2)),
    "labels": jax.random.normal(jax.random.key(1), (8, 3)),
}


def model() -> RNN:
    return RNN(ElmanRNNCell(2, 4, key=KEY), 3, key=KEY)


def mean_error(model, batch):
    y, _ = model(batch["inputs"])
    return jnp.mean((y - batch["labels"]) ** 2)


def step(loss: Any, **options: Any) -> tuple[Any, Any]:
    state = TrainState.create(model(), OPTIMISER, jax.random.key(2))
    return make_train_step(loss, OPTIMISER, **options)(state, BATCH)


@pytest.mark.parametrize(("loss", "parts"), [(0, 1), (0, 4), (1, 4)])
def test_a_mean_or_numbers_for_rows_give_the_step_of_the_sums(loss: int, parts: int):
    got, metrics = step((mean_error, row_errors)[loss], accumulation=parts)
    expected, others = step(squared_error)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got.model), jax.tree.leaves(expected.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_parts_in_bfloat16_are_added_in_float32():
    """In bfloat16 a sum of hundreds of parts stays where its steps are below its rounding."""

    class Sum(eqx.Module):
        weight: Float[Array, " inputs"]

    def error(model, batch):
        return batch["inputs"] @ model.weight

    inputs = jnp.asarray(1 + 0.01 * np.random.default_rng(0).normal(size=(1024, 4)), jnp.bfloat16)
    optimiser = optax.sgd(1.0)
    start = TrainState.create(Sum(jnp.zeros(4, jnp.bfloat16)), optimiser, KEY)
    run = make_train_step(error, optimiser, accumulation=512)
    state, _ = run(start, {"inputs": inputs})
    expected = -np.mean(np.asarray(inputs, np.float64), axis=0)
    np.testing.assert_allclose(np.asarray(state.model.weight, np.float64), expected, rtol=4e-3)


def test_a_mean_is_evaluated_over_rows_of_batches_of_any_size():
    parts = [jax.tree.map(lambda x, s=s: x[s], BATCH) for s in (slice(0, 6), slice(6, 8))]
    got = evaluate(make_eval_step(mean_error), model(), parts)
    assert got == {"loss": pytest.approx(float(mean_error(model(), BATCH)), rel=1e-6)}


def row_errors(model, batch):
    y, _ = model(batch["inputs"])
    return jnp.mean((y - batch["labels"]) ** 2, axis=-1)


def test_numbers_for_rows_are_weighted_and_a_mean_refuses_weights():
    """As in the last batch of `evaluation_batches`: copies of a row, and whatever is in them."""
    filled = {**BATCH, "weight": jnp.arange(8) < 5.0}
    filled["inputs"] = BATCH["inputs"].at[5:].set(jnp.nan)
    got = evaluate(make_eval_step(row_errors), model(), [filled])
    kept = jax.tree.map(lambda x: x[:5], BATCH)
    assert got == {"loss": pytest.approx(float(mean_error(model(), kept)), rel=1e-6)}
    with pytest.raises(ValueError, match=r"must return a number for each row then, not their mean"):
        make_eval_step(mean_error)(model(), filled)
    with pytest.raises(ValueError, match=r"weights of shape \(8, 5\), and row_errors"):
        make_eval_step(row_errors)(model(), {**BATCH, "weight": jnp.ones((8, 5))})


def test_a_mean_takes_no_carry():
    state = TrainState.create(model(), OPTIMISER, jax.random.key(2), carry=Carry.zeros(model(), 8))
    with pytest.raises(ValueError, match=r"the training state has a carry, but mean_error"):
        make_train_step(mean_error, OPTIMISER)(state, BATCH)


def test_a_mean_is_not_cut_into_chunks():
    mean: Any = mean_error
    with pytest.raises(
        TypeError, match=r"in_chunks hands a state .*, not numbers for.*A loss of your"
    ):
        in_chunks(mean, 2)


def with_option(model, batch, factor=1.0):
    return factor * mean_error(model, batch)


def with_key(model, batch, key):
    return mean_error(model, batch)


@pytest.mark.parametrize("loss", [with_option, with_key, lambda model: 0, RNN])
def test_what_has_neither_form_is_refused(loss: Any):
    with pytest.raises(TypeError, match=r"the loss must be .*loss\(model, batch\).*A loss of your"):
        make_eval_step(loss)


@pytest.mark.parametrize("loss", [optax.sgd(1), None])
def test_what_cannot_be_called_is_refused(loss: Any):
    with pytest.raises(TypeError, match=r"loss must be a function; got "):
        make_eval_step(loss)


def test_options_are_set_by_keyword():
    loss: Any = functools.partial(with_option, factor=2.0)
    _, sums = make_eval_step(loss)(model(), BATCH)
    assert sums["loss"] / sums["count"] == pytest.approx(
        2 * float(mean_error(model(), BATCH)), rel=1e-6
    )


def steps(model, batch):
    return jnp.zeros((8, 5))


def pair(model, batch):
    return mean_error(model, batch), {}


def integer(model, batch):
    return jnp.int32(0)


def totals_only(model, batch, key, state):
    return {"loss": jnp.float32(0), "count": jnp.float32(1)}


def state_last(model, batch, key, state):
    return totals_only(model, batch, key, state), state


def without_count(model, batch, key, state):
    return state, {"loss": jnp.float32(0)}


def loss_of_rows(model, batch, key, state):
    return state, {"loss": jnp.zeros(8), "count": jnp.float32(8)}


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (steps, TypeError, r"steps\(model, batch\) must return one floating .*float32\[8,5\]"),
        (pair, TypeError, r"pair\(model, batch\) must return one floating number.*\(float32\[\], "),
        (integer, TypeError, r"integer\(model, batch\) must return one floating.*int32\[\]"),
        (totals_only, TypeError, r"totals_only\(.*\) must return \(state, sums\).*; got \{"),
        (state_last, TypeError, r"state_last\(.*\) must return \(state, sums\).*; got \("),
        (without_count, ValueError, "without_count: .*; got loss without count"),
        (loss_of_rows, TypeError, r"loss_of_rows: .* single numbers.*float32\[8\]"),
    ],
)
def test_what_a_loss_returns_is_checked(loss: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=rf"(?s){message}.*A loss of your own.*training/README.md"):
        jax.eval_shape(make_eval_step(loss), model(), BATCH)


def test_an_error_inside_a_loss_says_what_it_was_given():
    def forgets_the_state(model, batch):
        return jnp.mean(model(batch["inputs"]) - batch["labels"])

    with pytest.raises(TypeError, match=r"(?s)the loss forgets_the_state.*labels: float32\[8,3\]"):
        jax.eval_shape(make_eval_step(forgets_the_state), model(), BATCH)
