"""The sweep of Mosaic TPU: how its arguments are packed, which blocks a program sees, the call.

States are packed as the registers in which programs keep them, sequences stay as they are.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .._algebra import cast
from ._kernels import Launch
from ._mosaic_tpu_kernel import Given, kernel
from ._mosaic_tpu_plan import LANES, STREAMS, WINDOW, Plan
from ._steps import carries


def sweep(
    step, a, inputs, entering, cut, launch: Launch,
    *, name, linear, outputs=(), before=None, sums=None,
):  # fmt: skip
    """See `SweepKernels.sweep`."""
    x, x0 = (None, None) if before is None else before
    rows, steps, channels = inputs[0].shape
    results = jax.tree.map(
        lambda dtype: jax.ShapeDtypeStruct((rows, steps, channels), dtype), list(outputs)
    )
    plan = Plan.of(a, [*inputs, x, results], launch)
    if not plan.varying:
        a = jax.tree.map(lambda x: x[jnp.arange(rows) // launch.inner % plan.decays], a)
        a = _packed(cast(a, jnp.float32), plan)
    state = rows, -(-steps // launch.chunk), channels
    entering = carries(
        (entering, sums), lambda value: jnp.full(state, value, jnp.float32), lambda x: x
    )
    given = Given(
        a=a,
        inputs=inputs,
        cut=None if cut is None else _cut_words(cut, plan),
        x=x,
        x_beyond=x,
        x0=_packed(jax.tree.map(lambda x: x[:, None], x0), plan),
        entering=_packed(entering, plan),
    )
    # Inside shard_map, Pallas wants to know over which mesh axes the results vary: as the inputs.
    varies = jax.typeof(jax.tree.leaves(inputs)[0]).manual_axis_type
    results, leaving = pl.pallas_call(
        partial(kernel, plan, step),
        out_shape=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varies),
            (results, given.entering),
        ),
        grid=plan.grid,
        in_specs=(_specs(given, plan),),
        out_specs=(_sequences(results, plan), _registers(given.entering)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=pltpu.InterpretParams() if launch.target.interpret else False,
        name=name,
    )(given)
    return results, *_unpacked(leaving, plan)


# The index maps below take the indices of the grid: group of rows, block of channels, chunk, tile.


def _specs(given: Given, plan: Plan) -> Given:
    """The block of every argument that a program sees while it takes one tile."""
    decay_rows = 1 if plan.shares_decay else plan.group
    decay = jax.tree.map(
        lambda _: pl.BlockSpec(
            (decay_rows, plan.tile, plan.width),
            lambda i, j, c, n: (plan.decay_block(i), plan.tile_or_last(c, n), j),
        ),
        given.a,
    )
    cut = pl.BlockSpec(
        (None, None, 1, plan.tile),
        lambda i, j, c, n: (i, plan.tile_or_last(c, n), 0, 0),
        memory_space=pltpu.SMEM,
    )
    beyond = pl.BlockSpec(
        (plan.group, WINDOW, plan.width), lambda i, j, c, n: (i, plan.window_beyond(c, n), j)
    )
    return Given(
        a=decay if plan.varying else _registers(given.a, by_chunk=False),
        inputs=_sequences(given.inputs, plan),
        cut=None if given.cut is None else cut,
        x=_sequences(given.x, plan),
        x_beyond=jax.tree.map(lambda _: beyond, given.x_beyond),
        x0=_registers(given.x0, by_chunk=False),
        entering=_registers(given.entering),
    )


def _sequences(tree, plan: Plan):
    """Specs of sequences "B L D": one tile of the rows and channels of a program."""
    block = plan.group, plan.tile, plan.width
    spec = pl.BlockSpec(block, lambda i, j, c, n: (i, plan.tile_or_last(c, n), j))
    return jax.tree.map(lambda _: spec, tree)


def _registers(tree, *, by_chunk: bool = True):
    """Specs of packed states: one register, of this chunk or of the only one."""
    spec = pl.BlockSpec(
        (None, None, None, STREAMS, LANES),
        lambda i, j, c, n: (c if by_chunk else 0, i, j, 0, 0),
    )
    return jax.tree.map(lambda _: spec, tree)


def _packed(tree, plan: Plan):
    """States "B S D" as the registers of the programs, "S B/group D/width 8 128"."""
    group, parts = plan.group, STREAMS // plan.group

    def pack(x):
        rows, chunks, channels = x.shape
        x = jnp.pad(x, [(0, -rows % group), (0, 0), (0, -channels % (parts * LANES))])
        x = x.reshape(-(-rows // group), group, chunks, -1, parts, LANES)
        return x.transpose(2, 0, 3, 4, 1, 5).reshape(chunks, x.shape[0], -1, STREAMS, LANES)

    return jax.tree.map(pack, tree)


def _unpacked(tree, plan: Plan):
    """The inverse of `_packed`."""
    group, parts = plan.group, STREAMS // plan.group

    def unpack(x):
        chunks, blocks = x.shape[:2]
        x = x.reshape(chunks, blocks, -1, parts, group, LANES)
        x = x.transpose(1, 4, 0, 2, 3, 5).reshape(blocks * group, chunks, -1)
        return x[: plan.rows, :, : plan.channels]

    return jax.tree.map(unpack, tree)


def _cut_words(cut, plan: Plan):
    """For each step and group of rows, a word with a bit for each row: "B/group L/tile 1 tile"."""
    group, tile = plan.group, plan.tile
    cut = jnp.pad(cut, [(0, -plan.rows % group), (0, -plan.steps % tile)])
    bits = cut.reshape(-(-plan.rows // group), group, -1, 1, tile).astype(jnp.int32)
    return jnp.sum(bits << jnp.arange(group)[:, None, None, None], axis=1)
