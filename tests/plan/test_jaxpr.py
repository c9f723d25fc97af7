"""Operation counts and memory of traced functions, compared with XLA's and with sums by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rnnscale.plan._jaxpr import flops, kernel_calls, peak_bytes
from rnnscale_kernels import (
    Planar,
    diagonal_ssm,
    linear_attention,
    linear_scan,
    selective_scan,
)

ROWS, TIME, IDIM, STATES, ODIM = 2, 24, 4, 6, 3


def array(*shape) -> Any:
    return jax.ShapeDtypeStruct(shape, "float32")


def jaxpr_of(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr


def counted_by_xla(function, *arguments):
    analysis: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return analysis["flops"]


def test_a_scan_counts_once_per_turn():
    def repeat(w, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    one = 2 * ROWS * IDIM * IDIM
    assert flops(jaxpr_of(repeat, array(IDIM, IDIM), array(ROWS, IDIM))) == 7 * one
    # The backward pass has two products for each one of the forward pass.
    gradient = jax.grad(lambda w, x: repeat(w, x).sum())
    assert flops(jaxpr_of(gradient, array(IDIM, IDIM), array(ROWS, IDIM))) == 3 * 7 * one


def test_a_conditional_counts_as_its_most_expensive_branch():
    def choose(p, w, x):
        return jax.lax.cond(p, lambda: x @ w @ w, lambda: x @ w)

    jaxpr = jaxpr_of(choose, jax.ShapeDtypeStruct((), bool), array(IDIM, IDIM), array(ROWS, IDIM))
    assert flops(jaxpr) == 2 * 2 * ROWS * IDIM * IDIM


@pytest.mark.parametrize("planes", [1, 2])
def test_products_of_a_state_space_layer_agree_with_xla(planes):
    def arrays(*shape):
        return Planar(array(*shape), array(*shape)) if planes == 2 else array(*shape)

    u, decay = array(ROWS, TIME, IDIM), arrays(STATES)
    b, c = arrays(STATES, IDIM), arrays(ODIM, STATES)

    def products(u, b, c):
        h = jax.tree.map(lambda b: jnp.einsum("nti,si->nts", u, b), b)
        return jax.tree.map(lambda h, c: jnp.einsum("nts,os->nto", h, c), h, c)

    def pull(u, b, c, g):
        return jax.vjp(products, u, b, c)[1](g)

    tokens = ROWS * TIME
    scan = tokens * STATES * (8 if planes == 2 else 2)
    forward = flops(jaxpr_of(lambda *x: diagonal_ssm(*x)[0], u, decay, b, c))
    assert forward - scan == counted_by_xla(products, u, b, c)
    gradient = jax.grad(lambda *x: diagonal_ssm(*x)[0].sum(), (0, 1, 2, 3))
    backward = flops(jaxpr_of(gradient, u, decay, b, c)) - forward
    # XLA also counts the addition of the two planes' gradients.
    added = tokens * IDIM if planes == 2 else 0
    g = jax.eval_shape(products, u, b, c)
    assert backward - 3 * scan == counted_by_xla(pull, u, b, c, g) - added


def test_kernel_calls_in_loops_and_backward_passes():
    a, b = array(ROWS, TIME, STATES), array(ROWS, TIME, STATES)

    def deep(a, b):
        h: Any = jax.lax.scan(lambda b, _: (linear_scan(a, b)[0], None), b, None, length=5)[0]
        return h.sum()

    forward, backward = kernel_calls(jaxpr_of(jax.grad(deep), a, b))
    assert (forward.backward, backward.backward) == (False, True)
    for each in (forward, backward):
        assert (each.operation, each.turns, each.planes) == ("linear_scan", 5, 1)
        assert (each.rows, each.tokens, each.states) == (ROWS, ROWS * TIME, STATES)


def test_calls_of_the_selective_scan():
    """A state of a channel takes three multiply-adds a step, and three times as many backward."""
    u, b, a = array(ROWS, TIME, IDIM), array(ROWS, TIME, STATES), array(IDIM, STATES)

    def loss(*arguments):
        return selective_scan(*arguments)[0].sum()

    forward, backward = kernel_calls(jaxpr_of(jax.grad(loss, range(5)), u, u, a, b, b))
    assert (forward.backward, backward.backward) == (False, True)
    assert (
        forward.flops == 3 * 2 * ROWS * TIME * IDIM * STATES and backward.flops == 3 * forward.flops
    )
    assert forward.states == IDIM * STATES and forward.total == 2 * IDIM * STATES


@pytest.mark.parametrize("erases", [False, True])
def test_products_of_linear_attention_agree_with_xla(erases):
    """XLA counts one turn of a loop, so there is one chunk. It counts elementwise operations too,
    and the products of the triangular solve in another way."""
    rows, time, heads, key, value = 2, 64, 3, 48, 40
    keys, values = array(rows, time, heads, key), array(rows, time, heads, value)

    def run(query, key, value, h0, erase=None):
        return linear_attention(query, key, value, None, erase, h0)

    h0 = array(rows, heads, key, value)
    arguments = (keys, keys, values, h0, *((keys,) if erases else ()))
    (forward,) = kernel_calls(jaxpr_of(run, *arguments))
    solve = rows * heads * time * time * value if erases else 0
    counted = counted_by_xla(run, *arguments)
    assert forward.flops - solve <= counted <= 1.25 * forward.flops

    def total(*arguments):
        return sum(x.sum() for x in run(*arguments))

    calls = kernel_calls(jaxpr_of(jax.grad(total), *arguments))
    assert [each.backward for each in calls] == [False, True]
    # Each device sends its states, and, to erase from others, a matrix for each head.
    states = heads * key * value
    decays = heads * key * key if erases else 0
    assert [each.total for each in calls] == [states + decays, states]
    assert (forward.rows, forward.tokens) == (rows, rows * time)


def test_peak_is_the_most_that_is_alive_at_one_time():
    size = 64 * 64 * 4

    def chain(x, w):
        y = x @ w  # one array
        z = y @ w  # two: y is last used here
        return z @ w  # two: z and the result

    assert peak_bytes(jaxpr_of(chain, array(64, 64), array(64, 64))) == 2 * size

    def branch(x, w):
        y = x @ w
        z = y @ w
        return y @ z  # three: y, z and the result

    assert peak_bytes(jaxpr_of(branch, array(64, 64), array(64, 64))) == 3 * size


def test_elementwise_chains_are_fused():
    size = 64 * 64 * 4

    def chain(x, w):
        return jnp.sin(jnp.cos(jnp.exp(x @ w))) @ w

    # The first product, and the end of the chain.
    assert peak_bytes(jaxpr_of(chain, array(64, 64), array(64, 64))) == 2 * size


def test_a_loop_keeps_its_stacked_results_and_one_turn():
    size = 64 * 64 * 4

    def repeat(x, w):
        def turn(x, _):
            y = (x @ w) @ w
            return y, y

        return jax.lax.scan(turn, x, None, length=10)

    # Ten results, the carry, and the two products of a turn.
    assert peak_bytes(jaxpr_of(repeat, array(64, 64), array(64, 64))) == (10 + 1 + 2) * size
