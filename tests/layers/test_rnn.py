"""Recurrent networks beyond the suites of `rnnscale.verify`: bad input, and layout on a mesh."""

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rnnscale import (
    RNN,
    AutoregressiveRNN,
    BidirectionalRNN,
    BidirectionalRNNEncoder,
    DeepBidirectionalRNN,
    DeepRNN,
    DeepRNNEncoder,
    ElmanRNNCell,
    ExpRNNCell,
    IndRNNCell,
    LongShortTermMemoryCell,
    MinGRUCell,
    RNNEncoder,
)
from rnnscale._fields import parameters
from rnnscale.cells import Newton
from rnnscale.layers import Dropout, Linear, fold_keys
from rnnscale.sharding import AXES, describe, parameter_spec


def elman(idim, hdim):
    return ElmanRNNCell(idim, hdim, key=jax.random.key(0))


def test_the_designs_example(key):
    cell_key, out_key, xs_key = jax.random.split(key, 3)
    rnn = RNN(cell=ElmanRNNCell(idim=1, hdim=16, key=cell_key), odim=1, key=out_key)
    xs = jax.random.normal(xs_key, (64, 100, 1))
    y, hs = rnn(xs[0])
    assert y.shape == (1,) and hs.shape == (100, 16)
    mapped, batched = eqx.filter_vmap(rnn)(xs), rnn(xs)
    np.testing.assert_allclose(mapped[0], batched[0], atol=1e-6)
    np.testing.assert_allclose(mapped[1], batched[1], atol=1e-6)
    np.testing.assert_allclose(y, batched[0][0], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda key: RNN(cast(Any, Linear(2, 2, key=key)), 1, key=key),
            TypeError,
            "must be a .*Cell; got Linear",
        ),
        (lambda key: RNN(elman(2, 3), 0, key=key), ValueError, "odim must be at least 1"),
        (
            lambda key: BidirectionalRNN(elman(2, 3), elman(3, 3), 1, key=key),
            ValueError,
            "idim=2 and backward idim=3",
        ),
        (lambda key: DeepRNN([], 1, key=key), ValueError, "at least one"),
        (
            lambda key: DeepRNN([elman(2, 3), elman(4, 3)], 1, key=key),
            ValueError,
            "layer 0 gives 3 features, but layer 1 takes idim=4",
        ),
        (
            lambda key: DeepBidirectionalRNN(
                [(elman(2, 3), elman(2, 3)), (elman(3, 3), elman(3, 3))], 1, key=key
            ),
            ValueError,
            "gives 6 features",
        ),
        (
            lambda key: AutoregressiveRNN(
                BidirectionalRNNEncoder(elman(2, 3), elman(2, 3)), key=key
            ),
            ValueError,
            "looks ahead",
        ),
    ],
)
def test_bad_construction(make, error, message, key):
    with pytest.raises(error, match=message):
        make(key)


def test_bad_calls(key):
    deep = DeepRNNEncoder([RNNEncoder(elman(2, 3)), RNNEncoder(elman(3, 4))])
    xs = jnp.zeros((5, 7, 2))
    with pytest.raises(ValueError, match="takes a state like init_state.*; got \\(5, 3\\)"):
        deep(xs, cast(Any, jnp.zeros((5, 3))))
    with pytest.raises(ValueError, match="takes a state like init_state.*; got \\(\\(5, 3\\),\\)"):
        deep(xs, (jnp.zeros((5, 3)),))
    with pytest.raises(ValueError, match="state like init_state"):
        deep(xs, (jnp.zeros((5, 3)), jnp.zeros((5, 3))))
    with pytest.raises(ValueError, match="2 features"):
        RNN(elman(2, 3), 1, key=key)(xs[..., :1])
    with pytest.raises(
        TypeError, match=r"encoders\[0\] must be a rnnscale.layers.Encoder; got ElmanRNNCell"
    ):
        DeepRNNEncoder([cast(Any, elman(2, 3))])
    ahead = DeepRNNEncoder([BidirectionalRNNEncoder(elman(2, 3), elman(2, 3))])
    with pytest.raises(TypeError, match="no single step"):
        ahead.step(xs[:, 0], ahead.init_state((5,)))


def test_tokens_of_8_bits(key):
    model = AutoregressiveRNN(RNNEncoder(elman(260, 4)), key=key)
    found, expected = (model(jnp.array([3, 250], dtype))[1] for dtype in ("uint8", "int32"))
    np.testing.assert_array_equal(found, expected)


def test_tokens_of_64_bits(key):
    """One that does not fit in 32 is no token, as any other that is out of range."""
    model = AutoregressiveRNN(RNNEncoder(elman(7, 4)), key=key)
    with jax.enable_x64(True):
        found, expected = (model(jnp.array([3, x], "int64"))[1] for x in (2**32 + 1, 7))
    np.testing.assert_array_equal(found, expected)


