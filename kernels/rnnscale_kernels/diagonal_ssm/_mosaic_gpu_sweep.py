"""The sweep of the fused kernel: the forms and shapes of its arguments and results, and its launch.

The kernel itself is in `_mosaic_gpu_program`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._sizes import round_up
from ._mosaic_gpu_layout import (
    System,
    by_block,
    cut_bits,
    from_lanes,
    last_in_segments,
    padded_sequence,
    to_lanes,
)
from ._mosaic_gpu_plan import (
    LANES,
    WIDTH,
    Plan,
    buffers_with_stages,
    columns_at_once,
    padded_width,
)
from ._mosaic_gpu_program import Program


def sweep(
    plan: Plan, system: System, x, starts, cut, last,
    *, inject=None, outputs: int = 0, other=None, feedback=None, at_last: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Runs h_t = decay h_{t-1} + into(x_t) over each segment.

    **Arguments:**

    - `x`: "row time input".
    - `starts`: the state that enters each segment, "row segment planes state"; `None` for zero.
    - `cut`: "row time" booleans, true where no state enters the step; or `None`.
    - `last`: a step of each row, none if negative.
    - `inject`: "row planes state", added to the state at that step.
    - `outputs`: the width of the output y, if it is wanted.
    - `other`: "row time other", a sequence whose products with the states are wanted.
    - `feedback`: "other planes state", the map from `other` to the cotangents of the states, if
        d_decay is wanted.
    - `at_last`: the state at the step `last` is wanted.

    **Returns:** a dictionary:

    - `leaving`: the state that leaves each segment, "row segment planes state";
    - `at`, with `at_last`: the state at the step `last`, "row planes state";
    - `y`, with `outputs`: "row time output";
    - `borders`, with `outputs` and without `inject`: the state that enters each chunk;
    - `weight`, with `other`: its products with the states, summed over rows and time, "other planes
        state";
    - `d_decay`, with `feedback`: "planes state", the part that comes from cotangents within the
        same segment. Then `leaving` and `at` are the derivatives dh_t/d decay instead.
    """
    decay = by_block(plan, system.decay).reshape(plan.blocks, plan.planes, plan.block)
    given = {
        "x": padded_sequence(x),
        "decay": jnp.tile(decay, plan.group),
        "into": by_block(plan, system.into),
    }
    if outputs:
        out = by_block(plan, jnp.moveaxis(system.out, -1, 0))
        given["out"] = jnp.swapaxes(out, -1, -2)
    if other is not None:
        given["other"] = padded_sequence(other)
    if feedback is not None:
        given["feedback"] = by_block(plan, feedback)
    if starts is not None:
        given["starts"] = to_lanes(plan, starts)
    if cut is not None:
        given["cut"] = cut_bits(plan, cut)
    given["at"] = last_in_segments(plan, last)
    if inject is not None:
        inject = to_lanes(plan, jnp.repeat(inject[:, None], plan.segments, 1))
        # For each segment of a program, only its own lanes.
        own = jnp.repeat(jnp.eye(plan.group, dtype=bool), plan.block, 1)
        given["inject"] = jnp.where(own[:, None, None], inject[:, None], 0)
    results = _launch(plan, given, padded_width(outputs), at_last=at_last)
    return _public(plan, results, last, outputs)


def _public(plan: Plan, results: dict[str, Any], last, outputs: int) -> dict[str, Any]:
    """The results of the kernel in the forms that `sweep` returns."""
    # States do not depend on the part of `other` that a program has: any part has them.
    public = {"leaving": from_lanes(plan, results["leaving"][0])}
    if "at" in results:
        shape = plan.programs, plan.group, plan.blocks, plan.planes, plan.group, plan.block
        x = results["at"][0].reshape(shape)
        x = jnp.swapaxes(jnp.diagonal(x, 0, 1, 4), -1, -2)  # the lanes of the segment itself
        segment = jnp.maximum(last, 0) // plan.length
        at = jnp.take_along_axis(from_lanes(plan, x), segment[:, None, None, None], 1)
        public["at"] = at[:, 0]
    if "y" in results:
        public["y"] = results["y"][:, : plan.steps, :outputs]
    if "borders" in results:
        x = jax.vmap(lambda x: from_lanes(plan, x), 1, 2)(results["borders"])
        public["borders"] = x.reshape(plan.rows, -1, plan.planes, plan.states)
    if "weight" in results:
        x = jnp.sum(results["weight"], 1)
        x = x.reshape(*x.shape[:3], plan.planes, plan.block).transpose(0, 2, 3, 1, 4)
        public["weight"] = x.reshape(-1, plan.planes, plan.states)
    if "d_decay" in results:
        x = jnp.sum(results["d_decay"], (0, 1)).reshape(plan.blocks, plan.planes, plan.group, -1)
        public["d_decay"] = jnp.sum(x, 2).swapaxes(0, 1).reshape(plan.planes, plan.states)
    return public


