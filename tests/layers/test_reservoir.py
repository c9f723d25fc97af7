"""Checks reservoirs: their fit, their forecasts, and what is trained."""

import logging
import re
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.sharding import NamedSharding
from sklearn.linear_model import Ridge

from rnnscale import verify
from rnnscale._fields import trainable
from rnnscale.cells import (
    AntiSymmetricRNNCell,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    IndRNNCell,
    LeakyElmanCell,
    LongShortTermMemoryCell,
    RandomOscillatorsCell,
    UnitaryEvolutionRNNCell,
)
from rnnscale.layers import (
    ReservoirClassifier,
    ReservoirComputer,
    RidgeSums,
    _ridge,
    as_reservoir,
    ridge_sums,
    spectral_radius,
)
from rnnscale.layers._reservoir import _counted, _states
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_series
from rnnscale.verify import _reservoir as checks
from rnnscale_kernels.testing import Program

# The state is the output, a pair with the output inside, and two planes of a complex output.
CELLS = [LeakyElmanCell, LongShortTermMemoryCell, UnitaryEvolutionRNNCell]


def passed(found):
    for check in found if isinstance(found, list) else [found]:
        assert check.passed, check


@pytest.mark.parametrize(
    "check",
    [
        checks.fit_matches_least_squares,
        checks.offset_is_harmless,
        checks.double_precision_pays,
    ],
    ids=lambda check: check.__name__,
)
def test_check(check, key):
    passed(check(key))


def test_mackey_glass(key):
    pytest.importorskip("reservoirpy")
    series = load_series("mackey-glass", steps=3000)
    passed(checks.mackey_glass_error(key, series.inputs, series.targets))


@pytest.fixture
def reservoir(key):
    cell = as_reservoir(
        LeakyElmanCell(2, 12, key=key),
        spectral_radius=0.8,
        bias_scale=0.3,
        density=0.5,
        input_density=0.5,
        key=key,
    )
    return ReservoirComputer(cell, 3, key=key)


@pytest.fixture
def batch(key):
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return jnp.asarray(random.standard_normal((4, 9, 2)), jnp.float32), random.standard_normal(
        (4, 9, 3)
    )


def states_of(reservoir, xs, **options):
    return np.asarray(eqx.filter_jit(reservoir.states)(xs, **options)[1], np.float64)


def sums_by_hand(rows):
    rows = np.array([np.concatenate([[1.0], *row]) for row in rows])
    return rows.T @ rows


@pytest.mark.parametrize("make_cell", CELLS, ids=lambda cell: cell.__name__)
def test_any_cell_fits_as_scikit_learn_does(make_cell, batch, key):
    xs, ys = batch
    reservoir = ReservoirComputer(make_cell(2, 6, key=key), 3, key=key)
    fitted = reservoir.fit(xs, ys, ridge=0.1, washout=2)
    hs = states_of(reservoir, xs)[:, 2:].reshape(-1, reservoir.cell.odim)
    expected = Ridge(0.1).fit(hs, ys[:, 2:].reshape(-1, 3))
    assert verify.relative_error(fitted.readout.weight, expected.coef_) < 1e-6
    assert verify.relative_error(fitted.readout.bias, expected.intercept_) < 1e-6
    assert verify.relative_error(fitted.cell, reservoir.cell) == 0


def test_the_cell_is_frozen_and_nothing_else(key):
    reservoir = ReservoirComputer(LongShortTermMemoryCell(2, 6, key=key), 3, key=key)
    assert not any(jax.tree.leaves(trainable(reservoir).cell))
    assert all(jax.tree.leaves(trainable(reservoir).readout))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(arguments):
        reservoir, xs = arguments
        state, ys = reservoir(xs, reservoir.init_state((2,)))
        _, y = reservoir.step(xs[:, 0], state)
        _, following = ReservoirComputer(reservoir.cell, 2, key=key).forecast(xs, steps=2)
        return jnp.sum(ys**2) + jnp.sum(y**2) + jnp.sum(following**2)

    of_reservoir, of_xs = gradient((reservoir, jax.random.normal(key, (2, 5, 2))))
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_reservoir.cell))
    assert all(leaf.any() for leaf in jax.tree.leaves(of_reservoir.readout))
    assert (of_xs != 0).any(axis=-1).all()


