"""A sequence of a million steps, split over devices."""

from typing import Any

import jax
import numpy as np
import pytest

from rnnscale.data import batches
from rnnscale.models import certificates
from rnnscale.runs import TrainConfig, set_up
from rnnscale.sharding import make_mesh, sharded_init
from rnnscale.tasks import load_task

# Here the machine code is worth making fast, as for users: with the options of other tests a step
# takes fourteen times as long.
AS_USERS = {"xla_backend_optimization_level": 3, "xla_backend_extra_options": ""}


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"model": "s5", "state_dim": 8}, {"model": "gru", "parallel": "diagonal"}],
    ids=["s5", "gru"],
)
def test_a_million_steps_train_on_eight_devices(given: dict[str, Any]):
    """One sequence, learned by heart. A device holds 131,072 of its steps."""
    length = 1 << 20
    mesh = make_mesh(seq=8)
    config = TrainConfig.for_task(
        "adding", out="", seq_len=length, batch_size=1, dim=8, depth=1, steps=8, warmup=0,
        learning_rate=1e-2, **given,
    )  # fmt: skip
    setup = set_up(config, load_task("adding", seq_len=length), mesh)
    found = []
    with (
        jax.set_mesh(mesh),
        batches(setup.task.train, 1, seed=0, shardings=setup.layout) as stream,
    ):
        state = sharded_init(setup.init, jax.random.key(0), mesh)
        batch = next(stream)
        assert batch["inputs"].sharding.shard_shape(batch["inputs"].shape) == (1, length // 8, 2)
        train_step = setup.train_step.lower(state, batch).compile(AS_USERS)
        for _ in range(config.steps):
            state, metrics = train_step(state, batch)
            found.append(float(metrics["loss"]))
        certify = jax.jit(certificates).lower(state.model, batch["inputs"]).compile(AS_USERS)
        certified = certify(state.model, batch["inputs"])
    assert np.all(np.isfinite(found))
    assert found[-1] < 0.5 * found[0]
    # The cell was not taken through a million steps one by one.
    assert not any(each.stepped.any() for each in certified.values())
