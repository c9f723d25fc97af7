"""Checks dropout: its masks follow the global row and time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale.layers import Dropout, fold_keys, row_keys


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_row_keys_fold_in_the_flattened_row(key):
    keys = row_keys(key, (2, 3))
    expected = [data(jax.random.fold_in(key, row)) for row in range(6)]
    np.testing.assert_array_equal(data(keys).reshape(6, -1), expected)


def test_row_keys_are_taken_as_they_are(key):
    keys = jax.random.split(key, 4)
    np.testing.assert_array_equal(data(row_keys(keys, (4,))), data(keys))
    np.testing.assert_array_equal(data(row_keys(key, ())), data(key))
    assert row_keys(None, (4,)) is None


def test_raw_keys(key):
    raw = jax.random.key_data(jax.random.split(key, 4))
    np.testing.assert_array_equal(data(row_keys(raw, (4,))), raw)


def test_wrong_number_of_keys(key):
    with pytest.raises(ValueError, match=r"of shape \(4,\); got keys of shape \(3,\)"):
        row_keys(jax.random.split(key, 3), (4,))


def test_fold_keys_broadcasts(key):
    keys = fold_keys(jax.random.split(key, 2)[:, None], jnp.arange(3))
    assert keys.shape == (2, 3)
    assert len({tuple(row) for row in data(keys).reshape(6, -1)}) == 6


def test_rate_and_scale(key):
    xs = jnp.ones((8, 100, 50))
    ys = Dropout(0.3)(xs, key=key)
    assert (ys == 0).mean() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(ys[ys != 0], 1 / 0.7, rtol=1e-6)


def test_no_key_is_inference():
    xs = jnp.ones((3, 4))
    assert Dropout(0.5)(xs, key=None) is xs
    assert Dropout(0.5).step(xs, key=None) is xs


def test_mask_belongs_to_row_step_and_channel(key):
    """Not to the batch it is in, its place there, or the length of the sequence."""
    dropout = Dropout(0.5)
    keys = jax.random.split(key, 4)
    xs = jnp.ones((4, 9, 6))
    ys = dropout(xs, key=keys)
    np.testing.assert_array_equal(dropout(xs[2:, :5], key=keys[2:]), ys[2:, :5])
    np.testing.assert_array_equal(dropout(xs[1], key=keys[1]), ys[1])
    np.testing.assert_array_equal(dropout(xs[::-1], key=keys[::-1]), ys[::-1])
    by_vmap = eqx.filter_vmap(lambda x, key: dropout(x, key=key))(xs, keys)
    np.testing.assert_array_equal(by_vmap, ys)
    np.testing.assert_array_equal(dropout(xs, key=key), dropout(xs, key=row_keys(key, (4,))))


def test_masks_differ_between_rows_and_steps(key):
    masks = np.asarray(Dropout(0.5)(jnp.ones((4, 9, 64)), key=key)).reshape(36, 64) != 0
    assert len({mask.tobytes() for mask in masks}) == 36


def test_step_draws_what_a_call_draws(key):
    dropout = Dropout(0.5)
    keys = jax.random.split(key, 4)
    xs = jnp.ones((4, 9, 6))
    ys = dropout(xs, key=keys)
    for t in range(9):
        np.testing.assert_array_equal(dropout.step(xs[:, t], key=fold_keys(keys, t)), ys[:, t])


def test_keeps_nan_and_dtype(key):
    xs = jnp.full((3, 4, 5), jnp.nan, jnp.bfloat16)
    ys = Dropout(0.5)(xs, key=key)
    assert ys.dtype == jnp.bfloat16
    assert jnp.isnan(ys).any() and (ys == 0).any()


def test_rate_is_swept_without_compiling(key):
    traces = 0

    @jax.jit
    def run(dropout, xs):
        nonlocal traces
        traces += 1
        return dropout(xs, key=key)

    xs = jnp.ones((20, 30))
    zeros = [float((run(Dropout(rate), xs) == 0).mean()) for rate in (0.1, 0.9)]
    assert traces == 1 and zeros[0] < 0.5 < zeros[1]


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_wrong_rate(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        Dropout(rate)