def test_the_gradient_of_the_input_is_that_of_an_ordinary_network(reservoir, batch):
    xs = batch[0]

    def of_reservoir(xs):
        return jnp.sum(jnp.sin(reservoir(xs)[1]))

    def of_steps(xs):
        state, total = reservoir.cell.init_state((4,)), 0.0
        for x in jnp.moveaxis(xs, 1, 0):
            state, h = reservoir.cell(x, state)
            total = total + jnp.sum(jnp.sin(reservoir.readout(h)))
        return total

    got, expected = (jax.jit(jax.grad(f))(xs) for f in (of_reservoir, of_steps))
    assert verify.relative_error(got, expected) < 1e-5


def test_products_are_of_full_precision(reservoir, batch, key):
    """On a CPU they always are, so that only the program shows it."""
    xs, _ = batch
    square = ReservoirComputer(reservoir.cell, 2, key=key)
    classifier = ReservoirClassifier(reservoir.cell, 2, key=key)
    for run in (reservoir, lambda xs: square.forecast(xs, steps=3), classifier):
        program = str(jax.make_jaxpr(run)(xs))
        precisions = re.findall(r"precision=(\S+(?: \S*HIGHEST\S*)?)", program)
        assert len(precisions) == program.count(" dot_general[") >= 3
        assert {each.count("HIGHEST") for each in precisions} <= {1, 2}


def test_washout_after_each_reset_and_lengths(reservoir, batch):
    xs, ys = batch
    lengths = jnp.array([9, 6, 0, 2])
    reset = jnp.zeros((4, 9), bool).at[0, 4].set(True).at[1, 1].set(True).at[0, 8].set(True)
    padding = jnp.arange(9)[:, None] >= lengths[:, None, None]
    xs = jnp.where(padding, jnp.nan, xs)
    targets = np.where(padding, np.nan, ys)
    counting = [(0, 2), (0, 3), (0, 6), (0, 7), (1, 3), (1, 4), (1, 5)]
    _, sums = reservoir.accumulate(xs, targets, washout=2, reset=reset, lengths=lengths)
    hs = states_of(reservoir, xs, reset=reset, lengths=lengths)
    expected = sums_by_hand([(hs[at], ys[at]) for at in counting])
    assert sums.count == len(counting)
    assert verify.relative_error(sums.moments, expected) < 1e-12


def test_targets_keep_double_precision(reservoir, batch):
    xs, ys = batch
    _, sums = reservoir.accumulate(xs, ys)
    rounded = ys.astype(np.float32)
    assert sums.moments.dtype == np.float64
    assert verify.relative_error(sums.moments[0, -3:], ys.sum(axis=(0, 1))) < 1e-14
    assert verify.relative_error(sums.moments[0, -3:], rounded.sum(axis=(0, 1))) > 1e-10


def test_a_sequence_without_a_batch(reservoir, batch):
    xs, ys = batch
    one = reservoir.fit(xs[0], ys[0], ridge=0.1)
    other = reservoir.fit(xs[:1], ys[:1], ridge=0.1)
    assert verify.relative_error(one.readout, other.readout) < 1e-6


def test_float64_models_have_float64_readouts(reservoir, batch):
    xs, ys = batch
    with jax.enable_x64(True):
        reservoir = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), reservoir)
        xs = xs.astype(jnp.float64)
        fitted = reservoir.fit(xs, ys, ridge=0.1)
        expected = Ridge(0.1).fit(states_of(reservoir, xs).reshape(-1, 12), ys.reshape(-1, 3))
        assert verify.relative_error(fitted.readout.weight, expected.coef_) < 1e-12


def test_labels_of_steps_are_fitted_one_hot(reservoir, batch):
    xs, _ = batch
    labels = np.arange(36).reshape(4, 9) % 3
    got = reservoir.fit(xs, labels, ridge=0.1).readout
    expected = reservoir.fit(xs, np.eye(3)[labels], ridge=0.1).readout
    assert verify.relative_error(got, expected) == 0
    # Those that do not count may be anything.
    lengths = jnp.array([9, 9, 9, 4])
    labels[3, 4:] = -100
    reservoir.accumulate(xs, labels, lengths=lengths)
    with pytest.raises(ValueError, match="takes labels from 0 to 2; got integers outside"):
        reservoir.accumulate(xs, labels)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_sequence_features(pool, batch, key):
    xs, _ = batch
    lengths = np.array([9, 4, 1, 6])
    model = ReservoirClassifier(LongShortTermMemoryCell(2, 6, key=key), 3, pool=pool, key=key)
    hs = states_of(model, xs)
    valid = [rows[:length] for rows, length in zip(hs, lengths, strict=True)]
    features = np.array([rows[-1] if pool == "last" else rows.mean(axis=0) for rows in valid])
    labels = np.array([2, 0, 1, 0])
    fitted = model.fit(xs, labels, ridge=0.01, lengths=jnp.asarray(lengths))
    expected = Ridge(0.01).fit(features, np.eye(3)[labels])
    assert verify.relative_error(fitted.readout.weight, expected.coef_) < 1e-4
    state, scores = eqx.filter_jit(fitted)(xs, lengths=jnp.asarray(lengths))
    assert verify.relative_error(scores, expected.predict(features)) < 1e-5


