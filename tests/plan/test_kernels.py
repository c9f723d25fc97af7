"""Kernels and bytes of traced functions, compared with sums by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from rnnscale.plan._kernels import Kernels, kernels
from rnnscale_kernels import linear_scan

ROWS, TIME, UNITS = 2, 24, 6
STATE, MATRIX = 4 * ROWS * UNITS, 4 * UNITS * UNITS


def array(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, "float32")


X, W, SEQUENCE = array(ROWS, UNITS), array(UNITS, UNITS), array(ROWS, TIME, UNITS)


def of(function: Any, *arguments: Any, iterations: int | None = None) -> Kernels:
    return kernels(jax.make_jaxpr(function)(*arguments).jaxpr, iterations)


def test_elementwise_operations_are_one_kernel():
    # It reads x and writes the result.
    assert of(lambda x: jnp.exp(jnp.sin(x) * x + x[::-1]), X) == Kernels(1, 2 * STATE, 0)


def test_a_product_is_a_kernel_and_what_waits_for_it_another():
    def step(x, w):
        return jnp.tanh(x @ w) + x

    # The product reads x and w and writes p; the second kernel reads p and x and writes the result.
    assert of(step, X, W) == Kernels(2, 5 * STATE + MATRIX, 0)
    # What nothing depends on is not computed.
    assert of(lambda x, w: (x @ w @ w, step(x, w))[1], X, W) == of(step, X, W)
    # A function that is called is part of the one that calls it.
    assert of(jax.jit(step), X, W) == of(step, X, W)


def test_a_reduction_is_fused_with_what_it_reads():
    # One kernel reads x and writes a number for each row; the next reads both and writes y.
    found = of(lambda x: x / jnp.max(jnp.abs(x), axis=-1, keepdims=True), X)
    assert found == Kernels(2, 3 * STATE + 2 * 4 * ROWS, 0)


def loop(w, h, xs):
    def step(h, x):
        h = jnp.tanh(h @ w + x)
        return h, h

    return lax.scan(step, h, xs)


def test_a_loop_over_time_waits_for_its_launches():
    xs = array(TIME, ROWS, UNITS)
    # Once in a loop: the matrix, the first and the last state, the inputs and the outputs.
    moved = MATRIX + 2 * STATE + 2 * TIME * STATE
    assert of(loop, W, X, xs) == Kernels(2 * TIME, moved, 0)


def iterate(x, w):
    return lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: jnp.tanh(x @ w), x)


def test_a_loop_with_unknown_turns_needs_their_number():
    with pytest.raises(ValueError, match="give iterations"):
        of(iterate, X, W)
    # A turn reads x and w, writes p, reads p and writes x.
    moved = 5 * (4 * STATE + MATRIX)
    assert of(iterate, X, W, iterations=5) == Kernels(10, moved, moved)


def test_loops_in_loops():
    def windows(w, h, xs):
        return lax.scan(lambda h, x: (iterate(h, w), linear_scan(x, x)[0]), h, xs)[1]

    found = of(windows, W, X, array(3, *SEQUENCE.shape), iterations=5)
    in_while = 3 * 5 * (4 * STATE + MATRIX)
    # The scan reads its argument, which counts once, and writes all states and the last one.
    assert found == Kernels(3 * 10, in_while + 3 * (2 * TIME + 1) * STATE, in_while)


def test_a_conditional_between_platforms_is_that_of_accelerators():
    def choose(x, w):
        return lax.platform_dependent(x, cpu=lambda x: x @ w @ w, default=lambda x: x + 1)

    assert of(choose, X, W).chain == 1


def test_the_gradient_of_a_loop_is_a_second_loop():
    def loss(w, h, xs):
        return loop(w, h, xs)[1].sum()

    # Two kernels forward. Backward there are three: through tanh, the products of its result, and
    # the sum of the gradients of the matrix.
    chain = of(jax.grad(loss, (0, 1)), W, X, array(TIME, ROWS, UNITS)).chain
    assert 5 * TIME <= chain <= 5 * TIME + 4
