"""Checks modular networks against a NumPy oracle and against cells run alone."""

from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import cells, trainable, verify
from rnnscale.analysis import recurrent_matrix
from rnnscale.cells import ElmanRNNCell, GatedRecurrentUnitCell, LongShortTermMemoryCell
from rnnscale.layers import (
    DenseMessages,
    ModularRNN,
    RNNEncoder,
    SharedModules,
    SparseMessages,
    StackedModules,
)
from rnnscale.sharding import make_mesh
from rnnscale.verify._double import to_double
from rnnscale.verify._modular import modular_matches_oracle, renumbering_permutes

pytestmark = pytest.mark.usefixtures("quick_compilation")

AGGREGATIONS = ["sum", "mean", "attention"]
MESSAGE = 4
# From sender to receiver. Module 1 sends to itself, and no module sends to module 5.
EDGES = [(0, 1), (1, 1), (2, 1), (3, 0), (4, 0), (1, 2), (5, 3), (0, 4), (3, 4)]
SENDERS, RECEIVERS = zip(*EDGES, strict=True)


def groups(key):
    """Three Elman networks, two LSTMs without an input of their own, a GRU."""
    keys = jax.random.split(key, 6)
    return [
        StackedModules([ElmanRNNCell(2 + MESSAGE, 5, key=key) for key in keys[:3]]),
        StackedModules([LongShortTermMemoryCell(MESSAGE, 7, key=key) for key in keys[3:5]]),
        SharedModules(GatedRecurrentUnitCell(3 + MESSAGE, 6, key=keys[5]), 1),
    ]


def sparse(aggregation: Any, key: Any, maps: Any = "own"):
    return SparseMessages(
        SENDERS, RECEIVERS, 6, 7, MESSAGE, aggregation=aggregation, maps=maps, key=key
    )


def dense(aggregation, key, maps=None):
    mask = np.zeros((6, 6))
    mask[RECEIVERS, SENDERS] = 1
    return DenseMessages(mask, 7, MESSAGE, aggregation=aggregation, maps=maps, key=key)


MESSAGES = {
    "dense": dense,
    "sparse": sparse,
    "shared": lambda aggregation, key: sparse(aggregation, key, "shared"),
}


def message_passing(key: Any, aggregation: Any = "sum", nodes: int = 6):
    cell_key, map_key = jax.random.split(key)
    cell = ElmanRNNCell(2 + MESSAGE, 7, key=cell_key)
    messages = SparseMessages(
        SENDERS, RECEIVERS, nodes, 7, MESSAGE, aggregation=aggregation, maps="shared", key=map_key
    )
    return ModularRNN([SharedModules(cell, nodes)], messages)


def test_its_messages_are_in_no_recurrent_matrix(key):
    assert recurrent_matrix(message_passing(key)) is None


def draw(key, network, *axes):
    """A sequence, and a state that is not zero."""
    xs = jax.random.normal(key, (*axes, network.idim))
    state = network.init_state(axes[:-1])
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(key, len(leaves))
    leaves = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return xs, jax.tree.unflatten(structure, leaves)


def plain_scan(network, xs, state):
    """What `lax.scan` makes of the cell's call, for one batch axis."""
    state, ys = jax.lax.scan(lambda state, x: network(x, state), state, jnp.moveaxis(xs, -2, 0))
    return state, jnp.moveaxis(ys, 0, -2)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("messages", MESSAGES)
