"""The sweep of the kernel for wide layers: its arguments and results in memory, and its launch.

The kernel itself is in `_mosaic_gpu_wide_program`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._algebra import power
from ._mosaic_gpu_layout import System, by_segment, padded_sequence
from ._mosaic_gpu_plan import TILE, WIDTH
from ._mosaic_gpu_wide_plan import CLUSTER, PAD, WidePlan
from ._mosaic_gpu_wide_program import CLUSTER_AXIS, Consumer, Place, Producer
from ._recurrence import stack, unstack


def sweep(
    plan: WidePlan, system: System, x, starts, cut, last,
    *, inject=None, other=None, states: bool = False, borders: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Runs h_t = decay h_{t-1} + into(x_t) over each segment.

    **Arguments:**

    - `x`: "row time input".
    - `starts`: the state that enters each segment, "row segment planes state"; `None` for zero.
    - `cut`: "row time" booleans, true where no state enters the step; or `None`.
    - `last`: a step of each row, none if negative.
    - `inject`: "row planes state", added to the state at that step.
    - `other`: the cotangents of the states, "row time planes*state", if d_decay is wanted.
    - `states`, `borders`: whether these are wanted.

    **Returns:** a dictionary:

    - `leaving`: the state that leaves each segment, "row segment planes state";
    - `at`, without `inject`: the state at the step `last`, "row planes state";
    - `states`: all of them in the dtype of `x`, "row time planes*state";
    - `borders`: the state that enters each chunk, "row chunk planes state";
    - `d_decay`, with `other`: "planes state".
    """
    given = {
        "x": padded_sequence(x),
        "into": _by_slice(plan, system.into),
        "decay": _decays(plan, system.decay),
        "at": last.astype(jnp.int32),
    }
    if starts is None:
        starts = jnp.zeros((plan.rows, plan.segments, plan.planes, plan.states), jnp.float32)
    given["starts"] = _to_threads(plan, starts)
    if cut is not None:
        given["cut"] = _cut_words(plan, cut)
    if inject is not None:
        given["inject"] = _to_threads(plan, inject)
    if other is not None:
        given["other"] = other
    results = _launch(plan, given, states=states, borders=borders)
    public = {"leaving": _from_threads(results["leaving"][..., 0, :])}
    if "at" in results:
        part = jnp.maximum(last, 0) % TILE // plan.part_rows
        here = jnp.take_along_axis(results["at"], part[:, None, None, None, None], -2)
        public["at"] = _from_threads(here[..., 0, :])
    if "d_decay" in results:
        public["d_decay"] = _from_threads(jnp.sum(results["d_decay"], (0, 1, -2)))
    return public | {name: results[name] for name in ("states", "borders") if name in results}