def test_sequences_without_a_step_do_not_count(batch, key):
    xs, _ = batch
    model = ReservoirClassifier(ElmanRNNCell(2, 6, key=key), 3, key=key)
    sums = model.accumulate(xs, jnp.array([0, 1, -1, 2]), lengths=jnp.array([9, 4, 0, 6]))
    assert sums.count == 3


def test_forecast_goes_on_from_its_own_output(batch, key):
    xs, _ = batch
    lengths = [9, 4, 1, 6]
    reservoir = ReservoirComputer(RandomOscillatorsCell(2, 6, key=key), 2, key=key)
    _, got = eqx.filter_jit(reservoir.forecast)(xs, steps=5, lengths=jnp.asarray(lengths))
    step = eqx.filter_jit(reservoir.step)
    for row, length in enumerate(lengths):
        state, expected = reservoir.init_state(), []
        for x in xs[row, :length]:
            state, y = step(x, state)
        for _ in range(5):
            expected.append(y)
            state, y = step(y, state)
        assert verify.relative_error(got[row], jnp.stack(expected)) < 1e-5


def test_over_devices_a_batch_has_one_all_reduce(key):
    cell = as_reservoir(LeakyElmanCell(2, 12, key=key), spectral_radius=0.8, density=0.5, key=key)
    reservoir = ReservoirComputer(cell, 3, key=key)
    xs = jax.random.normal(key, (16, 9, 2))
    ys = np.asarray(jax.random.normal(key, (16, 9, 3)), np.float64)
    reset = jax.random.bernoulli(key, 0.2, (16, 9))
    options = {"reset": reset, "lengths": jnp.arange(16) % 10, "washout": 2}
    _, expected = reservoir.accumulate(xs, ys, **options)
    mesh = make_mesh(data=8)
    with jax.set_mesh(mesh):
        _, got = reservoir.accumulate(xs, ys, **options)
        arguments = reservoir, xs, None, reset, options["lengths"]
        states = Program(_states.lower(*arguments).compile().compiled, mesh)
        _, hs = _states(*arguments)
        counted = _counted((16, 9), reset, options["lengths"], 2)
        with jax.enable_x64(True):
            products = _ridge._moments.lower(hs, jnp.asarray(ys), counted).compile()
    assert got.count == expected.count < 16 * 9
    assert verify.relative_error(got.moments, expected.moments) < 1e-6
    assert cast(NamedSharding, hs.sharding).spec[0] is not None
    assert states.collectives == ()
    assert [each.kind for each in Program(products, mesh).collectives] == ["all-reduce"]


def test_without_float64_on_the_device_the_host_multiplies(reservoir, batch, monkeypatch, caplog):
    xs, ys = batch
    _, expected = reservoir.accumulate(xs, ys, washout=1)
    monkeypatch.setattr(_ridge, "_PLATFORMS_WITHOUT_FLOAT64", {"cpu"})
    with caplog.at_level(logging.WARNING):
        _, got = reservoir.accumulate(xs, ys, washout=1)
    assert verify.relative_error(got.moments, expected.moments) < 1e-13
    assert "TPUs have no float64" in caplog.text


def test_sums_of_lower_precision_are_refused(reservoir, batch):
    _, sums = reservoir.accumulate(*batch)
    for moments in (sums.moments.astype(np.float32), jnp.asarray(sums.moments)):
        with pytest.raises(TypeError, match="float64, because .* rounding; got float32"):
            RidgeSums(cast(Any, moments), sums.features)


def test_sums_of_numpy_arrays(key):
    features = jax.random.normal(key, (30, 4))
    arrays = cast(Any, np.asarray(features))
    found = ridge_sums(arrays, arrays[:, :2])
    expected = ridge_sums(features, features[:, :2])
    np.testing.assert_array_equal(found.moments, expected.moments)