def _launch(plan: Plan, given: dict[str, Any], width: int, *, at_last: bool) -> dict[str, Any]:
    """Runs the kernel. `width` is that of the output in device memory.

    The grid has an axis for the parts of `other`, which are as wide as a program has registers
    for, and one for the blocks of states, unless a program takes all of them because it maps the
    states to an output.
    """
    x, other = given["x"], given.get("other")
    inputs = given["into"].shape[1]
    mapped = given["out"].shape[2] if "out" in given else 0
    others = 0 if other is None else round_up(other.shape[-1], WIDTH)
    columns = columns_at_once(others)
    parts = others // columns if others else 1
    blocks_at_once = plan.blocks if mapped else 1
    shapes = buffers_with_stages(
        plan.planes, plan.states, plan.group, inputs,
        outputs=mapped, others=columns, feedback="feedback" in given,
    )  # fmt: skip

    def kernel(given, results, **scratch):
        if mapped:
            scratch["rows"], (scratch["narrow"], scratch["y"]) = scratch["rows"]
        part = lax.axis_index("rnnscale_part")
        blocks = range(plan.blocks) if mapped else [lax.axis_index("rnnscale_block")]
        program = Program(
            plan=plan,
            index=lax.axis_index("rnnscale_program"),
            blocks=blocks,
            column=part * columns,
            given=given,
            results={
                name: ref if name in ("y", "borders") else ref.at[part]
                for name, ref in results.items()
            },
            scratch=scratch,
        )
        if others:
            sums = plgpu.WGMMAAccumulatorRef((columns, plan.planes * plan.block), jnp.float32)
            pl.run_scoped(program.run, sums)
        else:
            program.run()

    results = _result_shapes(plan, given, width, parts, columns)
    if not at_last:
        del results["at"]
    run = plgpu.kernel(
        kernel,
        out_type={
            name: jax.ShapeDtypeStruct(shape, x.dtype if name == "y" else jnp.float32)
            for name, shape in results.items()
        },
        # CUDA allows at most 65,535 programs on all axes but the last.
        grid=(parts, plan.blocks // blocks_at_once, plan.programs),
        grid_names=("rnnscale_part", "rnnscale_block", "rnnscale_program"),
        scratch_types=_scratch(plan, shapes, x.dtype, blocks_at_once),
        compiler_params=plgpu.CompilerParams(
            unsafe_no_auto_barriers=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=plgpu.InterpretGPUParams() if plan.interpret else None,
        kernel_name="diagonal_ssm",
    )
    with jax.enable_x64(False):  # indices in kernels have 32 bits
        return run(given)


def _result_shapes(
    plan: Plan, given: dict[str, Any], width: int, parts: int, columns: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of the kernel's results."""
    state = plan.blocks, plan.planes, LANES
    shapes: dict[str, tuple[int, ...]] = {
        "leaving": (parts, plan.programs, *state),
        "at": (parts, plan.programs, plan.group, *state),
    }
    if "out" in given:
        shapes["y"] = (*given["x"].shape[:2], width)
        if "inject" not in given:
            shapes["borders"] = (plan.programs, plan.length // plan.chunk, *state)
    if "other" in given:
        products = columns, plan.planes * plan.block
        shapes["weight"] = (parts, plan.programs, plan.blocks, *products)
    if "feedback" in given:
        shapes["d_decay"] = (parts, plan.programs, *state)
    return shapes


def _scratch(
    plan: Plan, shapes: dict[str, tuple[int, ...]], dtype, blocks_at_once: int
) -> dict[str, Any]:
    """The buffers in shared memory, and the barriers at which copies into them arrive."""
    scratch: dict[str, Any] = {}
    for name, shape in shapes.items():
        if name == "rows":
            scratch[name] = plgpu.SMEM(shape, jnp.float32)
            continue
        # Where states are an operand of products over time, a plane of them may be half of `WIDTH`.
        is_narrow = "other" in shapes and name in ("narrow", "other", "feedback")
        transforms = _swizzled(plan.block if is_narrow else WIDTH)
        scratch[name] = plgpu.SMEM(shape, dtype, transforms=transforms)
        if name in ("x", "other"):
            scratch[f"{name}_arrived"] = plgpu.Barrier(num_barriers=shape[0])
    if "y" in scratch:
        narrow = [scratch.pop("narrow"), scratch.pop("y")]
        scratch["rows"] = plgpu.RefUnion(scratch["rows"], narrow)
    matrices = blocks_at_once * (1 + ("out" in shapes)) + ("feedback" in shapes)
    scratch["matrices_arrived"] = plgpu.Barrier(num_arrivals=matrices)
    return scratch


def _swizzled(row: int):
    """The layout in which tensor cores read tiles with rows of `row` numbers of 16 bits."""
    tiling = plgpu.TilingTransform((8, row))  # pyright: ignore[reportAbstractUsage]
    return tiling, plgpu.SwizzleTransform(2 * row)  # pyright: ignore[reportAbstractUsage]