def test_bad_generation(key):
    model = AutoregressiveRNN(RNNEncoder(elman(3, 4)), key=key)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        model.forecast(jnp.zeros((5, 3)), steps=0)
    with pytest.raises(ValueError, match="no step to continue from"):
        model.forecast(jnp.zeros((0, 3)), steps=1)
    with pytest.raises(TypeError, match="tokens must be an array Integer"):
        model.generate(jnp.zeros((5, 3)), steps=1, key=key)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        model.generate(jnp.zeros(5, int), steps=1, temperature=jnp.array(-0.5), key=key)
    with pytest.raises(TypeError, match="encoder must be a rnnscale.layers.Encoder"):
        AutoregressiveRNN(cast(Any, elman(3, 4)), key=key)


def test_rows_draw_tokens_of_their_own(key):
    """What a row draws depends on its own key, not on the batch that it is in."""
    model = AutoregressiveRNN(RNNEncoder(elman(7, 4)), key=key)
    prompt, keys = jnp.zeros((3, 2), int), jax.random.split(key, 3)
    _, tokens = model.generate(prompt, steps=9, key=keys)
    alone = [model.generate(prompt[i], steps=9, key=keys[i])[1] for i in range(3)]
    np.testing.assert_array_equal(tokens, alone)
    assert len(np.unique(np.asarray(tokens), axis=0)) == 3


def test_a_mesh_splits_units_that_are_independent_and_describe_names_the_others(capsys, key):
    mesh = AbstractMesh((2, 2, 4, 1), AXES)
    cells = [IndRNNCell(8, 16, key=key), LongShortTermMemoryCell(16, 8, key=key)]
    model = DeepRNN(cells, 4, key=key)
    specs = {each.path: parameter_spec(each, mesh) for each in parameters(model)}
    assert specs["encoder.encoders.0.cell.input"] == PartitionSpec("tensor", "fsdp")
    assert specs["encoder.encoders.0.cell.recurrent"] == PartitionSpec("tensor")
    assert "tensor" not in specs["encoder.encoders.1.cell.recurrent"]
    describe(model, mesh)
    said = " ".join(capsys.readouterr().out.split())
    assert "replicated over tensor: encoder.encoders.1.cell.recurrent" in said
    assert "replicated over tensor: encoder.encoders.0" not in said
    assert "over seq" not in said


def test_describe_says_what_cells_do_where_time_is_split(capsys, key):
    def described(*cells, parallel=None):
        model = DeepRNN(cells, 4, parallel=parallel, key=key)
        describe(model, AbstractMesh((1, 1, 1, 8), AXES))
        return " ".join(capsys.readouterr().out.split())

    indrnn, lstm = IndRNNCell(8, 16, key=key), LongShortTermMemoryCell(16, 48, key=key)
    said = described(MinGRUCell(8, 8, key=key), LongShortTermMemoryCell(8, 8, key=key))
    assert "encoder.encoders.0: MinGRUCell is linear in its state: one all-gather" in said
    assert "encoder.encoders.1: LongShortTermMemoryCell takes its steps one after another" in said
    # A state of 96 numbers is too large for the dense Jacobian of "auto".
    said = described(indrnn, ExpRNNCell(16, 96, key=key), parallel="auto")
    assert "IndRNNCell is solved by Newton's method (block): one all-gather in each iter" in said
    assert "ExpRNNCell takes its steps one after another, which parallel" in said
    both = BidirectionalRNNEncoder(lstm, IndRNNCell(16, 8, key=key), parallel=Newton("diagonal"))
    describe(both, AbstractMesh((1, 1, 1, 8), AXES))
    said = " ".join(capsys.readouterr().out.split())
    assert "the layer: LongShortTermMemoryCell is solved by Newton's method (diagonal)" in said
    assert "backwards, IndRNNCell is solved" in said


def deep_networks(key):
    """A deep network in chunks of time, and one that runs in both directions."""
    below, above = LongShortTermMemoryCell(2, 3, key=key), IndRNNCell(3, 4, key=key)
    both = [(elman(2, 3), below), (IndRNNCell(6, 4, key=key), elman(6, 5))]
    return DeepRNN([below, above], 1, chunk=4, key=key), DeepBidirectionalRNN(both, 1, key=key)