def test_sums_that_cannot_be_solved(key):
    features = jax.random.normal(key, (30, 4))
    targets = features[:, :2]
    twins = jnp.concatenate([features, features], axis=1)
    sums = ridge_sums(twins, targets)
    # The second ridge lets Cholesky factors exist, but is lost in the rounding of the sums.
    rounding = 8 * 2.0**-52 * np.max(np.diag(sums.moments)[1:9])
    for ridge in (0, rounding / 4):
        with pytest.raises(ValueError, match="8 features and 2 targets on 30 .* ridge=.*: make it"):
            sums.solve(ridge)
    weight, _ = sums.solve(1e-6)
    # Twins share the weight.
    np.testing.assert_allclose(weight[:, :4], np.eye(2, 4) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="ridge must be at least 0 and finite; got -1"):
        ridge_sums(features, targets).solve(-1)
    with pytest.raises(ValueError, match="there is no sample to fit"):
        RidgeSums.zeros(4, 2).solve(1)
    with pytest.raises(ValueError, match="are not finite"):
        ridge_sums(features.at[3, 1].set(jnp.nan), targets).solve(1)
    with pytest.raises(
        ValueError, match="4 features and 2 targets and of 8 features .* do not add"
    ):
        _ = ridge_sums(features, targets) + ridge_sums(twins, targets)
    with pytest.raises(ValueError, match="the same leading axes; got shape"):
        ridge_sums(features, targets[1:])


def test_a_reservoirs_entries(key):
    cell = LeakyElmanCell(3, 200, leak=0.3, key=key)
    got = as_reservoir(
        cell,
        spectral_radius=1.1,
        input_scale=0.4,
        bias_scale=0.2,
        density=0.2,
        input_density=0.6,
        key=key,
    )
    assert set(np.unique(got.input)) == {np.float32(-0.4), 0.0, np.float32(0.4)}
    assert set(np.unique(got.bias)) == {np.float32(-0.2), np.float32(0.2)}
    assert np.mean(got.input != 0) == pytest.approx(0.6, abs=0.1)
    assert np.mean(got.recurrent != 0) == pytest.approx(0.2, abs=0.01)
    entries = np.asarray(got.recurrent)[got.recurrent != 0]
    # The distribution is normal: no skew, and a kurtosis of 3.
    scaled = (entries - entries.mean()) / entries.std()
    assert np.mean(scaled**3) == pytest.approx(0, abs=0.15)
    assert np.mean(scaled**4) == pytest.approx(3, abs=0.3)
    # The circular law: the radius of normal entries of this variance.
    assert entries.std() * np.sqrt(0.2 * 200) == pytest.approx(1.1, rel=0.1)
    assert got.leak == cell.leak


def test_a_reservoir_is_a_function_of_its_key(key, getkey):
    cell = GatedRecurrentUnitCell(3, 20, key=key)
    first, again, other = (
        as_reservoir(cell, spectral_radius=0.9, density=0.5, key=k) for k in (key, key, getkey())
    )
    assert verify.relative_error(first, again) == 0
    assert verify.relative_error(first.recurrent, other.recurrent) > 0.1
    assert not np.allclose(first.recurrent[0], first.recurrent[1])


def test_labels_of_8_bits(key):
    model = ReservoirClassifier(LeakyElmanCell(3, 12, key=key), 300, key=key)
    xs = jax.random.normal(key, (20, 9, 3))
    fitted = [model.fit(xs, np.arange(20, dtype=dtype), ridge=0.1) for dtype in ("uint8", "int32")]
    assert verify.relative_error(*(each.readout for each in fitted)) == 0
    with pytest.raises(ValueError, match="takes labels from 0 to 299"):
        model.fit(xs, np.full(20, 2**32 + 1), ridge=0.1)  # 1 in 32 bits


def test_a_large_matrix_of_zeros():
    assert spectral_radius(np.zeros((300, 300))) == 0


