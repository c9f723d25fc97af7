"""The time loop compared with a plain `lax.scan` of the same cell, differentiated by JAX.

On a mesh also what the compiled program has in its loops, and what a cell may not do in the loop.
"""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rnnscale import sharding, verify
from rnnscale.cells import (
    Cell,
    ClockWorkRNNCell,
    ElmanRNNCell,
    GatedRecurrentUnitCell,
    IndRNNCell,
    LinearCell,
    LongShortTermMemoryCell,
    ParaGRUCell,
    UnitaryEvolutionRNNCell,
    affine,
    compute_weights,
    identity,
    linear,
    time_loop,
)
from rnnscale.verify._double import to_double
from rnnscale_kernels.testing import Collective, Program, compile_for


def plain(cell, xs, state, reset=None, lengths=None, reverse=False):
    """The obvious way: a loop over complete steps of the cell."""
    batch, time = xs.shape[:-2], xs.shape[-2]
    steps = jnp.arange(time)
    reset = jnp.zeros((*batch, time), bool) if reset is None else reset
    lengths = jnp.full(batch, time) if lengths is None else lengths
    valid = steps < lengths[..., None]
    start = reset & valid
    if reverse:
        start = jnp.roll(start, -1, axis=-1).at[..., -1].set(False)
    fresh = cell.init_state(batch, xs.dtype)
    weights = compute_weights(cell, xs.dtype)

    def choose(condition, x, y):
        return jax.tree.map(
            lambda x, y: jnp.where(
                condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y
            ),
            x,
            y,
        )

    def step(state, inputs):
        x, start, valid = inputs
        before = choose(start, fresh, state)
        drive = cell.drive(weights, jnp.where(valid[..., None], x, 0))
        after = cell.advance(weights, drive, before, affine)
        y = cell.output(after).astype(xs.dtype)
        return choose(valid, after, before), choose(valid, y, jnp.zeros_like(y))

    inputs = (jnp.moveaxis(xs, -2, 0), jnp.moveaxis(start, -1, 0), jnp.moveaxis(valid, -1, 0))
    state, ys = jax.lax.scan(step, state, inputs, reverse=reverse)
    return state, jnp.moveaxis(ys, 0, -2)


def outcome(loop, cell, xs, state, weights, **options):
    """Value and gradient by all floating arrays."""
    moving, still = eqx.partition((cell, xs, state), eqx.is_inexact_array)

    @jax.jit
    def run(moving, weights):
        def loss(moving):
            state, ys = loop(*eqx.combine(moving, still), **options)
            floats = eqx.filter(state, eqx.is_inexact_array)
            ends = sum(jnp.sum(jnp.cos(x + 1)) for x in jax.tree.leaves(floats))
            return jnp.sum(weights * jnp.sin(ys.astype(weights.dtype))) + ends, (state, ys)

        return jax.grad(loss, has_aux=True)(moving)

    return run(moving, weights)


CELLS = {
    "elman": lambda key: ElmanRNNCell(3, 5, key=key),
    "lstm": lambda key: LongShortTermMemoryCell(3, 5, key=key),
    "gru": lambda key: GatedRecurrentUnitCell(3, 5, key=key),
    "clockwork": lambda key: ClockWorkRNNCell(3, 6, periods=(1, 2, 5), key=key),
    "unitary": lambda key: UnitaryEvolutionRNNCell(3, 4, key=key),
}
over_cells = pytest.mark.parametrize("build", CELLS.values(), ids=CELLS)


def sample(build, axes, getkey, dtype=jnp.float32):
    cell = build(getkey())
    xs = jax.random.normal(getkey(), (*axes, cell.idim)).astype(dtype)
    state = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(getkey(), x.shape) if eqx.is_inexact_array(x) else x,
        cell.init_state(axes[:-1], dtype),
    )
    return cell, xs, state, jax.random.normal(getkey(), (*axes, cell.odim))


@over_cells
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_resets_and_lengths(build, reverse, getkey):
    with jax.enable_x64(True):
        arguments = sample(lambda key: to_double(build(key)), (4, 27), getkey, jnp.float64)
        options = {
            "reset": jax.random.bernoulli(getkey(), 0.2, (4, 27)),
            "lengths": jnp.array([27, 0, 5, 13]),
            "reverse": reverse,
        }
        expected = outcome(plain, *arguments, **options)
        for remat in (False, True):
            got = outcome(time_loop, *arguments, **options, remat=remat)
            assert verify.relative_error(got, expected) < 1e-13, f"remat={remat}"


