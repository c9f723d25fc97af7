"""The models of the table: each can be trained, and takes the options that the table says."""

import inspect
import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rnnscale import GriffinRecurrence, IndRNNCell, LinearAttention, LocalAttention, trainable
from rnnscale.cells import LongShortTermMemoryCell
from rnnscale.layers import DeepRNN, RMSNorm
from rnnscale.models import GatedFFN, HalfGLU, Identity, SequenceClassifier
from rnnscale.runs import MODELS, TrainConfig
from rnnscale.runs._build import constrain, make_loss, make_model
from rnnscale.runs._models import constructor
from rnnscale.tasks import load_task


def config_for(task: str, **given: Any) -> TrainConfig:
    return TrainConfig.for_task(**{"out": "unused", "dim": 8, "depth": 1, "task": task, **given})


@pytest.fixture(scope="module")
def adding():
    return load_task("adding", seq_len=6)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_from_a_batch(model, adding, key):
    """A step against the gradient makes the loss smaller."""
    config = config_for("adding", model=model, state_dim=8)
    built = make_model(config, adding.spec, key)
    loss = make_loss(config, adding.spec)
    records = [adding.train[i] for i in range(4)]
    batch = {name: jnp.stack([r[name] for r in records]) for name in records[0]}
    weights, fixed = eqx.partition(built, trainable(built))

    @jax.jit
    @jax.value_and_grad
    def total(weights):
        return loss(eqx.combine(weights, fixed), batch, None)[1]["loss"]

    before, gradient = total(weights)
    norm = optax.tree.norm(gradient)
    assert norm > 0
    # Shorter where the loss is steep, as with a norm of small outputs.
    distance = 3e-4 / jnp.maximum(norm / 10, 1)
    after, _ = total(jax.tree.map(lambda w, g: w - distance / norm * g, weights, gradient))
    # To first order.
    np.testing.assert_allclose(after - before, -distance * norm, rtol=0.2)


def test_labels_of_steps_are_read_at_every_step(key):
    task = load_task("copy", seq_len=21)
    config = config_for("copy", model="urnn")
    model: Any = make_model(config, task.spec, key)
    record = task.train[0]
    batch = {name: jnp.asarray(value)[None] for name, value in record.items()}
    _, totals = make_loss(config, task.spec)(model, batch, None)
    assert totals["count"] == 21 and totals["scored"] == 10
    logits = model.readout(model.encoder(batch["inputs"])[1])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    np.testing.assert_allclose(totals["loss"], jnp.sum(expected), rtol=1e-6)


def test_tokens_make_a_language_model_of_cells(key):
    task = load_task("bytes", seq_len=16)
    model: Any = make_model(config_for("bytes", model="gru"), task.spec, key)
    _, logits = model(jnp.zeros((2, 16), jnp.int32))
    assert logits.shape == (2, 16, 256)


def test_indrnn_starts_and_stays_within_the_gain_of_its_sequence(adding, key):
    config = config_for("adding", model="indrnn", depth=2)
    model: Any = make_model(config, adding.spec, key)
    below, above = (encoder.cell for encoder in model.encoder.encoders)
    limit = 2 ** (1 / 6)
    assert isinstance(below, IndRNNCell)
    assert jnp.all((below.recurrent >= 0) & (below.recurrent <= limit))
    assert jnp.all((above.recurrent >= 1 / limit) & (above.recurrent <= limit))
    weights = eqx.filter(model, trainable(model))
    optimiser = constrain(config, adding.spec, optax.sgd(1.0))
    push = jax.tree.map(lambda x: jnp.full_like(x, -1.0), weights)
    updates, _ = optimiser.update(push, optimiser.init(weights), weights)
    pushed = eqx.apply_updates(weights, updates)
    assert jnp.max(pushed.encoder.encoders[1].cell.recurrent) <= limit
    assert jnp.max(pushed.encoder.encoders[1].cell.bias) == 1


def test_options_of_a_cell(adding, key):
    config = config_for("adding", model="cornn", cell={"dt": 0.5, "gamma": 1.5, "epsilon": 2.0})
    model: Any = make_model(config, adding.spec, key)
    cell = model.encoder.encoders[0].cell
    assert (float(cell.dt), float(cell.gamma), float(cell.epsilon)) == (0.5, 1.5, 2.0)
    with pytest.raises(ValueError, match="no option dtt; its options are dt, gamma, epsilon"):
        make_model(config_for("adding", model="cornn", cell={"dtt": 0.5}), adding.spec, key)
    options = config_for("adding", model="cornn", cell={"gamma": 3.0}).cell
    assert options is not None and options["dt"] == 0.012


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("s5", {"dt": 0.5}, "s5 has no option dt; its options are .*blocks"),
        ("rglru", {"heads": 2}, "rglru has no option heads; its options are blocks"),
        ("linear-attention", {"heads": 3}, "heads=3 must divide dim=8 and state_dim=64"),
    ],
)
def test_options_of_a_layer_that_it_does_not_take(model, options, message, adding, key):
    with pytest.raises(ValueError, match=message):
        make_model(config_for("adding", model=model, cell=options), adding.spec, key)


