"""`persistent_rnn`: its implementations against a loop in NumPy's float64, and its transformations.

The steps are those of an LSTM, of a GRU in cuDNN's form, and of an Elman network, written here.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rnnscale_kernels import persistent_rnn
from rnnscale_kernels.persistent_rnn import _plan
from rnnscale_kernels.persistent_rnn._plan import Plan
from rnnscale_kernels.persistent_rnn._pointwise import Pointwise
from rnnscale_kernels.persistent_rnn._spec import PersistentSpec


def lstm(before, gates, extras):
    _, c = before
    i, f, g, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(before, gates, extras):
    (h,) = before
    r, z, product = jnp.split(gates, 3)
    n = jnp.tanh(extras + jax.nn.sigmoid(r) * product)
    z = jax.nn.sigmoid(z)
    return ((1 - z) * n + z * h,)


def elman(before, gates, extras):
    return (jnp.tanh(gates),)


def rooted(before, gates, extras):
    """Not finite at zero, and neither is its derivative."""
    return (gates / jnp.sqrt(extras**2),)


SIZES = {lstm: (2, 4, 0), gru: (1, 3, 1), elman: (1, 1, 0), rooted: (1, 1, 1)}
"""For each step its states, gates and extras."""


@dataclass(frozen=True)
class Arguments:
    """A call and the cotangents of its results."""

    step: Any
    batch: int
    time: int
    units: int
    reset: bool = False
    lengths: bool = False
    reverse: bool = False
    dtype: str = "bfloat16"

    def __str__(self) -> str:
        flags = [name for name in ("reset", "lengths", "reverse") if getattr(self, name)]
        shape = f"{self.batch}x{self.time}x{self.units}"
        return "-".join([self.step.__name__, shape, self.dtype, *flags])

    def arrays(self) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """The floating arguments, the others, and the cotangents."""
        random = np.random.default_rng(0)
        states, gates, extras = SIZES[self.step]
        steps = self.batch, self.time

        def narrow(*shape, scale=1.0):
            return np.asarray(jnp.asarray(random.normal(0, scale, shape), self.dtype))

        def wide():
            return random.normal(0, 0.5, (self.batch, self.units)).astype("float32")

        floats = {
            "matrix": narrow(gates, self.units, self.units, scale=self.units**-0.5),
            "drive": narrow(*steps, gates, self.units),
            "extras": narrow(*steps, extras, self.units),
            "h0": tuple(wide() for _ in range(states)),
            "fresh": tuple(wide() for _ in range(states)),
        }
        others: dict[str, Any] = {"reverse": self.reverse}
        if self.reset:
            others["reset"] = random.random(steps) < 0.4
        if self.lengths:
            others["lengths"] = np.arange(self.batch) % (self.time + 1)
        cotangents = narrow(*steps, self.units), tuple(wide() for _ in range(states))
        return floats, others, cotangents


def run(step, floats, others, cotangents, implementation: str | None = None):
    """The results, and the cotangents of the floating arguments."""

    def call(floats):
        positional = [floats[name] for name in ("matrix", "drive", "h0")]
        named = {name: floats[name] for name in ("extras", "fresh")}
        return persistent_rnn(step, *positional, **named, **others, implementation=implementation)

    results, pull = jax.vjp(call, floats)
    g = jax.tree.map(lambda g, x: jnp.asarray(g, x.dtype), cotangents, results)
    return results, pull(g)[0]


def reference(arguments: Arguments):
    """A Python loop over the steps in float64, differentiated by JAX."""
    floats, others, cotangents = arguments.arrays()
    steps = range(arguments.time)[:: -1 if arguments.reverse else 1]
    reset = others.get("reset", np.zeros((arguments.batch, arguments.time), bool))
    lengths = others.get("lengths", np.full(arguments.batch, arguments.time))
    # A step is written for one unit: here it runs for each unit of each row.
    advance = jax.vmap(jax.vmap(arguments.step, (-1, -1, -1), -1))

    def call(floats):
        states, hs = floats["h0"], [floats["h0"][0]] * arguments.time
        for t in steps:
            # Against the direction of time, the first step of a segment is the last that runs.
            first = t + 1 if arguments.reverse else t
            if first < arguments.time:
                starts = (reset[:, first] & (first < lengths))[:, None]
                states = [jnp.where(starts, *x) for x in zip(floats["fresh"], states, strict=True)]
            products = jnp.einsum("ghk,bk->bgh", floats["matrix"], states[0])
            gates = floats["drive"][:, t] + products
            after = advance(tuple(x[:, None] for x in states), gates, floats["extras"][:, t])
            valid = (t < lengths)[:, None]
            states = [jnp.where(valid, x[:, 0], y) for x, y in zip(after, states, strict=True)]
            hs[t] = states[0]
        return jnp.stack(hs, 1), tuple(states)

    with jax.enable_x64(True):
        widen = partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
        results, pull = jax.vjp(call, widen(floats))
        gradients = pull(widen(cotangents))[0]
    return jax.tree.map(np.asarray, (results, gradients))


def check(got, expected, bound: float) -> None:
    """All arrays agree, relative to the largest number."""
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape
        if y.size:
            scale = np.max(np.abs(y)) or 1
            np.testing.assert_allclose(np.asarray(x, "float64") / scale, y / scale, atol=bound)


# With how many programs a cluster has, and slots for what they exchange; `None` for those planned.
ON_KERNELS = [
    (Arguments(gru, batch=17, time=2, units=40), None, None),
    (Arguments(lstm, 3, 3, units=100, reset=True, lengths=True, reverse=True), 2, None),
    (Arguments(elman, 2, 3, units=130, reset=True), 3, 1),
    (Arguments(elman, 1, 1, units=70, dtype="float16"), None, None),
    (Arguments(rooted, 2, 2, units=70), 2, None),
    (Arguments(rooted, 2, 2, units=70, lengths=True), None, None),
]


@pytest.mark.parametrize(("arguments", "programs", "slots"), ON_KERNELS, ids=str)
def test_the_kernels_agree_with_the_reference(arguments, programs, slots, monkeypatch):
    if programs is not None:
        monkeypatch.setattr(_plan, "_clusters", lambda blocks: [programs])
    if slots is not None:
        plan_of: Any = Plan.of
        monkeypatch.setattr(
            Plan, "of", lambda *x: plan_of(*x)._replace(gather_slots=slots, scatter_slots=slots)
        )
    floats, others, cotangents = arguments.arrays()
    got = run(arguments.step, floats, others, cotangents, "mosaic_gpu_interpreted")
    check(got, reference(arguments), 1e-2)


@pytest.mark.parametrize(
    ("cell", "gates", "extras", "states", "fitting", "programs"),
    [("lstm", 4, 0, 2, 384, 6), ("gru", 3, 1, 1, 448, 7), ("elman", 1, 0, 1, 640, 5)],
)
def test_the_largest_networks_that_fit(cell, gates, extras, states, fitting, programs):
    def plan(units):
        return Plan.of(
            PersistentSpec(
                batch=64, time=1000, hdim=units, states=states, gates=gates, extras=extras,
                dtype="bfloat16", state_dtype="float32", start=True, valid=True, reverse=False,
                unsupported_step=None,
            )
        )  # fmt: skip

    largest = plan(fitting)
    assert largest is not None and largest.cluster == programs and largest.slices == 4
    assert largest.cluster * largest.units == fitting
    assert plan(fitting + 1) is None


REFUSED = [
    (Arguments(elman, 1, 2, 8, dtype="float32"), "take bfloat16 or float16, the input is float32"),
    (Arguments(elman, 1, 2, 700), "its matrix of 957 KB does not fit in a cluster of 226 KB each"),
    (
        Arguments(lambda before, gates, extras: (jnp.cumsum(gates),), 1, 2, 8),
        "its step uses cumsum",
    ),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED, ids=[x[1] for x in REFUSED])
def test_what_kernels_cannot_take_is_refused(arguments, reason):
    SIZES.setdefault(arguments.step, (1, 1, 0))
    with pytest.raises(NotImplementedError, match=reason):
        run(arguments.step, *arguments.arrays(), implementation="mosaic_gpu_interpreted")


def test_what_stands_beyond_the_lengths_has_no_effect():
    arguments = Arguments(gru, 3, 4, 5, lengths=True, dtype="float32")
    floats, others, cotangents = arguments.arrays()
    expected = run(gru, floats, others, cotangents)
    beyond = np.arange(4) >= others["lengths"][:, None]
    spoilt = {
        name: np.where(beyond[..., None, None], np.nan, floats[name]).astype("float32")
        for name in ("drive", "extras")
    }
    check(run(gru, floats | spoilt, others, cotangents), expected, 0)


def test_batch_axes_and_mapped_axes_are_alike():
    arguments = Arguments(lstm, 6, 3, 5, reset=True, dtype="float32")
    floats, others, cotangents = arguments.arrays()
    expected = run(lstm, floats, others, cotangents)

    def split(tree):
        return jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), tree)

    rows = {name: split(floats[name]) for name in floats if name != "matrix"}
    reset, g = split(others["reset"]), split(cotangents)
    batched = run(lstm, rows | {"matrix": floats["matrix"]}, {"reset": reset}, g)

    def one(rows, reset, g):
        return run(lstm, rows | {"matrix": floats["matrix"]}, {"reset": reset}, g)

    mapped = jax.vmap(one)(rows, reset, g)
    # Each element of the mapped axis has its own gradient of the matrix.
    g_matrices = batched[1].pop("matrix"), jnp.sum(mapped[1].pop("matrix"), 0)
    for (results, gradients), g_matrix in zip((batched, mapped), g_matrices, strict=True):
        flat = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), (results, gradients))
        check((flat[0], flat[1] | {"matrix": g_matrix}), expected, 1e-6)


def test_derivatives_of_higher_order():
    arguments = Arguments(gru, 1, 2, 2, reset=True, dtype="float32")
    floats, others, _ = arguments.arrays()

    def call(matrix):
        hs, _ = persistent_rnn(
            gru, matrix, floats["drive"], floats["h0"], extras=floats["extras"], **others
        )
        return jnp.sum(hs**2)

    check_grads(call, (floats["matrix"],), 2, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_loop_agrees_with_the_reference(reverse):
    arguments = Arguments(gru, 3, 4, 5, True, True, reverse, dtype="float32")
    got = run(arguments.step, *arguments.arrays(), "sequential")
    check(got, reference(arguments), 1e-5)


@pytest.mark.parametrize("function", [jax.nn.relu, jax.nn.silu, jax.nn.softplus])
def test_functions_with_a_derivative_of_their_own(function):
    def step(before, gates, extras):
        return (function(gates) * before[0],)

    pointwise = Pointwise(step, 1, 1, 0)
    assert pointwise.unsupported() is None
    h, gate, g = (jnp.array(x) for x in ([2.0, -1.0], [0.7, -0.4], [1.0, 3.0]))
    (after,), pull = jax.vjp(lambda h, gate: step((h,), gate, None), h, gate)
    np.testing.assert_allclose(pointwise.advance((h,), (gate,), ())[0], after, rtol=1e-6)
    (g_h,), (g_gate,), () = pointwise.pull_back((h,), (gate,), (), (g,))
    np.testing.assert_allclose([g_h, g_gate], pull((g,)), rtol=1e-6)