def test_oracle(messages, aggregation, getkey):
    network = ModularRNN(groups(getkey()), MESSAGES[messages](aggregation, getkey()))
    xs, state = draw(getkey(), network, 5)
    with jax.enable_x64(True):
        check = modular_matches_oracle(*to_double((network, xs, state)), bound=1e-10)
    assert check.passed, check


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_dense_and_sparse_agree(aggregation, getkey):
    listed = sparse(aggregation, getkey())
    # The maps of pairs without an edge must not matter.
    maps = jnp.full((6, 6, MESSAGE, 7), jnp.nan).at[RECEIVERS, SENDERS].set(listed.maps)
    masked = dense(aggregation, getkey(), maps)
    masked = eqx.tree_at(lambda m: m.query, masked, listed.query, is_leaf=lambda x: x is None)
    outputs = jax.random.normal(getkey(), (3, 6, 7))
    got, expected = (
        eqx.filter_jit(lambda m: m.aggregate(m.weights(), outputs))(m) for m in (masked, listed)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert not got[:, 5].any() and got[:, :5].all()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("messages", MESSAGES)
def test_gradient_of_messages_is_finite(messages, aggregation, getkey):
    """With scores so large that a softmax overflows, and a module without incoming edges."""
    layer = MESSAGES[messages](aggregation, getkey())
    outputs = 1e4 * jax.random.normal(getkey(), (6, 7))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(arguments):
        layer, outputs = arguments
        return jnp.sum(jnp.sin(layer.aggregate(layer.weights(), outputs)))

    leaves = jax.tree.leaves(gradient((layer, outputs)))
    assert all(jnp.isfinite(leaf).all() for leaf in leaves)
    assert leaves[0].any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_numbers_of_nodes_do_not_matter(aggregation, getkey):
    network = message_passing(getkey(), aggregation)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    xs = jax.random.normal(getkey(), (2, 5, network.idim))
    check = renumbering_permutes(network, order, xs)
    assert check.passed, check


KINDS = ["ChoGatedRecurrentUnitCell", "IndRNNCell", "ClockWorkRNNCell", "LeakyElmanCell"]


@pytest.mark.parametrize("kind", KINDS)
def test_modules_without_messages_are_independent_cells(kind, getkey):
    """For cells with counters in the state, and with vectors and scalars as parameters."""
    each = [getattr(cells, kind)(3 + MESSAGE, 8, key=getkey()) for _ in range(2)]
    messages = DenseMessages(np.zeros((4, 4)), 8, MESSAGE, key=getkey())
    network = ModularRNN([StackedModules(each), SharedModules(each[0], 2)], messages)
    xs = jax.random.normal(getkey(), (2, 5, 12))
    _, ys = eqx.filter_jit(RNNEncoder(network))(xs)
    parts = zip([*each, each[0], each[0]], jnp.split(xs, 4, -1), strict=True)
    silence = jnp.zeros((2, 5, MESSAGE))
    expected = [
        eqx.filter_jit(RNNEncoder(cell))(jnp.concatenate([x, silence], -1))[1] for cell, x in parts
    ]
    np.testing.assert_allclose(ys, jnp.concatenate(expected, -1), rtol=1e-5, atol=1e-6)


def test_a_step_uses_what_was_sent_after_the_last_one(getkey):
    """An impulse needs a step for every edge that it crosses."""
    cell = ElmanRNNCell(1 + MESSAGE, 7, key=getkey())
    line = SparseMessages([0, 1, 2], [1, 2, 3], 4, 7, MESSAGE, maps="shared", key=getkey())
    network = ModularRNN([SharedModules(cell, 4)], line)
    xs = jnp.zeros((6, 4))
    run = eqx.filter_jit(lambda xs: RNNEncoder(network)(xs)[1].reshape(6, 4, 7))
    moved = jnp.abs(run(xs.at[0, 0].set(1.0)) - run(xs)).max(axis=-1) > 0
    np.testing.assert_array_equal(moved, np.tri(6, 4, dtype=bool))


def mixed(messages):
    """Small, since it is compiled many times. All modules hear one another."""

    def build(key):
        keys = jax.random.split(key, 4)
        modules = [
            StackedModules([ElmanRNNCell(2 + MESSAGE, 5, key=key) for key in keys[:2]]),
            SharedModules(LongShortTermMemoryCell(1 + MESSAGE, 3, key=keys[2]), 1),
        ]
        return ModularRNN(modules, messages(keys[3]))

    return build


NETWORKS = {
    "sparse": mixed(
        lambda key: SparseMessages(
            [0, 1, 2, 2], [1, 2, 0, 2], 3, 5, MESSAGE, aggregation="attention", key=key
        )
    ),
    "dense": mixed(
        lambda key: DenseMessages(
            [[0, 1, 1], [1, 0, 0], [1, 1, 1]], 5, MESSAGE, aggregation="mean", key=key
        )
    ),
    "shared": partial(message_passing, aggregation="attention"),
}


@pytest.mark.parametrize(
    ("name", "time", "remat"), [("sparse", 5, False), ("dense", 5, False), ("shared", 11, True)]
)
def test_gradient_equals_that_of_a_plain_scan(name, time, remat, getkey):
    network = NETWORKS[name](getkey())
    xs, state = draw(getkey(), network, 3, time)
    weights = jax.random.normal(getkey(), (3, time, network.odim))

    def gradient(run):
        @eqx.filter_jit
        @eqx.filter_grad
        def of(arguments):
            last, ys = run(*arguments)
            return jnp.sum(weights * ys) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(last))

        return of((network, xs, state))

    with jax.enable_x64(True):
        network, xs, state, weights = to_double((network, xs, state, weights))
        got = gradient(lambda network, *rest: RNNEncoder(network, remat=remat)(*rest))
        expected = gradient(plain_scan)
        assert verify.relative_error(got, expected) < 1e-10


@pytest.mark.parametrize("name", ["sparse", "shared"])
def test_laws(name, key):
    layer = RNNEncoder(NETWORKS[name](key))
    xs = verify.sample_inputs(layer, (3, 5), key)
    # The suite of `rnnscale.verify` checks the other laws, which do not depend on the messages.
    for check in (
        verify.step_equals_call(layer, xs),
        verify.gradient_reaches_parameters(layer, xs),
        verify.batching_agrees(layer, xs),
        verify.bfloat16_keeps_dtypes(layer, xs),
    ):
        assert check.passed, check


