"""Cells that are trained with all steps at once (`parallel`): the same losses as step by step, on
one device and with time split over eight."""

from typing import Any

import jax
import numpy as np
import pytest

from rnnscale.data import stream
from rnnscale.runs import TrainConfig, load_task_of, set_up
from rnnscale.sharding import make_mesh, sharded_init

STEPS = 20


def losses(mesh: jax.sharding.Mesh | None = None, **given: Any) -> list[float]:
    """The losses of the first steps of a run."""
    options = {"out": "unused", "task": "adding", "seq_len": 24, "dim": 8, "batch_size": 8}
    config = TrainConfig.for_task(**{**options, "steps": STEPS, "warmup": 0, **given})
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    setup = set_up(config, load_task_of(config), mesh)
    found = []
    with (
        jax.set_mesh(mesh),
        stream(setup.rows, config.batch_size, shardings=setup.layout) as batches,
    ):
        state = sharded_init(setup.init, jax.random.key(config.seed), mesh)
        for _, batch in zip(range(STEPS), batches, strict=False):
            state, metrics = setup.train_step(state, batch)
            found.append(float(metrics["loss"]))
    return found


@pytest.mark.parametrize(("model", "jacobian"), [("gru", "auto"), ("cornn", "block")])
def test_the_same_losses_as_step_by_step(model: str, jacobian: str, quick_compilation):
    steps, parallel = (losses(model=model, parallel=each) for each in ("none", jacobian))
    np.testing.assert_allclose(parallel, steps, rtol=1e-3)
    assert len(set(steps)) == STEPS


def test_the_same_losses_with_time_split_over_devices(quick_compilation):
    """Two devices share the rows, and four the steps of each."""
    mesh = make_mesh(data=2, seq=4)
    np.testing.assert_allclose(
        losses(mesh, model="gru", parallel="auto"), losses(model="gru"), rtol=1e-3
    )


@pytest.mark.slow
def test_cells_in_blocks(quick_compilation):
    """A language model: a norm, a cell and a mixer in each block, which are recomputed."""
    given = {"task": "bytes", "model": "gru", "depth": 2, "remat": True}
    np.testing.assert_allclose(losses(**given, parallel="auto"), losses(**given), rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": "s5", "parallel": "auto"},
            "parallel='auto' is for cells.*model='s5' is a layer",
        ),
        ({"model": "gru", "parallel": "fast"}, "parallel must be one of 'none', 'auto'.*'fast'"),
        ({"model": "gru", "parallel": None}, "parallel must be one of .*; got None"),
    ],
)
def test_what_it_is_not_for(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TrainConfig.for_task("adding", out="unused", **given)
