"""The moving average of the parameters, against NumPy in float64 and on a mesh."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnscale import LRU, trainable
from rnnscale.models import SequenceClassifier
from rnnscale.sharding import batch_sharding, make_mesh, sharded_init, shardings
from rnnscale.training import (
    Checkpointer,
    MovingAverage,
    TrainState,
    cross_entropy,
    evaluate,
    make_eval_step,
    make_train_step,
)

DECAY, STEPS, SKIPPED = 0.7, 5, 2
OPTIMISER = optax.adam(1e-2)


def make_model(key: jax.Array) -> Any:
    return SequenceClassifier(
        2, 8, make_layer=lambda key: LRU(8, 8, key=key), dim=8, depth=2, key=key
    )


def init(key: jax.Array) -> TrainState:
    model = make_model(key)
    return TrainState.create(model, OPTIMISER, key, average=MovingAverage.start(model, DECAY))


def batch_of(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    inputs = rng.normal(size=(8, 6, 2)).astype(np.float32)
    return {
        # The gradient of a step is not finite, and so it is skipped.
        "inputs": inputs * (np.nan if step == SKIPPED else 1),
        "labels": rng.integers(0, 8, 8),
    }


def arrays_of(model: Any) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(eqx.filter(model, trainable(model)))]


class Trained:
    """The model after every step on a mesh, and the last state."""

    def __init__(self, mesh: jax.sharding.Mesh):
        train_step = make_train_step(cross_entropy, OPTIMISER)
        self.models = []
        with jax.set_mesh(mesh):
            self.state = sharded_init(init, jax.random.key(0), mesh)
            self.initial = arrays_of(self.state.model)
            np.testing.assert_equal(arrays_of(self.state.averaged), self.initial)
            for step in range(STEPS):
                placed = {
                    name: jax.device_put(x, batch_sharding(mesh, x.ndim))
                    for name, x in batch_of(step).items()
                }
                self.state, metrics = train_step(self.state, placed)
                assert metrics["skipped"] == (step == SKIPPED)
                self.models.append(arrays_of(self.state.model))


@pytest.fixture(scope="module")
def one_device() -> Iterator[Trained]:
    yield Trained(make_mesh(data=1, devices=jax.devices()[:1]))
    jax.clear_caches()


def average_by_hand(trained: Trained) -> list[np.ndarray]:
    models = [model for step, model in enumerate(trained.models) if step != SKIPPED]
    weights = DECAY ** np.arange(len(models) - 1, -1, -1.0)
    weights /= weights.sum()
    return [np.tensordot(weights, np.stack(arrays), 1) for arrays in zip(*models, strict=True)]


def test_the_average_is_that_of_numpy_without_the_skipped_step(one_device: Trained):
    average = one_device.state.average
    assert average is not None and int(average.count) == STEPS - 1
    found, expected = arrays_of(one_device.state.averaged), average_by_hand(one_device)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
    # It is neither the last model nor does it remember the first one.
    assert any(
        np.abs(a - b).max() > 1e-3 for a, b in zip(found, one_device.models[-1], strict=True)
    )


def test_on_eight_devices_it_lies_like_the_parameters(one_device: Trained):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    trained = Trained(mesh)
    state, average = trained.state, trained.state.average
    assert average is not None
    expected = shardings(state.model, mesh)
    wanted = eqx.filter(expected, trainable(state.model))
    split = 0
    for x, sharding in zip(
        jax.tree.leaves(average.parameters), jax.tree.leaves(wanted), strict=True
    ):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
        split += not x.sharding.is_fully_replicated
    assert split > 0
    for a, b in zip(arrays_of(state.averaged), arrays_of(one_device.state.averaged), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_it_is_saved_and_restored(one_device: Trained, tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(STEPS, one_device.state)
        restored = checkpointer.restore(jax.eval_shape(lambda: one_device.state))
    assert restored is not None
    np.testing.assert_equal(arrays_of(restored[0].averaged), arrays_of(one_device.state.averaged))


def test_it_is_what_evaluations_of_the_state_use(one_device: Trained):
    eval_step = make_eval_step(cross_entropy)
    with jax.set_mesh(make_mesh(data=1, devices=jax.devices()[:1])):
        by_state = evaluate(eval_step, one_device.state.averaged, [batch_of(0)])
        last = evaluate(eval_step, one_device.state.model, [batch_of(0)])
    assert by_state is not None and last is not None and by_state["loss"] != last["loss"]


def test_low_precision_parameters_have_an_average_in_float32():
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_model(jax.random.key(0)))
    average = MovingAverage.start(model, 0.999).after(model)
    for _ in range(3):
        average = average.after(jax.tree.map(lambda x: x + 1, model))
    leaves = jax.tree.leaves(average.parameters)
    assert all(x.dtype == jnp.float32 for x in leaves)
    # 3 of 4 steps at x + 1; in bfloat16 nothing would be left of a weight of 0.001.
    for x, p in zip(leaves, jax.tree.leaves(eqx.filter(model, trainable(model))), strict=True):
        higher = (p + 1).astype(np.float32)
        np.testing.assert_allclose(x, p + (higher - p) * 0.75, atol=2e-3)
    within = average.within(model)
    assert jax.tree.leaves(within)[0].dtype == jnp.bfloat16
    assert jax.tree.structure(within) == jax.tree.structure(model)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_out_of_range(decay: float):
    with pytest.raises(ValueError, match="must be above 0 and below 1, got"):
        MovingAverage.start(LRU(2, 2, key=jax.random.key(0)), decay)
