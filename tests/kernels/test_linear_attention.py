"""`linear_attention`: numbers, derivatives, segments, transformations, memory, errors."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.test_util import check_grads

import rnnscale_kernels
from rnnscale_kernels.testing import ATTENTION_ARGUMENTS, AttentionArguments

# NumPy arrays are fine too, which its type does not say.
linear_attention: Any = rnnscale_kernels.linear_attention

SMALL = AttentionArguments(
    time=37, heads=4, groups=2, key=3, value=2, decay="head", erase=True, ragged=True
)
BY_CHANNEL = replace(SMALL, time=12, heads=2, groups=1, decay="channel")


def call(spec, arrays: Any = None, **options) -> tuple[Any, Any]:
    """The function of the five inputs and the state, with its values, in float64 if that is on."""
    arrays = spec.arrays() if arrays is None else arrays
    names = (*spec.input_names, "h0")
    values = [None if arrays[n] is None else jnp.asarray(arrays[n]) for n in names]
    options = {n: jnp.asarray(arrays[n]) for n in ("reset", "lengths") if n in arrays} | options
    return partial(linear_attention, reverse=spec.reverse, **options), values


def assert_close(got, expected, tolerance):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def assert_accurate(spec, implementation="chunked"):
    values, gradients = np.split(spec.errors(implementation), [2])
    assert np.max(values) <= (2e-6 if spec.dtype == "float32" else 1e-2)
    assert np.max(gradients) <= spec.bound


@pytest.mark.parametrize("spec", ATTENTION_ARGUMENTS, ids=str)
def test_chunks_give_values_and_gradients_of_the_reference(spec):
    assert_accurate(spec)


@pytest.mark.parametrize("spec", [SMALL, replace(BY_CHANNEL, reverse=True)], ids=str)
def test_steps_give_values_and_gradients_of_the_reference(spec):
    assert_accurate(spec, "sequential")


@st.composite
def specs(draw):
    sizes = st.sampled_from([1, 2, 3, 16, 33, 128])
    heads = draw(st.sampled_from([1, 2, 6]))
    return AttentionArguments(
        batch=draw(st.sampled_from([(), (1,), (2,), (1, 2)])),
        time=draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 129, 200]))),
        heads=heads,
        groups=draw(st.sampled_from([n for n in (1, 2, 3, 6) if heads % n == 0])),
        key=draw(sizes),
        value=draw(sizes),
        decay=draw(st.sampled_from(["none", "head", "channel"])),
        erase=draw(st.booleans()),
        extreme=draw(st.booleans()),
        ragged=draw(st.booleans()),
        reverse=draw(st.booleans()),
    )


@settings(max_examples=5)
@given(specs())
def test_any_shape(spec):
    assert_accurate(spec)


@pytest.mark.slow
@settings(max_examples=60)
@given(specs())
def test_many_shapes(spec):
    assert_accurate(spec)


@pytest.mark.parametrize("decay", ["none", pytest.param("channel", marks=pytest.mark.slow)])
def test_long_sequences(decay):
    spec = AttentionArguments((1,), 4097, 1, key=4, value=3, decay=decay, erase=True, extreme=True)
    assert_accurate(spec)


def test_a_constant_state_gives_the_same_numbers():
    # The compiler sees the ones, as it sees the zeros of a default state. XLA for CPUs miscomputes
    # some products with an array that it knows to be a constant.
    spec = AttentionArguments((8,), 16, heads=4, key=16, value=32, decay="channel")
    arrays = spec.arrays() | {"h0": np.ones((8, 4, 16, 32), np.float32)}
    run, (*values, h0) = call(spec, arrays)
    got = jax.jit(lambda *values: run(*values, jnp.ones_like(h0)))(*values)
    assert_close(got, spec.expected(arrays)[:2], 1e-4)


@pytest.mark.parametrize("implementation", ["chunked", "sequential"])
def test_no_time(implementation):
    run, (*values, h0) = call(replace(SMALL, time=1, ragged=False), implementation=implementation)
    y, h_last = run(*(x[:, :0] for x in values), h0)
    assert y.shape == (2, 0, 4, 2)
    np.testing.assert_array_equal(h_last, h0)


def test_strong_decays_do_not_blur_mild_ones():
    """After a decay of e^-100, sums of log decays over the chunk have lost four digits."""
    spec = AttentionArguments((1,), 64, 1, key=8, value=8, decay="head")
    arrays: Any = spec.arrays()
    arrays["log_decay"][:, :32] = -100
    arrays["log_decay"][:, 32:] = -0.001
    arrays["log_decay"] = arrays["log_decay"].astype(np.float32).astype(np.float64)
    run, values = call(spec, arrays)
    expected = spec.expected(arrays)[0]
    got, _ = run(*(None if x is None else x.astype(jnp.float32) for x in values))
    assert np.max(np.abs(got - expected)) < 1e-6 * np.max(np.abs(expected))


def test_reflections_by_one_key_cancel():
    """Erasing twice what stands under a unit key is a reflection: 500 of them change nothing."""
    key = np.ones((500, 1, 4), np.float32) / 2
    h0 = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    _, last = linear_attention(key, key, np.zeros((500, 1, 3), np.float32), None, 2 * key, h0)
    np.testing.assert_allclose(last, h0, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "implementation"),
    [(SMALL, "chunked"), (SMALL, "sequential"), (replace(BY_CHANNEL, reverse=True), "chunked")],
)
def test_segments_do_not_see_what_is_not_finite_in_another(spec, implementation):
    """A chunk has three segments. The initial state, and inputs and cotangents of the middle one
    are not finite."""
    spec = replace(spec, ragged=False)
    arrays = spec.arrays()
    arrays["reset"] = np.zeros((2, spec.time), bool)
    arrays["reset"][:, [3, 8]] = True
    alone = slice(8, None) if not spec.reverse else slice(0, 3)
    spoiled: dict[str, Any] = {k: None if x is None else x.copy() for k, x in arrays.items()}
    for name, at in (("query", 7), ("key", 3), ("log_decay", 5), ("erase", 6), ("g", 5)):
        spoiled[name][:, at] = np.nan
    spoiled["value"][:, 4] = np.inf
    spoiled["h0"][:] = np.nan

    @jax.jit
    def results(values, g):
        run = partial(
            linear_attention, reset=jnp.asarray(arrays["reset"]), reverse=spec.reverse,
            implementation=implementation,
        )  # fmt: skip
        value, pull = jax.vjp(run, *values)
        return value, pull(g)

    def of(arrays):
        _, values = call(spec, arrays)
        (y, last), (*gradients, g_h0) = results(
            values, (jnp.asarray(arrays["g"]), jnp.asarray(arrays["g_last"]))
        )
        return (y[:, alone], last, [x[:, alone] for x in gradients]), (y, gradients, g_h0)

    with jax.enable_x64(True):
        (clean, _), (got, (y, gradients, _)) = of(arrays), of(spoiled)
    assert_close(got, clean, 1e-12)
    assert np.isnan(y[:, 5]).all() and np.isnan(gradients[2][:, 4]).all()  # nothing is hidden


def test_what_lies_beyond_the_lengths_has_no_effect():
    spec = replace(SMALL, reverse=True)
    arrays = spec.arrays()
    beyond = np.arange(spec.time) >= arrays["lengths"][:, None]
    for name in spec.input_names:
        arrays[name] = np.where(
            beyond.reshape(*beyond.shape, *(1,) * (arrays[name].ndim - 2)), np.nan, arrays[name]
        )
    run, values = call(spec, arrays)
    clean, clean_values = call(spec)

    def loss(run, *values):
        return sum(jnp.sum(jnp.sin(x)) for x in run(*values))

    of = jax.value_and_grad(loss, tuple(range(1, 7)))
    assert_close(of(run, *values), of(clean, *clean_values), 1e-5)


@pytest.mark.parametrize("spec", [SMALL, pytest.param(BY_CHANNEL, marks=pytest.mark.slow)], ids=str)
def test_derivatives_of_second_order_in_both_modes(spec):
    spec = replace(spec, time=4, ragged=False)
    with jax.enable_x64(True):
        reset = jnp.arange(4) == jnp.array([[2], [9]])
        run, values = call(spec, reset=reset)
        check_grads(jax.jit(run), values, order=2, atol=1e-5, rtol=1e-5)


def test_vmap_is_another_batch_axis():
    run, values = call(SMALL)
    reset, lengths = run.keywords["reset"], run.keywords["lengths"]

    def gradient(reset, lengths, *values):
        def loss(*values):
            y, last = linear_attention(*values, reset=reset, lengths=lengths)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(last)), y

        return jax.grad(loss, tuple(range(6)), has_aux=True)(*values)

    direct = gradient(reset, lengths, *values)
    assert_close(jax.vmap(gradient)(reset, lengths, *values), direct, 1e-6)
    # An argument that is not mapped.
    query, *others = values
    one = jax.vmap(gradient, (0, 0, None, *(0 for _ in others)))
    together = gradient(reset, lengths, jnp.broadcast_to(query[:1], query.shape), *others)
    assert_close(one(reset, lengths, query[0], *others), together, 1e-6)


def test_forward_mode_is_the_transpose_of_reverse_mode():
    run, values = call(replace(SMALL, time=70, ragged=False))
    tangents = [jnp.asarray(np.random.default_rng(1).normal(size=x.shape), x.dtype) for x in values]
    outputs, moved = jax.jit(lambda v, t: jax.jvp(run, v, t))(values, tangents)
    pulled = jax.jit(lambda v, g: jax.vjp(run, *v)[1](g))(values, outputs)
    inner = [
        sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        for a, b in ((outputs, moved), (pulled, tangents))
    ]
    np.testing.assert_allclose(*inner, rtol=1e-4)


def test_cpus_erase_in_small_states_step_by_step():
    assert SMALL.default("cpu") == "sequential"
    assert {replace(SMALL, key=32, value=32).default("cpu"), SMALL.default("tpu")} == {"chunked"}


def test_only_states_at_borders_are_kept():
    """All states take 4096 x 16 x 16 numbers: 4 MB."""

    def loss(query, key, value, erase):
        return jnp.sum(linear_attention(query, key, value, None, erase)[0])

    shape = jax.ShapeDtypeStruct((4096, 1, 16), jnp.float32)
    program: Any = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*[shape] * 4).compile()
    assert program.memory_analysis().temp_size_in_bytes < 3e6


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"value": np.ones((37, 4))}, "value must be"),
        ({"query": np.ones((2, 37, 3, 3))}, "query must be .* divides"),
        ({"key": np.ones((2, 37, 2, 5))}, "query must be .* as key"),
        ({"erase": np.ones((2, 36, 2, 3))}, "erase must be"),
        ({"log_decay": np.ones((2, 37, 2))}, "log_decay must be"),
        ({"h0": np.ones((2, 4, 2, 3))}, "h0 must be .*2, 4, 3, 2"),
        ({"value": np.ones((2, 37, 4, 2), int)}, "value must hold floating"),
        ({"implementation": "fast"}, "implementation must be None or one of"),
        ({"reset": np.ones((2, 36), bool)}, "reset has shape"),
        ({"lengths": np.array([1, 38])}, "lengths must be from 0 to the 37 steps"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed, error):
    arrays = SMALL.arrays()
    names = (*SMALL.input_names, "h0")
    with pytest.raises((TypeError, ValueError), match=error):
        linear_attention(**{name: arrays[name] for name in names} | changed)