def test_arpack_gets_more_vectors_and_then_gives_up(key, monkeypatch):
    matrix = np.random.default_rng(0).standard_normal((250, 250))
    eigs, used = scipy.sparse.linalg.eigs, []

    def fails(times):
        def run(*args, ncv, **kwargs):
            used.append(ncv)
            if len(used) <= times:
                raise scipy.sparse.linalg.ArpackNoConvergence("%d, %s", np.ones(1), np.ones((1, 1)))
            return eigs(*args, ncv=ncv, **kwargs)

        return run

    monkeypatch.setattr(scipy.sparse.linalg, "eigs", fails(1))
    expected = np.max(np.abs(np.linalg.eigvals(matrix)))
    assert spectral_radius(matrix) == pytest.approx(expected, rel=1e-10)
    assert used[0] < used[1]
    used.clear()
    monkeypatch.setattr(scipy.sparse.linalg, "eigs", fails(2))
    with pytest.raises(RuntimeError, match=r"of a matrix of shape \(250, 250\) with 250 vectors"):
        spectral_radius(matrix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spectral_radius": 0.0}, "spectral_radius must be positive and finite; got 0.0"),
        ({"spectral_radius": float("nan")}, "spectral_radius must be positive and finite; got nan"),
        ({"input_scale": -1.0}, "input_scale must be at least 0 and finite; got -1.0"),
        ({"bias_scale": float("inf")}, "bias_scale must be at least 0 and finite; got inf"),
        ({"density": 0.0}, r"density must be in \(0, 1\]; got 0.0"),
        ({"input_density": 1.5}, r"input_density must be in \(0, 1\]; got 1.5"),
        ({"density": 1e-3}, r"of recurrent, \(20, 20\), has no eigenvalue but zero"),
        ({"input_density": 1e-9}, r"of input, \(20, 2\), is zero at input_density=1e-09"),
    ],
)
def test_bad_reservoirs(arguments, message, key):
    options = {"spectral_radius": 0.9, "density": 0.5, "input_density": 0.5} | arguments
    with pytest.raises(ValueError, match=message):
        as_reservoir(ElmanRNNCell(2, 20, key=key), **options, key=key)


def test_only_cells_with_a_matrix_have_a_radius(key):
    for cell in (IndRNNCell(2, 6, key=key), UnitaryEvolutionRNNCell(2, 6, key=key)):
        with pytest.raises(ValueError, match=f"{type(cell).__name__} has no recurrent matrix"):
            as_reservoir(cell, spectral_radius=0.9, density=1.0, input_density=1.0, key=key)
    with pytest.raises(TypeError, match=r"cell must be a rnnscale\.cells\.Cell; got 3"):
        as_reservoir(3, spectral_radius=0.9, key=key)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"a square matrix; got shape \(2, 3\)"):
        spectral_radius(np.ones((2, 3)))
    antisymmetric = AntiSymmetricRNNCell(2, 6, key=key)
    got = as_reservoir(antisymmetric, spectral_radius=0.5, density=1.0, input_density=1.0, key=key)
    assert got.gamma == antisymmetric.gamma
    assert spectral_radius(got.recurrent) == pytest.approx(0.5, rel=1e-6)


def test_bad_arguments(reservoir, batch, key):
    xs, ys = batch
    for washout in (-1, 9):
        with pytest.raises(ValueError, match=f"washout must be at least 0.*; got {washout}"):
            reservoir.fit(xs, ys, ridge=1.0, washout=washout)
    with pytest.raises(ValueError, match=r"targets of 3 features of shape \(4, 9, 3\); got shape"):
        reservoir.fit(xs, ys[:, :-1], ridge=1.0)
    with pytest.raises(ValueError, match=r"integer labels of shape \(4, 9\); got shape \(4,\)"):
        reservoir.fit(xs, jnp.zeros(4, int), ridge=1.0)
    with pytest.raises(ValueError, match="with 2 features; got shape"):
        reservoir.fit(xs[..., :1], ys, ridge=1.0)
    with pytest.raises(ValueError, match="maps 12 features to 3; got sums of 4 features and 3"):
        reservoir.solve(ridge_sums(jax.random.normal(key, (9, 4)), jnp.ones((9, 3))), ridge=1.0)
    with pytest.raises(ValueError, match="odim equal to idim; got odim=3 and idim=2"):
        reservoir.forecast(xs, steps=3)
    square = ReservoirComputer(reservoir.cell, 2, key=key)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        square.forecast(xs, steps=0)
    with pytest.raises(ValueError, match="no step to continue from"):
        square.forecast(xs[:, :0], steps=1)
    with pytest.raises(ValueError, match="odim must be at least 1; got 0"):
        ReservoirComputer(reservoir.cell, 0, key=key)
    with pytest.raises(TypeError, match="ReservoirComputer: cell must be a rnnscale.cells.Cell"):
        ReservoirComputer(reservoir, 2, key=key)
    with pytest.raises(ValueError, match="pool must be one of last, mean; got 'max'"):
        ReservoirClassifier(reservoir.cell, 2, pool=cast(Any, "max"), key=key)
    classifier = ReservoirClassifier(reservoir.cell, 2, key=key)
    with pytest.raises(ValueError, match=r"integer labels of shape \(4,\); got shape \(3,\)"):
        classifier.fit(xs, jnp.zeros(3, int), ridge=1.0)
