"""A loss in chunks of time has the same value, gradient and state, in less memory."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnscale import SequenceModel, verify
from rnnscale.attention import LinearAttention, LocalAttention
from rnnscale.cells import GatedRecurrentUnitCell, LongShortTermMemoryCell, MinGRUCell
from rnnscale.layers import DeepRNNEncoder, Dropout, GriffinRecurrence, RNNEncoder
from rnnscale.models import LanguageModel, SequenceClassifier
from rnnscale.sharding import batch_sharding, make_mesh, sharded_init, shardings
from rnnscale.ssm import LRU, S5, BidirectionalS5
from rnnscale.training import (
    TrainState,
    cross_entropy,
    in_chunks,
    make_train_step,
    squared_error,
)

ROWS, TIME, DIM, VOCAB = 4, 20, 8, 11
LAYERS = {
    "S5": lambda key: S5(DIM, 2 * DIM, key=key),
    "LRU": lambda key: LRU(DIM, DIM, key=key),
    "cells": lambda key: DeepRNNEncoder(
        [
            RNNEncoder(LongShortTermMemoryCell(DIM, DIM, key=key)),
            RNNEncoder(GatedRecurrentUnitCell(DIM, DIM, key=key), remat=True),
            RNNEncoder(MinGRUCell(DIM, DIM, key=key)),
        ]
    ),
    "LSTM": lambda key: RNNEncoder(LongShortTermMemoryCell(DIM, DIM, key=key)),
    "LinearAttention": lambda key: LinearAttention(DIM, 2, key=key),
    "hybrid": [
        lambda key: GriffinRecurrence(DIM, key=key),
        lambda key: LocalAttention(DIM, 2, 7, key=key),
    ],
}


def language_model(layer, key):
    return LanguageModel(VOCAB, make_layer=LAYERS[layer], dim=DIM, depth=2, key=key)


def classifier(key, make_layer=LAYERS["LRU"], **options):
    return SequenceClassifier(3, 5, make_layer=make_layer, dim=DIM, depth=2, key=key, **options)


def tokens():
    """Rows that end at the last step, in the middle of a chunk, before the first step and at a
    border, with segments, and labels of different weights, some of them scored."""
    rng = np.random.default_rng(0)
    shape = (ROWS, TIME)
    return {
        "inputs": rng.integers(0, VOCAB, shape),
        "labels": rng.integers(0, VOCAB, shape),
        "reset": rng.random(shape) < 0.2,
        "lengths": np.array([TIME, 12, 0, 10], np.int32),
        "weight": rng.random(shape).astype(np.float32),
        "scored": rng.random(shape) < 0.5,
    }


def gradient_of(loss, model, batch, state=None):
    """The leaves of value, state, totals and gradient."""

    @jax.jit
    def run(model, batch, state):
        def total(model):
            after, totals = loss(model, batch, None, state)
            return totals["loss"], (after, totals)

        return jax.value_and_grad(total, has_aux=True)(model)

    return jax.tree.leaves(run(model, batch, state))


@functools.cache
def subject(layer):
    """A model, and a state that is not zero."""

    @jax.jit
    def build(key):
        model = language_model(layer, key)
        moved = lambda x: x + 0.5 if eqx.is_inexact_array(x) else x  # noqa: E731
        return model, jax.tree.map(moved, model.init_state((ROWS,)))

    return build(jax.random.key(0))


@functools.cache
def expected_of(layer):
    model, state = subject(layer)
    return gradient_of(cross_entropy, model, tokens(), state)


@pytest.mark.parametrize(
    ("layer", "steps"), [("S5", 6), ("cells", 5), ("LinearAttention", 5), ("hybrid", 5)]
)
def test_value_gradient_and_state_do_not_depend_on_the_chunks(layer, steps):
    model, state = subject(layer)
    got = gradient_of(in_chunks(cross_entropy, steps), model, tokens(), state)
    assert verify.relative_error(got, expected_of(layer)) < 1e-5


def test_intervals_features_and_a_fresh_state(getkey):
    model = jax.jit(lambda key: classifier(key, LAYERS["S5"], pool="none"))(getkey())
    batch = {
        "inputs": jax.random.normal(getkey(), (ROWS, TIME, 3)),
        "labels": jax.random.normal(getkey(), (ROWS, TIME, 5)),
        "intervals": jax.random.exponential(getkey(), (ROWS, TIME)),
        "weight": jnp.arange(ROWS),
    }
    chunks = jax.jit(in_chunks(squared_error, 5))(model, batch, None)
    expected = jax.jit(squared_error)(model, batch, None)
    assert verify.relative_error(chunks, expected) < 1e-5


class Noise(SequenceModel):
    """A model that is nothing but dropout."""

    dropout: Dropout

    @property
    def causal(self):
        return True

    def __call__(self, xs, state, *, key):
        return state, self.dropout(xs, key=key)

    def init_state(self, batch_shape=(), dtype=None):
        return jnp.zeros(batch_shape)


def test_no_two_chunks_or_rows_have_the_same_masks(key):
    def total(inputs):
        batch = {"inputs": inputs, "labels": jnp.zeros_like(inputs)}
        _, totals = in_chunks(squared_error, 16)(Noise(Dropout(0.5)), batch, key)
        return totals["loss"]

    # The slope of (2 x)² at one half is 4 where x is kept.
    kept = jax.jit(jax.grad(total))(jnp.full((2, 64, 3), 0.5)) / 4
    assert set(np.unique(kept)) == {0, 1} and 0.4 < np.mean(kept) < 0.6
    masks = np.asarray(kept).reshape(8, -1)
    assert len({tuple(mask) for mask in masks}) == 8


def test_on_a_mesh():
    model, state = subject("S5")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        model = jax.device_put(model, shardings(model, mesh))
        batch = {
            name: jax.device_put(x, batch_sharding(mesh, x.ndim)) for name, x in tokens().items()
        }
        got = jax.device_get(gradient_of(in_chunks(cross_entropy, 5), model, batch, state))
    assert verify.relative_error(got, expected_of("S5")) < 1e-5


def test_in_a_train_step_that_accumulates(key):
    optimiser = optax.sgd(1e-2)
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        state = sharded_init(
            lambda key: TrainState.create(language_model("LRU", key), optimiser, key), key, mesh
        )
        _, expected = jax.jit(cross_entropy)(state.model, tokens(), None)
        step = make_train_step(in_chunks(cross_entropy, 5), optimiser, accumulation=2)
        _, metrics = step(state, tokens())
    assert float(metrics["loss"]) == pytest.approx(
        float(expected["loss"] / expected["count"]), rel=1e-5
    )
    assert metrics["skipped"] == 0 and metrics["grad_norm"] > 0


def test_memory_grows_with_the_root_of_the_length(key):
    model = jax.eval_shape(lambda key: language_model("LSTM", key), key)

    def temporaries(time, loss):
        array = jax.ShapeDtypeStruct((1, time), jnp.int32)

        @jax.jit
        @jax.grad
        def gradient(model, batch):
            return loss(model, batch, None)[1]["loss"]

        memory: Any = (
            gradient.lower(model, {"inputs": array, "labels": array}).compile().memory_analysis()
        )
        return memory.temp_size_in_bytes

    short, long = (temporaries(4**n, in_chunks(cross_entropy, 2**n)) for n in (6, 7))
    # Four times as long: twice the memory, and less for what does not grow.
    assert long < 2 * short


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (classifier, (ROWS,), r"a label for each step.* begins with \(4, 20\); got \(4,\)"),
        (
            lambda key: classifier(key, lambda key: BidirectionalS5(DIM, 8, key=key), pool="none"),
            (ROWS, TIME),
            "SequenceClassifier sees later steps",
        ),
        (lambda key: Dropout(0.5), (ROWS, TIME), "Dropout is not a rnnscale.SequenceModel"),
    ],
)
def test_what_cannot_be_cut(model, labels, message, key):
    def run(key):
        batch = {"inputs": jnp.zeros((ROWS, TIME, 3)), "labels": jnp.zeros(labels, jnp.int32)}
        return in_chunks(cross_entropy, 5)(model(key), batch, None)[1]

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, key)


def test_other_errors(key):
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        in_chunks(cross_entropy, 0)
    mesh = make_mesh(seq=2, devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="in_chunks: .* over seq=2"):
        jax.eval_shape(
            lambda key: in_chunks(cross_entropy, 5)(language_model("LRU", key), tokens(), None)[1],
            key,
        )