@pytest.mark.parametrize("which", [0, 1], ids=["chunks", "bidirectional"])
def test_layer_outputs_are_those_of_the_encoders_one_by_one(which, key):
    model = deep_networks(key)[which]
    xs = jax.random.normal(key, (3, 10, 2)).at[1, 7:].set(jnp.nan)
    timing = {
        "lengths": jnp.array([10, 7, 0]),
        "reset": jnp.zeros((3, 10), bool).at[0, 6].set(True),
    }
    state, outputs = eqx.filter_jit(model.encoder.layer_outputs)(xs, **timing)
    assert [each.shape[-1] for each in outputs] == [each.odim for each in model.encoder.encoders]
    below = xs
    for encoder, after, output in zip(model.encoder.encoders, state, outputs, strict=True):
        end, below = encoder(below, **timing)
        for got, expected in zip(
            jax.tree.leaves((after, output)), jax.tree.leaves((end, below)), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        assert np.all(np.asarray(output)[1, 7:] == 0) and np.all(np.asarray(output)[2] == 0)
    y, hs = model(xs, **timing)
    np.testing.assert_allclose(outputs[-1], hs, rtol=1e-5, atol=1e-6)
    last = model.readout(model.encoder.output(state))
    np.testing.assert_allclose(last, y, rtol=1e-5, atol=1e-6)


def test_layer_outputs_continue_from_a_state_and_refuse_a_wrong_one(key):
    encoder = deep_networks(key)[0].encoder
    xs = jax.random.normal(key, (10, 2))
    state, _ = encoder.layer_outputs(xs[:6])
    _, rest = encoder.layer_outputs(xs[6:], state)
    for got, expected in zip(rest, encoder.layer_outputs(xs)[1], strict=True):
        np.testing.assert_allclose(got, expected[6:], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="DeepRNNEncoder takes a state like init_state"):
        encoder.layer_outputs(xs, state[:1])


def test_dropout_acts_on_what_the_readout_and_upper_layers_read(key):
    """All values that dropout lets through are the doubled ones of a call without it."""
    cells = [elman(2, 64), elman(64, 64)]
    model = DeepRNN(cells, 64, dropout=0.5, key=key)
    model = eqx.tree_at(
        lambda model: (model.readout.weight, model.readout.bias),
        model,
        (jnp.eye(64), jnp.zeros(64)),
    )
    xs = jax.random.normal(key, (3, 5, 2))
    keys = jax.random.split(key, 3)
    _, (below, _) = model.encoder.layer_outputs(xs)
    _, (same, above) = model.encoder.layer_outputs(xs, key=keys)
    np.testing.assert_array_equal(same, below)  # the outputs themselves are whole
    read = Dropout(0.5)(below, key=fold_keys(keys, 1))
    np.testing.assert_allclose(model.encoder.encoders[1](read)[1], above, rtol=1e-5, atol=1e-6)
    start = model.init_state((3,))
    _, stepped = model.encoder.step(xs[:, 0], start, key=keys)
    read = Dropout(0.5).step(below[:, 0], key=fold_keys(keys, 1))
    _, expected = model.encoder.encoders[1].step(read, start[1])
    np.testing.assert_allclose(stepped, expected, rtol=1e-5, atol=1e-6)

    y, hs = model(xs, key=keys)
    np.testing.assert_allclose(hs, above, rtol=1e-5, atol=1e-6)
    _, ys = model.outputs(xs, per_step=True, key=keys)
    for dropped, whole in ((y, above[:, -1]), (ys, above)):
        kept = np.asarray(dropped) != 0
        assert 0.35 < kept.mean() < 0.65
        np.testing.assert_allclose(dropped, 2 * np.where(kept, whole, 0), rtol=1e-5, atol=1e-6)
    alone, _ = model(xs[1], key=keys[1])  # masks belong to the row
    np.testing.assert_allclose(alone, y[1], rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(model(xs)[0]) != 0)  # without a key nothing is dropped


@pytest.mark.parametrize(
    "make",
    [
        lambda key, **more: RNN(elman(2, 8), 3, key=key, **more),
        lambda key, **more: BidirectionalRNN(elman(2, 8), elman(2, 8), 3, key=key, **more),
        lambda key, **more: DeepRNN([elman(2, 8), elman(8, 8)], 3, key=key, **more),
        lambda key, **more: DeepRNN([elman(2, 8), elman(8, 8)], 3, chunk=2, key=key, **more),
        lambda key, **more: DeepBidirectionalRNN([(elman(2, 8), elman(2, 8))], 3, key=key, **more),
    ],
)
def test_dropout_of_every_network_needs_a_rate_and_a_key(make, key):
    xs = jax.random.normal(key, (4, 5, 2))
    whole, dropped = make(key), make(key, dropout=0.5)
    expected = whole(xs)[0]
    np.testing.assert_array_equal(dropped(xs)[0], expected)
    np.testing.assert_array_equal(whole(xs, key=key)[0], expected)
    once, again = (eqx.filter_jit(dropped)(xs, key=key)[0] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, expected)
    assert not np.allclose(once, dropped(xs, key=jax.random.key(1))[0])


def test_each_chunk_has_masks_of_its_own(key):
    """Otherwise the second layer would read the same in all of them."""
    encoders = [RNNEncoder(elman(64, 64)) for _ in range(2)]
    stack = DeepRNNEncoder(encoders, dropout=0.5, chunk=1)
    reset = jnp.ones((6,), bool)  # so that no step differs by its state
    hs = np.asarray(stack(jnp.ones((6, 64)), reset=reset, key=key)[1])
    assert len(np.unique(hs, axis=0)) == 6
