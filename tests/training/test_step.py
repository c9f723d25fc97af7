"""The train step: the same numbers on every mesh, and communication only where it belongs."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import LRU, S5, BidirectionalS5, CausalConv, LinearAttention, RNNEncoder, trainable
from rnnscale.cells import MinGRUCell
from rnnscale.layers import row_keys
from rnnscale.models import FFN, LanguageModel, SequenceClassifier
from rnnscale.sharding import batch_sharding, make_mesh, sharded_init, shardings
from rnnscale.training import (
    TrainState,
    cross_entropy,
    make_eval_step,
    make_optimiser,
    make_train_step,
)
from rnnscale_kernels.testing import Program

ROWS, TIME, DIM, STEPS = 16, 24, 16, 10
ONE = {"data": 1}
MESHES: Mapping[str, Mapping[str, int]] = {
    "data=8": {"data": 8},
    "data=2,fsdp=2,tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp=8": {"fsdp": 8},
    "tensor=8": {"tensor": 8},
    "data=2,seq=4": {"data": 2, "seq": 4},
}
MIXED, OVER_TIME = "data=2,fsdp=2,tensor=2", "data=2,seq=4"


def classifier(key: jax.Array, layer: Callable[..., Any] = S5, **changed: Any) -> Any:
    options = {"dim": DIM, "depth": 2, "make_mixer": FFN, "dropout": 0.1, "pool": "mean"} | changed
    return SequenceClassifier(
        2, 8, make_layer=lambda key: layer(DIM, 32, key=key), key=key, **options
    )


def bidirectional_classifier(key: jax.Array) -> Any:
    return classifier(key, layer=BidirectionalS5)


def language_model(key: jax.Array) -> Any:
    return LanguageModel(
        16,
        make_layer=lambda key: LRU(DIM, 16, key=key),
        dim=DIM,
        depth=2,
        dropout=0.1,
        remat=True,
        key=key,
    )


def batch_of(step: int, kind: Callable = classifier) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    if kind is language_model:
        tokens = rng.integers(0, 16, (ROWS, TIME + 1))
        return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
    return {
        "inputs": rng.normal(size=(ROWS, TIME, 2)).astype(np.float32),
        "labels": rng.integers(0, 8, ROWS),
        "lengths": rng.integers(1, TIME + 1, ROWS),
    }


def optimiser_of(model: Any) -> Any:
    return make_optimiser(
        model,
        learning_rate=3e-3,
        recurrence_rate=1e-3,
        weight_decay=0.05,
        warmup=5,
        steps=40,
        clip=1.0,
    )


def mesh_of(axes: Mapping[str, int]) -> jax.sharding.Mesh:
    return make_mesh(**axes, devices=jax.devices()[: int(np.prod(list(axes.values())))])


def put(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    return {name: jax.device_put(x, batch_sharding(mesh, x.ndim)) for name, x in batch.items()}


class Training:
    """A compiled train step on a mesh: the losses that it gives, and its program."""

    def __init__(self, axes: Mapping[str, int], build: Callable, accumulation: int = 1):
        self.mesh, self._build = mesh_of(axes), build
        key = jax.random.key(0)
        optimiser = optimiser_of(jax.eval_shape(build, key))
        with jax.set_mesh(self.mesh):
            self._state = sharded_init(
                lambda key: TrainState.create(build(key), optimiser, key), key, self.mesh
            )
            step = make_train_step(cross_entropy, optimiser, accumulation=accumulation)
            batch = put(batch_of(0, build), self.mesh)
            self._step = step.lower(self._state, batch).compile()  # pyright: ignore[reportFunctionMemberAccess]
        self.program = Program(self._step, self.mesh)

    @functools.cached_property
    def losses(self) -> np.ndarray:
        found = []
        with jax.set_mesh(self.mesh):
            state = self._state
            for i in range(STEPS):
                state, metrics = self._step(state, put(batch_of(i, self._build), self.mesh))
                found.append(float(metrics["loss"]))
        expected = shardings(state, self.mesh)
        for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            assert x.sharding.is_equivalent_to(s, x.ndim)
        return np.asarray(found)


@pytest.fixture(scope="module")
def training() -> Iterator[Callable[..., Training]]:
    """Compiles each step once for all tests of this file."""

    @functools.cache
    def cached(mesh: str, build: Callable, accumulation: int = 1) -> Training:
        return Training(MESHES.get(mesh, ONE), build, accumulation)

    yield cached


@pytest.mark.parametrize(
    ("mesh", "build"),
    [
        *((mesh, classifier) for mesh in MESHES),
        # A second kind of layer and of input, with `remat`.
        (MIXED, language_model),
        (OVER_TIME, language_model),
    ],
)
def test_the_same_losses_on_every_mesh(mesh, build, training):
    expected = training("one device", build).losses
    np.testing.assert_allclose(training(mesh, build).losses, expected, rtol=1e-4)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_same_losses_in_parts(mesh, training):
    expected = training("one device", classifier).losses
    np.testing.assert_allclose(training(mesh, classifier, 2).losses, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "make_layer",
    [
        lambda key: LinearAttention(DIM, 2, key=key),
        lambda key: CausalConv(DIM, 3, key=key),
        lambda key: RNNEncoder(MinGRUCell(DIM, DIM, key=key)),
    ],
    ids=["LinearAttention", "CausalConv", "MinGRU"],
)
def test_other_layers_in_parts(make_layer):
    def build(key):
        return SequenceClassifier(2, 8, make_layer=make_layer, dim=DIM, depth=2, key=key)

    got, alone = (Training(axes, build, 2).losses for axes in (MESHES["data=2,seq=4"], ONE))
    np.testing.assert_allclose(got[:2], alone[:2], rtol=1e-5)


def test_without_a_mesh(plain_step, training):
    optimiser, one_part = plain_step
    expected = training("one device", classifier).losses[:3]
    for step in (one_part, make_train_step(cross_entropy, optimiser, accumulation=4)):
        state = TrainState.create(classifier(jax.random.key(0)), optimiser, jax.random.key(0))
        found = []
        for i in range(3):
            state, metrics = step(state, batch_of(i))
            found.append(float(metrics["loss"]))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def plain_step() -> tuple[Any, Callable[..., Any]]:
    """The optimiser of the classifier and its train step without a mesh."""
    optimiser = optimiser_of(jax.eval_shape(classifier, jax.random.key(0)))
    return optimiser, make_train_step(cross_entropy, optimiser)


@pytest.mark.parametrize(
    ("mesh", "build"),
    [
        *((mesh, classifier) for mesh in MESHES),
        (MIXED, bidirectional_classifier),
        (OVER_TIME, bidirectional_classifier),
    ],
)
def test_no_loop_over_time_communicates(mesh, build, training):
    program = training(mesh, build).program
    # In the loop over blocks a shard_map holds the loops over time.
    over_time = "body/eval_jaxpr/shard_map/"
    names = re.findall(r' while\(.*op_name="([^"]*)"', program.text)
    assert sum(over_time in name for name in names) >= 3  # forward, and states again and backward
    assert not any(over_time in loop for each in program.collectives for loop in each.loops)
    assert program.collectives  # elsewhere there are some, so they would be seen


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", MIXED])
def test_no_loop_over_parts_communicates_over_rows(mesh, training):
    program = training(mesh, classifier, 2).program
    over_parts = "jit(train_step)/shard_map/while"
    assert len(re.findall(rf' while\(.*op_name="{re.escape(over_parts)}"', program.text)) == 1
    found = {each.axes for each in program.collectives if over_parts in each.loops}
    # On the last mesh outputs are added up over `tensor`.
    assert found == ({("tensor",)} if "tensor" in mesh else set())
    assert program.collectives


def test_groups_of_the_optimiser(key):
    model = classifier(key)
    optimiser = optimiser_of(model)
    params = eqx.filter(model, trainable(model))
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = optimiser.init(params)
    updates: Any = None
    for _ in range(6):
        updates, state = optimiser.update(zeros, state, params)
    layer, mixer = updates.stack.blocks.layer, updates.stack.blocks.mixer
    # Without a gradient only weight decay moves anything, and it moves the weights only.
    assert np.all(np.asarray(layer.lambda_re) == 0)
    assert np.all(np.asarray(layer.b_re) == 0)
    assert np.all(np.asarray(layer.d) == 0)
    assert np.any(np.asarray(layer.c_re) != 0)
    assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(mixer) if x.ndim > 2)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimiser.update(ones, optimiser.init(params), params)
    updates, _ = optimiser.update(ones, state, params)
    rate = np.abs(np.asarray(updates.stack.blocks.layer.log_step)).max()
    weights = np.abs(np.asarray(updates.head.bias)).max()
    np.testing.assert_allclose(weights / rate, 3.0, rtol=1e-3)


def test_values_that_are_not_trained_stay(key, plain_step):
    optimiser, step = plain_step
    state = TrainState.create(classifier(key), optimiser, key)
    before = float(state.model.stack.blocks.layer.step_rescale[0])
    for i in range(3):
        state, _ = step(state, batch_of(i))
    assert float(state.model.stack.blocks.layer.step_rescale[0]) == before


def test_the_key_of_the_user_outlives_a_step(plain_step):
    optimiser, step = plain_step
    for own in (jax.random.key(3), jax.random.PRNGKey(3)):
        state = TrainState.create(classifier(jax.random.key(0)), optimiser, own)
        step(state, batch_of(0))
        assert not own.is_deleted()
        jax.random.normal(own)


def test_a_step_that_is_not_finite_changes_nothing(key, plain_step):
    optimiser, step = plain_step
    state, _ = step(TrainState.create(classifier(key), optimiser, key), batch_of(0))
    before = jax.tree.map(np.asarray, (state.model, state.opt_state.inner_state))
    bad = batch_of(1)
    bad["inputs"][0, 0, 0] = np.inf
    for in_a_row in (1, 2):
        state, metrics = step(state, bad)
        assert int(metrics["skipped"]) == 1
        assert int(metrics["skipped_in_a_row"]) == in_a_row
    after = jax.tree.map(np.asarray, (state.model, state.opt_state.inner_state))
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)
    assert int(state.step) == 3
    state, metrics = step(state, batch_of(2))
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 0


def test_the_state_is_donated(key, plain_step):
    optimiser, step = plain_step
    state = TrainState.create(classifier(key), optimiser, key)
    weight = state.model.stack.blocks.layer.b_re
    step(state, batch_of(0))
    assert weight.is_deleted()


def test_evaluation_weights_and_lengths(key):
    model = language_model(key)
    batch = batch_of(0, language_model)
    totals = make_eval_step(cross_entropy)
    weight = {"weight": np.asarray([1.0] * 10 + [0.0] * 6, np.float32)}
    for given, counts in ((weight, np.s_[:10]), ({"lengths": np.full(ROWS, 5)}, np.s_[:, :5])):
        _, got = totals(model, batch | given)
        _, expected = totals(model, {name: x[counts] for name, x in batch.items()})
        for name in ("loss", "correct", "count"):
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-5)


def test_labels_that_do_not_count_may_be_anything(key):
    model = language_model(key)
    batch = batch_of(0, language_model)
    lengths = np.full(ROWS, 5)
    marked = np.where(np.arange(TIME) < 5, batch["labels"], -100)
    _, got = cross_entropy(model, {**batch, "labels": marked, "lengths": lengths}, None)
    _, expected = cross_entropy(model, {**batch, "lengths": lengths}, None)
    assert float(got["loss"]) == float(expected["loss"])


def test_dropout_masks_belong_to_rows(key):
    """Each row of the batch draws its own mask, the one it draws on its own."""
    model = classifier(key, dropout=0.5)
    xs = jnp.broadcast_to(jnp.asarray(batch_of(0, classifier)["inputs"][:1]), (4, TIME, 2))
    keys = row_keys(key, (4,))
    assert keys is not None
    _, logits = model(xs, key=keys)
    assert len(np.unique(np.asarray(logits)[:, 0])) == 4
    _, alone = model(xs[2], key=keys[2])
    np.testing.assert_allclose(logits[2], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains_with_float32_parameters(key, plain_step):
    optimiser, _ = plain_step
    state = TrainState.create(classifier(key), optimiser, key)

    def loss(model, batch, key, state):
        batch = {**batch, "inputs": batch["inputs"].astype(jnp.bfloat16)}
        return cross_entropy(model, batch, key, state)

    step = make_train_step(loss, optimiser)
    found = []
    for _ in range(20):
        state, metrics = step(state, batch_of(0))
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.model))


def test_errors(key, plain_step):
    model = classifier(key)
    optimiser, _ = plain_step
    with pytest.raises(ValueError, match="accumulation must be at least 1; got 0"):
        make_train_step(cross_entropy, optimiser, accumulation=0)
    step = make_train_step(cross_entropy, optimiser, accumulation=3)
    with pytest.raises(ValueError, match="accumulation=3 must divide the 16 rows"):
        step(TrainState.create(model, optimiser, key), batch_of(0, classifier))
    with pytest.raises(ValueError, match="warmup must be at least 0 and below steps=5, got 5"):
        make_optimiser(
            model, learning_rate=1, recurrence_rate=1, weight_decay=0, warmup=5, steps=5, clip=1
        )
    with pytest.raises(ValueError, match="labels must have the shape of the logits"):
        cross_entropy(model, {**batch_of(0, classifier), "labels": np.zeros((3,), int)}, None)
