"""Recurrences whose channels do not see one another: the op, and the cells that run on it.

The kernels are interpreted, and compared with the time loop of the cell in float64 on a CPU, which
is other code. What they compile to is in `test_compiled`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import cells, verify
from rnnscale.cells import time_loop
from rnnscale.cells._elementwise import elementwise_run
from rnnscale.sharding import make_mesh
from rnnscale.verify._double import to_double
from rnnscale_kernels import elementwise_scan
from rnnscale_kernels._by_equation import by_equation
from rnnscale_kernels._target import H100
from rnnscale_kernels.linear_scan import Launch, _tma_pipeline
from rnnscale_kernels.linear_scan._mosaic_gpu_plan import Plan
from rnnscale_kernels.testing import compile_for, missing, relative_error

IDIM = 3


@dataclass(frozen=True)
class Call:
    """A cell over sequences."""

    cell: str
    implementation: str
    batch: tuple[int, ...] = (2,)
    time: int = 21
    hdim: int = 5
    dtype: str = "float32"
    form: str | None = None
    reset: bool = False
    lengths: bool = False
    reverse: bool = False

    def arguments(self, key):
        """`(cell, xs, state, options)`."""
        keys = jax.random.split(key, 5)
        options = {} if self.form is None else {"form": self.form}
        cell = getattr(cells, self.cell)(IDIM, self.hdim, key=keys[0], **options)
        # Larger than the initial ones, which hide the derivatives of the nonlinearities.
        arrays, rest = eqx.partition(cell, eqx.is_array)
        cell = eqx.combine(jax.tree.map(lambda x: 1.5 * x, arrays), rest)
        xs = jax.random.normal(keys[1], (*self.batch, self.time, IDIM), self.dtype)
        state = jax.tree.map(
            lambda x: jax.random.normal(keys[2], x.shape), cell.init_state(self.batch)
        )
        given = {
            "reset": jax.random.bernoulli(keys[3], 0.2, xs.shape[:-1]) if self.reset else None,
            "lengths": jax.random.randint(keys[4], self.batch, 0, self.time + 1)
            if self.lengths
            else None,
        }
        return cell, xs, state, {**given, "reverse": self.reverse}


GPU, TPU = "mosaic_gpu_interpreted", "mosaic_tpu_interpreted"
CALLS = [
    Call("IndRNNCell", GPU, hdim=130, reset=True, lengths=True),
    Call("IndRNNCell", TPU, batch=(2, 3), time=17, hdim=7, reverse=True, lengths=True),
    Call("ParaGRUCell", GPU, reverse=True, reset=True, lengths=True),
    Call("ParaLSTMCell", GPU, dtype="bfloat16", lengths=True),
    Call("ParaLSTMCell", TPU, dtype="bfloat16", reset=True, reverse=True),
    Call("LrcSSMCell", GPU, form="symmetric", reset=True),
    Call("UnICORNNCell", GPU, batch=(1,), time=100, hdim=128),
]


def gradients(run, key, cell, xs, state) -> list[np.ndarray]:
    """Values and gradients by all floating arrays, for random cotangents."""
    moving, rest = eqx.partition((cell, xs, state), eqx.is_inexact_array)

    def both(moving, g):
        value, pull = jax.vjp(lambda moving: run(*eqx.combine(moving, rest)), moving)
        return value, pull(jax.tree.map(lambda g, x: g.astype(x.dtype), g, value))

    shapes = jax.eval_shape(run, cell, xs, state)
    leaves, tree = jax.tree.flatten(shapes)
    g = [
        jax.random.normal(jax.random.fold_in(key, i), x.shape, jnp.float32)
        for i, x in enumerate(leaves)
    ]
    results = jax.jit(both)(moving, jax.tree.unflatten(tree, g))
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(results)]


@pytest.fixture(autouse=True)
def short_groups(monkeypatch):
    """Few unrolled steps, which compile in a third of the time."""
    monkeypatch.setattr(_tma_pipeline, "_GROUP", 2)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_cells_on_kernels(call, key):
    *arguments, options = call.arguments(key)

    def on_kernels(cell, xs, state) -> Any:
        run = elementwise_run(cell, xs, state, **options, implementation=call.implementation)
        assert run is not None
        return run()

    got = gradients(on_kernels, key, *arguments)
    with jax.enable_x64(True):
        arguments = to_double(arguments)
        expected = gradients(lambda *x: time_loop(*x, **options), key, *arguments)
    assert relative_error(got, expected) < (1e-5 if call.dtype == "float32" else 3e-2)


def test_which_cells_run_on_kernels(key):
    def on_kernels(subject):
        cell = subject.build(key)
        xs = jnp.zeros((2, 3, cell.idim))
        return elementwise_run(cell, xs, cell.init_state((2,)), None, None) is not None

    independent = [
        subject
        for subject in verify.CELLS
        if jax.eval_shape(subject.build, key).unit_axis == "state"
        and not isinstance(jax.eval_shape(subject.build, key), cells.LinearCell)
    ]
    assert len(independent) >= 5
    for subject in independent:
        assert on_kernels(subject), subject.name
    assert not on_kernels(next(each for each in verify.CELLS if each.name == "ElmanRNNCell"))


# The operation itself, with a step of two planes that is no cell


def step(weights, h, x):
    (u, v), (a, b), (i, j) = weights, h, x
    a = jnp.tanh(u * a + v * b + i)
    return a, b + jax.nn.softplus(j) * (a - b)


def draw(key, batch=(3,), time=9, channels=4):
    """`(weights, inputs, h0, fresh)`."""
    keys = iter(jax.random.split(key, 8))

    def normal(*shape):
        return jax.random.normal(next(keys), shape)

    states, steps = (*batch, channels), (*batch, time, channels)
    weights = normal(channels), normal()
    return weights, (normal(*steps), normal(*steps)), *((normal(*states),) * 2 for _ in range(2))


def plain(weights, inputs, h0, fresh, reset, lengths):
    """The obvious loop."""
    valid = jnp.arange(reset.shape[-1]) < lengths[..., None]

    def choose(condition, x, y):
        return jax.tree.map(lambda x, y: jnp.where(condition[..., None], x, y), x, y)

    def take(h, inputs_t):
        start, valid, x = inputs_t
        h = choose(valid, step(weights, choose(start, fresh, h), x), h)
        return h, h

    by_step = jnp.moveaxis(reset & valid, -1, 0), jnp.moveaxis(valid, -1, 0)
    inputs = jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), inputs)
    last, hs = jax.lax.scan(take, h0, (*by_step, inputs))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2), hs), last


def test_derivatives_of_any_order(key):
    with jax.enable_x64(True):
        weights, inputs, h0, fresh = to_double(draw(key))
        reset = jax.random.bernoulli(key, 0.3, (3, 9))
        lengths = jnp.array([9, 0, 4])

        def by_op(*arguments):
            weights, inputs, h0, fresh = arguments
            options = {"reset": reset, "lengths": lengths, "returned": [1]}
            return elementwise_scan(step, weights, inputs, h0, fresh=fresh, **options)

        def by_plain(*arguments):
            weights, inputs, h0, fresh = arguments
            (_, second), last = plain(weights, inputs, h0, fresh, reset, lengths)
            return (None, second), last

        def derivatives(run, *arguments):
            def loss(*arguments):
                return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(run(*arguments)))

            gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
            return jax.jvp(run, arguments, arguments), jax.jvp(gradient, arguments, arguments)

        arguments = weights, inputs, h0, fresh
        got, expected = (
            jax.tree.leaves(jax.jit(partial(derivatives, run))(*arguments))
            for run in (by_op, by_plain)
        )
        assert relative_error(map(np.asarray, got), map(np.asarray, expected)) < 1e-12


def test_vmap(key):
    """Over rows with shared weights, whose gradients are then those of each row, and over both."""
    weights, inputs, h0, _ = draw(key, batch=(), time=5, channels=3)
    inputs, h0, all_weights = jax.tree.map(lambda x: jnp.stack([x, -x]), (inputs, h0, weights))

    def loss(weights, inputs, h0):
        hs, last = elementwise_scan(step, weights, inputs, h0)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves((hs, last)))

    gradient = jax.grad(loss, argnums=(0, 1, 2))
    for given, axis in ((weights, None), (all_weights, 0)):
        got = jax.vmap(gradient, in_axes=(axis, 0, 0))(given, inputs, h0)
        for i in range(2):
            row = [jax.tree.map(lambda x, i=i: x[i], tree) for tree in (all_weights, inputs, h0)]
            expected = jax.jit(gradient)(given if axis is None else row[0], *row[1:])
            mine = jax.tree.leaves(jax.tree.map(lambda x, i=i: x[i], got))
            assert (
                relative_error(map(np.asarray, mine), map(np.asarray, jax.tree.leaves(expected)))
                < 1e-5
            )


def test_nan_does_not_pass_a_reset_or_the_end_of_a_row(key):
    weights, inputs, h0, _ = draw(key, batch=(2,), time=8, channels=3)
    reset = jnp.zeros((2, 8), bool).at[0, 3].set(True)
    lengths = jnp.array([8, 5])

    def run(weights, inputs, h0):
        options = {"reset": reset, "lengths": lengths, "implementation": GPU}
        return elementwise_scan(step, weights, inputs, h0, **options)

    spoiled = jax.tree.map(lambda x: x.at[0, 1].set(jnp.nan).at[1, 6].set(jnp.nan), inputs)
    (hs, last), pull = jax.vjp(run, weights, spoiled, h0)
    g = jax.tree.map(lambda x: jnp.zeros_like(x).at[0, 3:].set(1).at[1].set(1), hs)
    _, g_inputs, _ = pull((g, jax.tree.map(jnp.ones_like, last)))
    kept = jax.tree.map(lambda x: (x[0, 3:], x[1]), (hs, g_inputs))
    for x in jax.tree.leaves((kept, last)):
        assert jnp.all(jnp.isfinite(x))
    assert all(jnp.all(x[1, 5:] == 0) for x in g_inputs)
    assert not jnp.any(jnp.isfinite(hs[0][0, 1:3]))


@pytest.mark.parametrize("function", [jnp.log1p, jnp.expm1, lambda x: x**-3, lambda x: x**0 * x])
def test_replaced_primitives_are_accurate(function):
    x = np.concatenate([np.geomspace(1e-9, 80, 500), -np.geomspace(1e-9, 0.99, 500)])
    x = x.astype(np.float32)
    with jax.enable_x64(True):
        expected = np.asarray(function(jnp.asarray(x, jnp.float64)))
    got = np.asarray(by_equation(function)(jnp.asarray(x)))
    np.testing.assert_allclose(got, expected, rtol=4e-7)


def test_a_step_that_kernels_cannot_take(key):
    def hyperbolic(weights, h, x):
        return jnp.sinh(h) + x

    arguments = [], jnp.ones((1, 3, 2)), jnp.zeros((1, 2))
    with pytest.raises(NotImplementedError, match="no cosh, sinh"):
        elementwise_scan(hyperbolic, *arguments, implementation=GPU)
    hs, _ = elementwise_scan(hyperbolic, *arguments)
    np.testing.assert_allclose(hs[0, :, 0], [1, 1 + np.sinh(1), 1 + np.sinh(1 + np.sinh(1))], 1e-6)


@pytest.mark.parametrize("implementation", [GPU, TPU])
def test_kernels_name_the_arrays_that_they_can_stream(implementation):
    def total(weights, h, x):
        return tuple(h + sum(x[1:], x[0]) for h in h)

    arguments = [], (jnp.ones((1, 3, 2)),) * 40, (jnp.zeros((1, 2)),) * 3
    with pytest.raises(NotImplementedError, match="at most 64 arrays of float32, .* not 86"):
        elementwise_scan(total, *arguments, implementation=implementation)
    (h, *_), _ = elementwise_scan(total, *arguments)
    np.testing.assert_allclose(h[0, :, 0], [40, 80, 120])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [4, 64])
def test_tiles_of_any_arrays_fit_into_shared_memory(rows, dtype):
    sequence = jax.ShapeDtypeStruct((rows, 300, 520), dtype)
    held = jax.ShapeDtypeStruct((rows, 1, 520), "float32")
    launch = Launch(300, 1, False, H100)
    for reads in range(1, 61):
        for writes in range(1, 65 - reads):
            outputs = [sequence.dtype] * writes
            plan = Plan.of(held, [sequence] * reads, outputs, 9, launch, splits=False)
            # A ring of tiles that are read, with an edge of each array, and two that are written.
            tile = plan.part_rows * 128 * sequence.dtype.itemsize
            taken = plan.stages * reads * (tile + 128) + 2 * writes * tile
            assert taken <= 227 * 1024, (reads, writes)
            assert plan.part_rows >= 2 and plan.stages >= 2


def test_a_step_of_many_states_compiles_for_a_gpu():
    if (reason := missing("h100")) is not None:
        pytest.skip(reason)

    def turn(weights, h, x):
        return tuple(weights * a + b + x for a, b in zip(h, (*h[1:], h[0]), strict=True))

    sequence = jax.ShapeDtypeStruct((8, 1024, 1024), "float32")
    channels = jax.ShapeDtypeStruct((1024,), "float32")
    h0 = (jax.ShapeDtypeStruct((8, 1024), "float32"),) * 6
    run = partial(elementwise_scan, turn, implementation="mosaic_gpu")
    (kernel,) = compile_for(run, channels, sequence, h0, target="h100").kernels
    assert kernel.spills == 0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"inputs": jnp.ones(3)}, ValueError, "time step"),
        ({"inputs": (jnp.ones((1, 3, 2)), jnp.ones((1, 3, 1)))}, ValueError, "one shape and dtype"),
        ({"h0": jnp.zeros((1, 3))}, ValueError, r"here \(1, 2\)"),
        ({"h0": jnp.zeros((1, 2), "bfloat16")}, ValueError, "float32"),
        ({"weights": jnp.ones(3)}, ValueError, "each of the 2 channels"),
        ({"weights": jnp.ones(2, int)}, TypeError, "weights must hold floating-point"),
        ({"fresh": (jnp.zeros((1, 2)),)}, ValueError, "structure of h0"),
        ({"step": lambda weights, h, x: (h, x)}, TypeError, "return a state like"),
        ({"returned": [1]}, ValueError, "indices of the 1 arrays"),
        ({"lengths": jnp.array([4])}, ValueError, "from 0 to the 3 steps"),
    ],
)
def test_bad_input(changed, error, message):
    arguments = {
        "step": lambda weights, h, x: weights * h + x,
        "weights": jnp.ones(2),
        "inputs": jnp.ones((1, 3, 2)),
        "h0": jnp.zeros((1, 2)),
    }
    with pytest.raises(error, match=message):
        elementwise_scan(**(arguments | changed))


def test_on_a_mesh(key):
    """Rows over `data`, units over `tensor`: the numbers of one device."""
    call = Call("UnICORNNCell", "sequential", batch=(4,), hdim=8, reset=True, lengths=True)
    cell, xs, state, options = call.arguments(key)

    def run(cell, xs, state):
        chosen = elementwise_run(cell, xs, state, **options)
        assert chosen is not None
        return chosen()

    expected = gradients(run, key, cell, xs, state)
    with jax.set_mesh(make_mesh(data=2, tensor=4)):
        got = gradients(run, key, cell, xs, state)
    assert relative_error(got, expected) < 1e-6


@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_time_loop_compiles_to_two_kernels(target, key):
    """Value and gradient, for a device that is not here: no loop over time, and every sequence goes
    through memory once in each pass."""
    if (reason := missing(target)) is not None:
        pytest.skip(reason)
    batch, time, hdim = 32, 1024, 1024
    arrays, static = eqx.partition(cells.ParaLSTMCell(64, hdim, key=key), eqx.is_inexact_array)

    def both(arrays, xs, state, g):
        def run(*arguments):
            arrays, xs, state = arguments
            return time_loop(eqx.combine(arrays, static), xs, state)

        value, pull = jax.vjp(run, arrays, xs, state)
        return value, pull((state, g))

    struct = jax.ShapeDtypeStruct
    sequence = struct((batch, time, hdim), jnp.bfloat16)
    program = compile_for(
        both,
        jax.tree.map(lambda x: struct(x.shape, x.dtype), arrays),
        struct((batch, time, 64), jnp.bfloat16),
        (struct((batch, hdim), jnp.float32),) * 2,
        sequence,
        target=target,
    )
    assert " while(" not in program.text
    calls = [x for x in program.calls if "elementwise_scan" in x.source]
    assert [x.target for x in calls] == [f"mosaic_{'tpu' if target == 'v5e' else 'gpu'}"] * 2
    # Three gates and two states; and back, three gates and two states again, a cotangent of the
    # output, and three cotangents of gates.
    least = (5 + 9) * sequence.size * 2
    assert sum(x.bytes_accessed for x in calls) <= 1.03 * least
    if target == "v5e":
        assert all(0 < (x.vmem or 0) <= 16 << 20 for x in calls)
        return
    assert len(program.kernels) == 2
    for kernel in program.kernels:
        assert kernel.spills == 0
        assert kernel.registers <= 128
        # Two programs fit on a multiprocessor.
        assert 2 * (kernel.shared_memory + 1024) <= 233_472