@pytest.mark.parametrize("axes", [(1,), (8,), (2, 19), (3, 2, 5), (2, 300), (0, 4)], ids=str)
def test_shapes(axes, getkey):
    arguments = sample(CELLS["lstm"], axes, getkey)
    expected = outcome(plain, *arguments)
    for remat in (False, True):
        got = outcome(time_loop, *arguments, remat=remat)
        assert verify.relative_error(got, expected) < 5e-6, f"remat={remat}"


def test_no_time(getkey):
    cell, xs, state, _ = sample(CELLS["lstm"], (2, 0), getkey)
    end, ys = time_loop(cell, xs, state)
    assert ys.shape == (2, 0, 5)
    assert verify.relative_error(end, state) == 0


def test_empty_batch(getkey):
    cell, xs, _, _ = sample(CELLS["elman"], (0, 9), getkey)
    assert time_loop(cell, xs)[1].shape == (0, 9, 5)
    gradient = eqx.filter_grad(lambda cell: jnp.sum(time_loop(cell, xs)[1]))(cell)
    assert not any(jnp.any(x) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "build",
    [lambda key: IndRNNCell(3, 5, input_std=1.0, key=key), CELLS["elman"]],
    ids=["indrnn", "elman"],
)
def test_gradient_inside_shard_map(build, getkey):
    cell, xs, _, _ = sample(build, (4, 5), getkey)
    mesh = sharding.make_mesh(data=4, devices=jax.devices()[:4])

    def gradient(cell, xs):
        return eqx.filter_grad(lambda cell: jnp.sum(time_loop(cell, xs)[1] ** 2))(cell)

    arrays, static = eqx.partition(cell, eqx.is_array)
    mapped = jax.shard_map(
        lambda arrays, xs: eqx.filter(gradient(eqx.combine(arrays, static), xs), eqx.is_array),
        mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec(),
    )  # fmt: skip
    got, expected = jax.jit(mapped)(arrays, xs), gradient(cell, xs)
    assert verify.relative_error(got, eqx.filter(expected, eqx.is_array)) < 1e-5


def test_vmap_and_checkpoint(getkey):
    cell, xs, state, weights = sample(CELLS["gru"], (3, 11), getkey)
    expected = outcome(time_loop, cell, xs, state, weights)

    def mapped(cell, xs, state):
        return eqx.filter_vmap(jax.checkpoint(time_loop), in_axes=(None, 0, 0))(cell, xs, state)

    assert verify.relative_error(outcome(mapped, cell, xs, state, weights), expected) < 1e-6


@pytest.mark.parametrize("build", [CELLS["elman"], CELLS["lstm"]], ids=["elman", "lstm"])
def test_bfloat16_gradient_is_near_that_of_the_plain_loop(build, getkey):
    arguments = sample(build, (4, 27), getkey, jnp.bfloat16)
    got, expected = (outcome(loop, *arguments) for loop in (time_loop, plain))
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, expected)
    # The loops round at different places; an accumulator in bfloat16 would be off by far more.
    assert verify.relative_error(got, expected) < 0.03


def test_memory_grows_with_the_square_root_of_the_length(getkey):
    cell = LongShortTermMemoryCell(4, 32, key=getkey())

    def temporaries(time, remat):
        def loss(cell, xs):
            state, _ = time_loop(cell, xs, remat=remat)
            return jnp.sum(state[0])

        xs = jax.ShapeDtypeStruct((8, time, 4), jnp.float32)
        memory = jax.jit(jax.grad(loss)).lower(cell, xs).compile().memory_analysis()
        assert memory is not None
        # Without the part that always grows with the length: the input, with time first and padded.
        return memory.temp_size_in_bytes - 2 * 8 * time * 4 * 4

    short, long = (temporaries(time, True) for time in (1024, 16384))
    assert long < 4.6 * short
    assert long < temporaries(16384, False) / 15


# Over a mesh


def test_a_plain_loop_has_collectives_in_it(getkey):
    """`in_loops` finds collectives if there are some."""
    cell, xs, state, _ = sample(CELLS["elman"], (8, 9), getkey)
    assert in_loops(run_on_mesh(plain, cell, xs, state, {"data": 8})[1])


def in_loops(program: Program) -> list[Collective]:
    return [each for each in program.collectives if each.loops]


