"""The calls of the fused kernels for TPUs: which blocks a program sees, and its vector memory."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ._mosaic_tpu_kernel import Gradients, Outputs, Scratch, backward, forward
from ._mosaic_tpu_layout import Given
from ._mosaic_tpu_plan import LANES, STREAMS, Plan

# The index maps below take the indices of the grid: core, group of rows on that core, tile.


def run_forward(plan: Plan, given: Given, *, outputs: int = 0, borders: bool = False) -> Outputs:
    """The forward kernel: `outputs` is the width of y, if it is wanted."""
    state = jax.ShapeDtypeStruct((plan.groups, plan.group, plan.states), jnp.float32)
    chunks = -(-plan.steps // plan.piece)
    border = jax.ShapeDtypeStruct((chunks, *state.shape), jnp.float32)
    x = given.x
    y = jax.ShapeDtypeStruct((plan.rows, plan.steps, outputs), x.dtype) if outputs else None
    results = Outputs(
        y=y,
        at=[state] * plan.planes,
        borders=[border] * plan.planes if borders else None,
    )
    specs = Outputs(
        y=_sequence(y, plan), at=_states(results.at, plan), borders=_states(results.borders, plan)
    )
    scratch = Scratch(carry=_carry(plan), states=_rows(plan))
    return _call(forward, plan, given, results, specs, scratch)


def run_backward(plan: Plan, given: Given) -> Gradients:
    """The backward kernel."""
    (*_, inputs), (*_, outputs), dtype = given.x.shape, given.g.shape, given.x.dtype
    state = jax.ShapeDtypeStruct((plan.groups, plan.group, plan.states), jnp.float32)

    def sums(*shape):
        return jax.ShapeDtypeStruct((plan.cores, *shape), jnp.float32)

    results = Gradients(
        dx=jax.ShapeDtypeStruct(given.x.shape, dtype),
        d_into=sums(inputs, plan.width),
        d_out=sums(outputs, plan.width),
        d_decay=sums(plan.lane_blocks, STREAMS, LANES),
        passed_on=[state] * plan.planes,
    )
    specs = Gradients(
        dx=_sequence(results.dx, plan),
        d_into=_sums(results.d_into),
        d_out=_sums(results.d_out),
        d_decay=_sums(results.d_decay),
        passed_on=_states(results.passed_on, plan),
    )
    steps = plan.group * plan.piece
    scratch = Scratch(
        carry=_carry(plan),
        states=_rows(plan),
        states_carry=_carry(plan),
        cotangents=_rows(plan),
        x_turned=pltpu.VMEM((plan.pieces, inputs, steps), dtype),
        g_turned=pltpu.VMEM((plan.pieces, outputs, steps), dtype),
    )
    return _call(backward, plan, given, results, specs, scratch)


def _call(kernel, plan: Plan, given: Given, results, specs, scratch: Scratch):
    last = given.last
    in_memory = given._replace(last=None) if isinstance(last, int) else given

    def run(given, results, scratch):
        kernel(plan, given._replace(last=last) if given.last is None else given, results, scratch)

    # Inside shard_map, Pallas wants to know over which mesh axes the results vary: as the inputs.
    varies = jax.typeof(given.x).manual_axis_type
    results = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varies), results
    )
    (results,) = pl.pallas_call(
        run,
        out_shape=(results,),
        grid=plan.grid,
        in_specs=(_given(in_memory, plan),),
        out_specs=(specs,),
        scratch_shapes=(scratch,),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.vmem,
        ),
        interpret=pltpu.InterpretParams() if plan.interpret else False,
        name=f"diagonal_ssm_{kernel.__name__}",
    )(in_memory)
    return results


def _given(given: Given, plan: Plan) -> Given:
    """The block of every argument that a program sees while it takes one tile."""
    return Given(
        x=_sequence(given.x, plan),
        into=_constant(given.into),
        out=_constant(given.out),
        decay=_constant(given.decay),
        jump=_constant(given.jump),
        start=_states(given.start, plan),
        cut=None
        if given.cut is None
        else pl.BlockSpec(
            (None, plan.pieces, 1, plan.length + 1),
            lambda core, i, n: (plan.group_at(core, i), plan.tile_at(n), 0, 0),
            memory_space=pltpu.SMEM,
        ),
        last=None
        if given.last is None
        else pl.BlockSpec(
            (None, 1, plan.group),
            lambda core, i, n: (plan.group_at(core, i), 0, 0),
            memory_space=pltpu.SMEM,
        ),
        g=_sequence(given.g, plan),
        g_last=_states(given.g_last, plan),
    )


def _sequence(x, plan: Plan):
    """The tile of a sequence, "row time width", or `None`."""
    if x is None:
        return None
    return pl.BlockSpec(
        (plan.group, plan.tile, x.shape[-1]),
        lambda core, i, n: (plan.group_at(core, i), plan.tile_at(n), 0),
    )


def _states(planes, plan: Plan):
    """The states of a group of rows, "*piece group row state", or `None`."""

    def spec(x):
        if x.ndim == 3:
            block = None, plan.group, plan.states
            return pl.BlockSpec(block, lambda core, i, n: (plan.group_at(core, i), 0, 0))
        block = plan.pieces, None, plan.group, plan.states
        return pl.BlockSpec(
            block, lambda core, i, n: (plan.tile_at(n), plan.group_at(core, i), 0, 0)
        )

    return jax.tree.map(spec, planes)


def _constant(x):
    """All of an array, which stays in vector memory; or `None`."""
    if x is None:
        return None
    zeros = (0,) * x.ndim
    return pl.BlockSpec(x.shape, lambda core, i, n: zeros, pipeline_mode=pl.Buffered(1))


def _sums(x):
    """The sums of a core, which stay in vector memory until they are complete."""
    _, *shape = x.shape
    return pl.BlockSpec(
        (None, *shape),
        lambda core, i, n: (core, *(0 for _ in shape)),
        pipeline_mode=pl.Buffered(1),
    )


def _carry(plan: Plan):
    return pltpu.VMEM((plan.lane_blocks, STREAMS, LANES), jnp.float32)


def _rows(plan: Plan) -> list:
    """For each piece memory of its own, so that the compiler sees that they do not overlap."""
    shape = plan.lane_blocks, STREAMS * plan.pitch, LANES
    return [pltpu.VMEM(shape, jnp.float32)] * plan.pieces