def test_on_a_mesh(key):
    layer = RNNEncoder(NETWORKS["sparse"](key))
    xs = verify.sample_inputs(layer, (8, 5), key)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def gradient(layer):
        return jnp.sum(jnp.sin(layer(xs)[1]))

    expected = gradient(layer)
    with jax.set_mesh(make_mesh(data=4, fsdp=2)):
        assert verify.relative_error(gradient(layer), expected) < 1e-5


def test_what_is_trained(getkey):
    network = ModularRNN(
        groups(getkey()), sparse("attention", getkey(), jnp.ones((len(EDGES), MESSAGE, 7)))
    )
    trained = trainable(network)
    messages = trained.messages
    assert all(jax.tree.leaves(trained.groups)) and messages.query
    assert not (messages.fixed_maps or messages.senders or messages.receivers)
    assert network.messages.learned_maps is None
    learned = trainable(dense("sum", getkey()))
    assert learned.learned_maps and not learned.mask and learned.query is None


def test_initial_maps_keep_power(key):
    messages = SparseMessages(
        [0], [1], 2, 400, 300, maps="shared", aggregation="attention", key=key
    )
    assert messages.maps.std() == pytest.approx(400**-0.5, rel=0.02)
    assert messages.query is not None
    assert messages.query.std() == pytest.approx(400**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda key: DenseMessages(np.ones((2, 3)), 7, 4, key=key), "mask must be .*square"),
        (
            lambda key: DenseMessages([[0, 2], [0, 1]], 7, 4, key=key),
            "mask must have entries 0 and 1.* 2",
        ),
        (lambda key: DenseMessages([[1]], 0, 4, key=key), "idim must be at least 1; got 0"),
        (
            lambda key: DenseMessages([[1]], 7, 4, maps=jnp.ones((4, 7)), key=key),
            r"maps must have the shape \(1, 1, 4, 7\); got \(4, 7\)",
        ),
        (
            lambda key: DenseMessages([[1]], 7, 4, aggregation=cast(Any, "max"), key=key),
            "aggregation must be .*; got 'max'",
        ),
        (
            lambda key: SparseMessages([0, 1], [1, 2], 2, 7, 4, key=key),
            "receivers must be from 0 to 1, for 2 modules; got 2",
        ),
        (lambda key: SparseMessages([-1], [0], 2, 7, 4, key=key), "senders .*; got -1"),
        (lambda key: SparseMessages([0, 1], [0], 2, 7, 4, key=key), "2 senders and 1 receivers"),
        (lambda key: SparseMessages([], [], 2, 7, 4, key=key), "senders .* at least one"),
        (
            lambda key: SparseMessages(np.array([0.5]), [0], 2, 7, 4, key=key),
            "senders .* got float64",
        ),
        (lambda key: SparseMessages([0], [1], 0, 7, 4, key=key), "modules must be at least 1"),
        (
            lambda key: SparseMessages([0], [1], 2, 7, 4, maps=cast(Any, "each"), key=key),
            "maps must be one of own, shared or .*; got 'each'",
        ),
        (lambda key: StackedModules([]), "StackedModules: cells must have at least one element"),
        (
            lambda key: StackedModules([ElmanRNNCell(2, n, key=key) for n in (3, 4)]),
            r"cells\[0\] is .*hdim=3\) and cells\[1\] is .*hdim=4\)",
        ),
        (lambda key: SharedModules(ElmanRNNCell(2, 3, key=key), 0), "count must be at least 1"),
        (
            lambda key: ModularRNN(groups(key)[:2], sparse("sum", key)),
            "messages are for 6 modules, but groups have 5",
        ),
        (
            lambda key: ModularRNN(groups(key), SparseMessages([0], [1], 6, 8, MESSAGE, key=key)),
            "largest output of a module has 7 features, .* idim=8",
        ),
        (
            lambda key: ModularRNN(groups(key), SparseMessages([0], [1], 6, 7, 5, key=key)),
            r"odim=5 features, but the cells of groups\[1\] have idim=4",
        ),
    ],
)
def test_bad_arguments(build, message, key):
    with pytest.raises(ValueError, match=message):
        build(key)


def test_wrong_kinds(key):
    messages, modules = sparse("sum", key), groups(key)
    with pytest.raises(TypeError, match="groups.0. must be .*SharedModules; got ElmanRNNCell"):
        ModularRNN(cast(Any, [ElmanRNNCell(2, 3, key=key)]), messages)
    with pytest.raises(TypeError, match="messages must be .*; got StackedModules"):
        ModularRNN(modules, modules[0])
    with pytest.raises(
        TypeError, match="StackedModules: cells.0. must be a rnnscale.cells.Cell; got 3"
    ):
        StackedModules(cast(Any, [3]))
    network = ModularRNN(modules, messages)
    with pytest.raises(ValueError, match="ModularRNN takes .* 9 features"):
        network(jnp.zeros(8), network.init_state())