def run_on_mesh(loop, cell, xs, state, sizes) -> tuple[Any, Program]:
    """Value and gradient over a mesh, and the compiled program."""

    def loss(moving, still, xs, state):
        state, ys = loop(eqx.combine(moving, still), xs, state)
        floats = eqx.filter(state, eqx.is_inexact_array)
        ends = sum(jnp.sum(x**2) for x in jax.tree.leaves(floats))
        return jnp.sum(jnp.sin(ys + jnp.arange(ys.size).reshape(ys.shape))) + ends

    mesh = sharding.make_mesh(**sizes)
    cell = jax.device_put(cell, sharding.shardings(cell, mesh))
    xs = jax.device_put(xs, sharding.batch_sharding(mesh, xs.ndim))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    arguments = *eqx.partition(cell, eqx.is_inexact_array), xs, state
    program = compile_for(jax.value_and_grad(loss), *arguments, target=mesh)
    return program.compiled(*arguments), program


def sized(subject: verify.CellSubject, key) -> Cell:
    """The cell of a subject with sizes that divide the axes of a mesh."""
    kind = type(jax.eval_shape(subject.build, key))
    variant = {"method": "rk2"} if subject.name.endswith("rk2") else {}
    variant |= {"heads": 2} if subject.name.startswith("Para") else {}
    if kind.__name__ == "RGLRUCell":
        return kind(8, key=key)
    return kind(8, 8, key=key, **variant)


@pytest.mark.slow
@pytest.mark.parametrize("subject", verify.CELLS, ids=lambda subject: subject.name)
def test_every_cell_trains_on_a_mesh_without_a_collective_in_the_loop(subject, getkey):
    check_on_meshes(sized(subject, getkey()), [{"data": 2, "fsdp": 2, "tensor": 2}], getkey())


def test_other_meshes(getkey):
    meshes = [{"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}]
    check_on_meshes(LongShortTermMemoryCell(8, 8, key=getkey()), meshes, getkey())


def check_on_meshes(cell, meshes, key):
    with jax.enable_x64(True):
        cell = to_double(cell)
        # Two blocks of eight steps, and a rest of one.
        xs = jax.random.normal(key, (8, 17, cell.idim))
        state = cell.init_state((8,), jnp.float64)
        expected, _ = run_on_mesh(time_loop, cell, xs, state, {"devices": jax.devices()[:1]})
        for sizes in meshes:
            got, program = run_on_mesh(time_loop, cell, xs, state, sizes)
            assert verify.relative_error(got, expected) < 1e-12, sizes
            # A linear cell may do without a loop.
            assert isinstance(cell, LinearCell) or while_lines(program)
            assert not in_loops(program), sizes


@pytest.mark.slow
def test_half_a_head_lies_on_a_device(getkey):
    check_on_meshes(ParaGRUCell(8, 8, heads=2, key=getkey()), [{"data": 2, "tensor": 4}], getkey())


def test_units_that_do_not_see_one_another_lie_on_tensor(getkey):
    cell = IndRNNCell(4, 8, key=getkey())
    xs, state = jax.random.normal(getkey(), (2, 17, 4)), cell.init_state((2,))
    _, program = run_on_mesh(time_loop, cell, xs, state, {"tensor": 8})
    # Each device has one of the eight units, and none has the state of all.
    assert not in_loops(program)
    states = set(re.findall(r"f32\[[\d,]*\b2,(\d)\]", "\n".join(while_lines(program))))
    assert states == {"1", "4"}  # a state and an input


def while_lines(program: Program) -> list[str]:
    return [line for line in program.text.splitlines() if " while(" in line]


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"xs": jnp.zeros((2, 7, 4))}, ValueError, "3 features"),
        ({"xs": jnp.zeros((2, 7, 3), int)}, TypeError, "xs must be an array Float"),
        ({"state": jnp.zeros((2, 5))}, ValueError, r"init_state\(\(2,\)\)"),
        ({"state": (jnp.zeros((2, 5)), jnp.zeros((2, 4)))}, ValueError, "init_state"),
        ({"lengths": jnp.array([8, 1])}, ValueError, "from 0 to the 7 steps"),
        ({"lengths": jnp.array([-1, 1])}, ValueError, "from 0 to the 7 steps"),
        ({"lengths": jnp.array([1.0, 2.0])}, TypeError, "lengths must be an array Int"),
        ({"lengths": jnp.array([1])}, ValueError, "shape"),
        ({"reset": jnp.zeros((2, 7))}, TypeError, "reset must be an array Bool"),
        ({"reset": jnp.zeros((7,), bool)}, ValueError, "batch time"),
    ],
)
def test_bad_input(change, error, message, getkey):
    cell = LongShortTermMemoryCell(3, 5, key=getkey())
    arguments = {"xs": jnp.zeros((2, 7, 3)), **change}
    with pytest.raises(error, match=message):
        time_loop(cell, **arguments)


