"""The figures and the warning of `Certificates`, in a real loop of training."""

import logging
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnscale import RNN, ElmanRNNCell
from rnnscale.cells import Newton
from rnnscale.models import certificates
from rnnscale.training import Certificates, Log, TrainState, fit, make_train_step, squared_error

ROWS, TIME = 4, 12
FIGURES = ("iterations", "residual", "stepped", "rows_stepped")


@pytest.fixture(scope="module")
def train_step():
    return make_train_step(squared_error, optax.sgd(1e-3))


def batch(**more: Any) -> dict[str, Any]:
    xs = jax.random.normal(jax.random.key(1), (ROWS, TIME, 2))
    return {"inputs": xs, "labels": jnp.zeros((ROWS, 1)), **more}


def model(gain: float) -> RNN:
    """Stable or chaotic, by its recurrent weights."""
    cell = ElmanRNNCell(2, 16, key=jax.random.key(0))
    cell = eqx.tree_at(lambda cell: cell.recurrent, cell, replace_fn=lambda w: gain * w)
    # Few iterations, since any that were taken after twelve would be exact.
    newton = Newton("dense", max_iterations=4)
    return RNN(cell, 1, parallel=newton, key=jax.random.key(2))


def rows_of(train_step: Any, report: Certificates, model: RNN, batches: Iterator) -> list[Any]:
    """The rows that a training of five steps logs."""
    rows: list[Any] = []
    state = TrainState.create(model, optax.sgd(1e-3), jax.random.key(0))
    callbacks = [report, Log(rows.append, every=2)]
    fit(state, train_step, report.watched(batches), steps=5, callbacks=callbacks)
    return rows


def test_figures_of_the_first_step_and_of_every_third(train_step, caplog):
    rows = rows_of(train_step, Certificates(every=3), model(0.1), repeat(batch()))
    names = {f"parallel_{figure}/layer_0" for figure in FIGURES}
    assert {row["step"]: names <= row.keys() for row in rows} == {
        1: True, 2: False, 3: True, 4: False, 5: False,
    }  # fmt: skip
    first = {figure: rows[0][f"parallel_{figure}/layer_0"] for figure in FIGURES}
    assert 1 <= first["iterations"] < 10 and 0 < first["residual"] < 1e-4
    assert first["stepped"] == first["rows_stepped"] == 0
    assert not caplog.records


def test_figures_are_those_of_the_batch_and_of_the_new_parameters(train_step):
    """Also if only part of the batch is looked at: two rows of four, and eight steps of twelve."""
    lengths = jnp.array([12, 9, 5, 0])
    given = batch(lengths=lengths)
    report = Certificates(every=1, chunk=8, accumulation=2)
    rows = rows_of(train_step, report, model(30.0), repeat(given))
    state = TrainState.create(model(30.0), optax.sgd(1e-3), jax.random.key(0))
    state, _ = train_step(state, given)
    part = jnp.array([8, 5])
    certificate = certificates(state.model, given["inputs"][::2, :8], lengths=part)["layer 0"]
    stepped = np.asarray(certificate.stepped)
    expected = {
        "iterations": np.max(certificate.iterations),
        "residual": np.max(certificate.residual),
        "stepped": stepped.sum() / 13,
        "rows_stepped": (stepped > 0).mean(),
    }
    assert expected["stepped"] > 0
    for figure, value in expected.items():
        np.testing.assert_allclose(rows[0][f"parallel_{figure}/layer_0"], value, rtol=1e-3)


def test_one_warning_if_most_steps_were_taken_one_by_one(train_step, caplog):
    rows = rows_of(train_step, Certificates(every=1), model(30.0), repeat(batch()))
    assert all(row["parallel_stepped/layer_0"] == 1 for row in rows)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "Newton's method failed on 100 % of the time steps of layer 0, which were then taken"
    )


def test_batches_have_to_be_watched(train_step):
    report = Certificates(every=1)
    state = TrainState.create(model(0.1), optax.sgd(1e-3), jax.random.key(0))
    with pytest.raises(ValueError, match="give fit its watched"):
        fit(state, train_step, repeat(batch()), steps=1, callbacks=[report])