def _launch(
    plan: WidePlan, given: dict[str, Any], *, states: bool, borders: bool
) -> dict[str, Any]:
    """Runs the kernel."""
    x = given["x"]

    def kernel(given, results, **scratch):
        memory = plan, Place.of(plan, lax.axis_index("rnnscale_cluster")), given, results, scratch
        is_producer = lax.axis_index("rnnscale_warpgroup") == 1
        lax.cond(is_producer, Producer(*memory).run, Consumer(*memory).run)

    threads = plan.planes, plan.parts, plan.block
    by_segment = plan.rows, plan.segments, plan.slices, *threads
    shapes = {"leaving": jax.ShapeDtypeStruct(by_segment, jnp.float32)}
    if "inject" not in given:
        shapes["at"] = jax.ShapeDtypeStruct((plan.rows, plan.slices, *threads), jnp.float32)
    if states:
        shape = plan.rows, plan.steps, plan.planes * plan.states
        shapes["states"] = jax.ShapeDtypeStruct(shape, x.dtype)
    if borders:
        count = plan.segments * (plan.length // plan.chunk)
        shape = plan.rows, count, plan.planes, plan.states
        shapes["borders"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    if "other" in given:
        shapes["d_decay"] = shapes["leaving"]
    run = plgpu.kernel(
        kernel,
        out_type=shapes,
        grid=(plan.programs // CLUSTER,),
        grid_names=("rnnscale_cluster",),
        cluster=(CLUSTER,),
        cluster_names=(CLUSTER_AXIS,),
        num_threads=2,
        thread_name="rnnscale_warpgroup",
        scratch_types=_scratch(plan, given, states=states, borders=borders),
        compiler_params=plgpu.CompilerParams(
            unsafe_no_auto_barriers=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=plgpu.InterpretGPUParams() if plan.interpret else None,
        kernel_name="diagonal_ssm_wide",
    )
    with jax.enable_x64(False):  # indices in kernels have 32 bits
        return run(given)


def _scratch(
    plan: WidePlan, given: dict[str, Any], *, states: bool, borders: bool
) -> dict[str, Any]:
    """The buffers in shared memory, and their barriers.

    - `x`: the ring; `into`: a slice of the input map.
    - `rows`: the drives of a tile; `ends`: the ends of its parts, a copy for each part.
    - `states`, `border`: what TMA writes to device memory.
    - `other`: two tiles of cotangents.
    """
    x, other = given["x"], "other" in given
    pieces = given["into"].shape[0] // plan.slices
    stages = plan.stages(pieces * WIDTH, other=other)
    # Both operands of a product have the same layout.
    row = min(plan.columns, WIDTH)
    tiling = plgpu.TilingTransform((8, row))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(2 * row)  # pyright: ignore[reportAbstractUsage]
    ring = plgpu.SMEM((stages, TILE, WIDTH), x.dtype, transforms=(tiling, swizzle))
    matrix = plgpu.SMEM((pieces, WIDTH, plan.columns), x.dtype, transforms=(tiling, swizzle))
    planes, parts, block = plan.planes, plan.parts, plan.block
    scratch: dict[str, Any] = {
        "x": ring,
        "x_arrived": plgpu.Barrier(num_barriers=stages),
        "x_released": plgpu.ClusterBarrier(collective_axes=(CLUSTER_AXIS,), num_barriers=stages),
        "into": matrix,
        "into_arrived": plgpu.Barrier(num_arrivals=pieces),
        "rows": plgpu.SMEM((planes, TILE, block + PAD), jnp.float32),
        "ends": plgpu.SMEM((planes, parts, parts, block), jnp.float32),
    }
    if states:
        scratch["states"] = plgpu.SMEM((planes, TILE, block), x.dtype)
    if borders:
        scratch["border"] = plgpu.SMEM((planes, parts, block), jnp.float32)
    if other:
        scratch["other"] = plgpu.SMEM((2, planes, TILE, block), x.dtype)
        scratch["other_arrived"] = plgpu.Barrier(num_arrivals=planes, num_barriers=2)
        scratch["other_released"] = plgpu.Barrier(num_barriers=2)
    return scratch


def _by_slice(plan: WidePlan, into):
    """The input map, "input planes state", in pieces: "slice*piece input planes*state"."""
    inputs = into.shape[0]
    x = into.reshape(inputs, plan.planes, plan.slices, plan.block)
    x = jnp.moveaxis(x, 2, 0).reshape(-1, WIDTH, plan.columns)
    return x


def _decays(plan: WidePlan, decay):
    """The decay of a step and that of a part, for each thread: "slice kind planes part state"."""
    step: Any = unstack(decay, 0)
    kinds = jnp.stack([decay, stack(power(step, plan.part_rows), 0)])
    return _to_threads(plan, kinds).swapaxes(0, 1)


def _to_threads(plan: WidePlan, x):
    """A state, "*leading planes state", for each thread: "*leading slice planes part state"."""
    x = x.reshape(*x.shape[:-1], plan.slices, plan.block)
    x = jnp.moveaxis(x, -2, -3)[..., None, :]
    return jnp.broadcast_to(x, (*x.shape[:-2], plan.parts, plan.block))


def _from_threads(x):
    """States without their parts, "*leading slice planes state", as "*leading planes state"."""
    x = jnp.moveaxis(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def _cut_words(plan: WidePlan, cut):
    """Cuts as threads take them, a word for each of their parts: "row tile part state"."""
    shape = plan.rows, plan.segments * plan.tiles, plan.parts, plan.part_rows
    bits = by_segment(plan, cut).reshape(shape).astype(jnp.uint32)
    words = jnp.sum(bits << jnp.arange(plan.part_rows, dtype=jnp.uint32), -1, dtype=jnp.uint32)
    words = lax.bitcast_convert_type(words, jnp.int32)
    return jnp.broadcast_to(words[..., None], (*words.shape, plan.block))