class Own(Cell):
    """A cell as users may write them: `how` says what it does in another way than our cells."""

    recurrent: Float[Array, "hdim hdim"]
    input: Float[Array, "hdim idim"]
    pair: Float[Array, "2 hdim"]
    how: str = eqx.field(static=True)
    idim: int = eqx.field(static=True)
    hdim: int = eqx.field(static=True)

    def weights(self):
        if self.how == "number in weights":
            return {"recurrent": self.recurrent, "input": self.input, "pair": 0.5}
        return {"recurrent": self.recurrent, "input": self.input, "pair": self.pair}

    def drive(self, weights, x):
        drive = linear(weights["input"], x)
        return (drive, jnp.ones(5)) if self.how == "constant in drive" else drive

    def advance(self, weights, drive, state, affine):
        if self.how == "constant in drive":
            drive, bias = drive
            drive = drive + bias
        if self.how == "array of self":
            return jnp.tanh(affine(drive, self.recurrent, state))
        if self.how == "row of a matrix":
            return jnp.tanh(affine(drive, weights["recurrent"], state) + weights["pair"][0])
        if self.how == "no affine":
            return jnp.tanh(drive + linear(weights["recurrent"], state))
        if self.how == "broadcast":
            return jnp.tanh(affine(0.0, weights["recurrent"], state) + drive)
        if self.how == "state in plus":
            plus = affine(drive + jnp.sin(state), weights["recurrent"], state)
            return jnp.tanh(affine(plus, identity, jnp.cos(plus)))
        return jnp.tanh(affine(drive, weights["recurrent"], state))


def own(how, getkey):
    shapes = (5, 5), (5, 3), (2, 5)
    recurrent, weight, pair = (0.5 * jax.random.normal(getkey(), shape) for shape in shapes)
    return Own(recurrent=recurrent, input=weight, pair=pair, how=how, idim=3, hdim=5)


@pytest.mark.parametrize("how", ["", "no affine", "broadcast", "state in plus"])
def test_own_cells(how, getkey):
    arguments = sample(lambda key: own(how, getkey), (4, 19), getkey)
    got = outcome(time_loop, *arguments)
    # Some of them amplify rounding from step to step.
    assert verify.relative_error(got, outcome(plain, *arguments)) < 1e-5


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("array of self", TypeError, "not those of `self`"),
        ("row of a matrix", TypeError, "never with @, an index"),
        ("constant in drive", ValueError, "leading axes of its input"),
        ("number in weights", TypeError, "holds 0.5, which is not an array"),
    ],
)
def test_cells_that_the_loop_cannot_run_are_refused(how, error, message, getkey):
    with pytest.raises(error, match=message):
        time_loop(own(how, getkey), jnp.ones((2, 5, 3)))


def test_a_state_of_another_dtype_is_cast_and_one_of_another_kind_is_not(getkey):
    cell, xs, state, _ = sample(CELLS["lstm"], (2, 9), getkey)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    as_numpy: Any = np.asarray(xs)
    got, _ = time_loop(cell, as_numpy, low)
    assert {x.dtype.name for x in jax.tree.leaves(got)} == {"float32"}
    with pytest.raises(TypeError, match="float32; got int32"):
        time_loop(cell, xs, jax.tree.map(lambda x: x.astype(int), state))


def test_a_state_of_another_batch_is_refused(getkey):
    cell = LongShortTermMemoryCell(3, 5, key=getkey())
    with pytest.raises(ValueError, match="init_state"):
        cell(jnp.zeros((2, 3)), cell.init_state())


def test_a_call_is_a_step_of_the_loop(getkey):
    cell, xs, state, _ = sample(CELLS["unitary"], (4, 1), getkey)
    end, y = cell(xs[:, 0], state)
    expected, ys = time_loop(cell, xs, state)
    assert verify.relative_error((end, y), (expected, ys[:, 0])) < 1e-6
    np.testing.assert_array_equal(cell(xs[1, 0], jax.tree.map(lambda x: x[1], state))[1], y[1])
