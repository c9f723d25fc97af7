"""The sweep of Mosaic GPU: the shapes of the kernel's arguments and results, and the call.

A program takes one row and up to 128 channels. Each of its threads keeps the state of one channel
in a register, in float32, while TMA streams tiles of time through shared memory.

If rows and channels do not fill the GPU, the threads of one channel take parts of time: they find
the total of each part, exchange totals, and then walk through the parts, which are still in shared
memory. So every input is read once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._algebra import power
from .._sizes import round_up
from ._exchange import MEMBER
from ._kernels import Launch, SideBySide, is_side_by_side
from ._mosaic_gpu_kernel import GRID, Given, Sweep, kernel
from ._mosaic_gpu_plan import Plan
from ._steps import Linear
from ._tma_pipeline import WARPGROUP


def sweep(
    step, a, inputs, entering, cut, launch: Launch,
    *, name, linear: Linear | None, outputs=(), before=None, sums=None,
):  # fmt: skip
    """See `SweepKernels.sweep`."""
    x, x0 = (None, None) if before is None else before
    planes = 2 if is_side_by_side(inputs[0]) else len(jax.tree.leaves(inputs[0]))
    fields = len(jax.tree.leaves(a)) + planes + (cut is not None)
    plan = Plan.of(
        a,
        [*inputs, *([] if x is None else [x])],
        outputs,
        fields,
        launch,
        splits=linear is not None,
    )
    _, warpgroups, cluster = division = plan.division

    def copies(tree):
        def copy(x):
            shape = x.shape[0], division.parts, plan.block_width
            return jnp.broadcast_to(_padded(x, plan.block_width), shape)

        return jax.tree.map(copy, tree)

    given = Given(
        a=_padded(a, plan.width) if plan.varying else copies(a),
        inputs=_padded(inputs, plan.width),
        # TMA takes rows of a multiple of 16 bytes.
        cut=None if cut is None else _padded(cut.astype(jnp.int32), round_up(plan.steps, 4)),
        x=_padded(x, plan.width),
        x0=copies(jax.tree.map(lambda x: x[:, None], x0)),
        entering=copies([x for x in jax.tree.leaves(entering) if not isinstance(x, float)]),
        powers=() if plan.varying or not plan.splits_time else copies(_powers(a, plan)),
    )

    def sequence(dtype):
        if isinstance(dtype, SideBySide):
            shape = plan.rows, plan.steps, 2 * plan.width
            return SideBySide(jax.ShapeDtypeStruct(shape, dtype.array))
        return jax.ShapeDtypeStruct((plan.rows, plan.steps, plan.width), dtype)

    threads = plan.rows, division.team, division.parts, plan.block_width
    totals = (
        plan.blocks, plan.rows, 2, cluster, fields, division.parts, division.lanes,
    )  # fmt: skip
    in_memory = launch.target.interpret and cluster > 1
    run = plgpu.kernel(
        partial(kernel, Sweep(plan, launch, step, linear, entering, fields)),
        out_type=(
            jax.tree.map(sequence, list(outputs), is_leaf=is_side_by_side),
            jax.tree.map(lambda _: jax.ShapeDtypeStruct(threads, jnp.float32), (entering, sums)),
            [jax.ShapeDtypeStruct(totals, jnp.float32)] if in_memory else [],
        ),
        # Rows come last, so that those that share a decay run together and find it in the cache.
        grid=(plan.blocks, plan.rows),
        grid_names=GRID,
        cluster=(cluster,) if cluster > 1 else (),
        cluster_names=(MEMBER,) if cluster > 1 else (),
        num_threads=warpgroups,
        thread_name=WARPGROUP,
        # A thread reads nothing that another one writes, other than through TMA and `_exchange`.
        # The other semantics cannot load from the shared memory of another program.
        compiler_params=plgpu.CompilerParams(
            unsafe_no_auto_barriers=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=plgpu.InterpretGPUParams() if launch.target.interpret else None,
        kernel_name=name,
    )
    results, (leaving, sums), _ = run(given)
    # All threads have the last carry, and each has its part of a sum.
    leaving = jax.tree.map(lambda x: x[:, :1, 0], leaving)
    sums = jax.tree.map(lambda x: jnp.sum(x, axis=(1, 2))[:, None], sums)
    return jax.tree.map(
        lambda x: x if isinstance(x, SideBySide) else x[..., : plan.channels],
        (results, leaving, sums),
        is_leaf=is_side_by_side,
    )


def _powers(a, plan: Plan):
    """The decays of a full part and of the last part of the sequence, each rounded once."""
    return [power(a, n) for n in (plan.part_rows, plan.steps % plan.part_rows or plan.part_rows)]


def _padded(tree, width: int):
    """Zeros added to the last axis."""

    def pad(x):
        if isinstance(x, SideBySide):  # its channels fill their blocks
            return x
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])

    return jax.tree.map(pad, tree, is_leaf=is_side_by_side)