def test_options_of_a_layer(adding, key):
    config = config_for("adding", model="linear-attention", cell={"heads": 8})
    layers = jax.tree.leaves(
        make_model(config, adding.spec, key), is_leaf=lambda x: isinstance(x, LinearAttention)
    )
    (heads,) = {x.heads for x in layers if isinstance(x, LinearAttention)}
    assert heads == 8


def test_every_second_layer_is_another_one(key):
    task = load_task("bytes", seq_len=16)
    options: Any = {"depth": 5, "state_dim": 8, "cell": {"blocks": 2}, "every": [2, "attention"]}
    config = config_for("bytes", model="griffin", **options, every_cell={"window": 4, "heads": 2})
    assert TrainConfig.from_json(json.loads(json.dumps(config.as_json()))) == config
    stack = jax.eval_shape(lambda: make_model(config, task.spec, key)).stack
    layers = [block.layer for block in stack.unstacked(stack.blocks)]
    kinds = [GriffinRecurrence, LocalAttention] * 2 + [GriffinRecurrence]
    assert [type(layer) for layer in layers] == kinds
    assert layers[0].cell.gates.shape[1] == 2 and layers[1].window == 4
    with pytest.raises(ValueError, match="attention has no option blocks"):
        config_for("bytes", **options, every_cell={"blocks": 2})
    for every in ([6, "attention"], [1, "attention"], ["attention", 2], [2]):
        with pytest.raises(ValueError, match="every must be .* from 2 to depth=5"):
            config_for("bytes", **{**options, "cell": None, "every": every})
    with pytest.raises(ValueError, match="give every as well"):
        config_for("bytes", every_cell={"window": 4})


def test_cells_of_features_can_be_stacked_with_a_layer(adding, key):
    config = config_for("adding", model="lstm", depth=2, every=[2, "attention"], parallel="auto")
    model: Any = jax.eval_shape(lambda: make_model(config, adding.spec, key))
    assert [type(layer).__name__ for layer in model.stack.layers] == [
        "RNNEncoder",
        "LocalAttention",
    ]


def test_what_suits_a_task_depends_on_the_model():
    assert TrainConfig.for_task("adding", out="unused").model == "cornn"
    assert TrainConfig.for_task("adding", out="unused").cell is not None
    assert TrainConfig.for_task("adding", out="unused", model="lstm").cell is None
    assert TrainConfig.for_task("digits", out="unused").model == "s5"


@pytest.mark.parametrize("name", MODELS)
def test_the_table_names_options_of_the_constructor(name: str):
    """The constructor takes all of them; those left out can't be written as text or JSON."""
    entry = MODELS[name]
    parameters = list(inspect.signature(constructor(entry)).parameters.values())
    if any(each.kind == each.VAR_KEYWORD for each in parameters):  # passed on to the class
        parameters += inspect.signature(entry.load()).parameters.values()
    taken = {
        each.name: each.default
        for each in parameters
        # `key_dim` follows from `state_dim`.
        if each.kind == each.KEYWORD_ONLY and each.name not in ("key", "key_dim")
    }
    assert set(entry.options) <= taken.keys()
    assert all(callable(taken[option]) for option in taken.keys() - set(entry.options))


def test_an_option_of_a_layer_can_be_none():
    """DeltaNet without a convolution is stored as that, not as one with the default."""
    config = config_for("adding", model="deltanet", cell={"conv_width": None})
    stored = json.loads(json.dumps(config.as_json()))
    assert TrainConfig.from_json(stored) == config
    assert stored["cell"] == {"conv_width": None} and "chunk" not in stored


def test_layers_come_in_the_blocks_of_their_authors_or_another(key):
    spec = load_task("parity").spec

    def block(**given):
        built: Any = make_model(config_for("parity", state_dim=8, **given), spec, key)
        return built.stack.blocks

    mamba, deltanet = block(model="mamba"), block(model="deltanet")
    assert isinstance(mamba.norm, RMSNorm) and isinstance(mamba.mixer, Identity)
    assert mamba.ffn is None and isinstance(deltanet.ffn, GatedFFN)
    assert isinstance(block(model="deltanet", block="half-glu").mixer, HalfGLU)
    assert isinstance(block(model="s5").mixer, HalfGLU)


def test_cells_stand_in_blocks_if_one_is_named(adding, key):
    def made(**given):
        return make_model(config_for("adding", model="lstm", **given), adding.spec, key)

    assert isinstance(made(), DeepRNN)
    model: Any = made(block="swiglu", dropout=0.1)
    assert isinstance(model, SequenceClassifier) and isinstance(model.stack.blocks.ffn, GatedFFN)
    assert isinstance(model.stack.blocks.layer.cell, LongShortTermMemoryCell)


@pytest.mark.parametrize("options", [{"model": "lstm"}, {"model": "s5", "state_dim": 8}])
def test_dropout_reaches_cells_and_layers(options, adding, key):
    config = config_for("adding", dropout=0.5, **options)
    loss, built = make_loss(config, adding.spec), make_model(config, adding.spec, key)
    batch = {name: jnp.asarray(value)[None] for name, value in adding.train[0].items()}
    with_key, without = (loss(built, batch, each)[1]["loss"] for each in (key, None))
    assert abs(with_key - without) > 1e-3 * abs(without)
