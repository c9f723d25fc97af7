"""The launch of the kernels: their shapes, shared memory and results."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from ._mosaic_gpu_exchange import AXIS, Alone, Exchange, ThroughMemory, ThroughSharedMemory
from ._mosaic_gpu_kernel import Program
from ._plan import Plan
from ._pointwise import Pointwise


def forward_pass(
    plan: Plan, pointwise: Pointwise, given: dict[str, Any], *, reverse: bool, interpret: bool
) -> dict[str, Any]:
    """The results of `Program.forward`."""
    dtype, time = given["drive"].dtype, given["drive"].shape[0]
    wide = plan.hdim, plan.rows
    results = {
        "states": [_array(dtype, time, *wide)] * plan.states,
        "last": [_array(jnp.float32, *wide)] * plan.states,
        "gates": _array(dtype, time, plan.gates, *wide),
    }
    inbox = plan.gather_slots, plan.cluster, plan.units, plan.columns
    scratch = {
        "matrix": _operand(plan, dtype, plan.gates * plan.units, plan.hdim),
        "inbox": _operand(plan, dtype, *inbox),
        "fetched": plgpu.Barrier(num_arrivals=plan.gates + plan.cluster),
    }
    program = partial(Program, plan, time, reverse, pointwise)
    return _launch(Program.forward, plan, program, given, results, scratch, interpret)


def backward_pass(
    plan: Plan, pointwise: Pointwise, given: dict[str, Any], *, reverse: bool, interpret: bool
) -> dict[str, Any]:
    """The results of `Program.backward`."""
    dtype, time = given["gates"].dtype, given["gates"].shape[0]
    wide = plan.hdim, plan.rows
    results: dict[str, Any] = {
        "gates": _array(dtype, time, plan.gates, *wide),
        "first": [_array(jnp.float32, *wide)] * plan.states,
    }
    if "extras" in given:
        results["extras"] = _array(dtype, time, plan.extras, *wide)
    if "start" in given:
        results["fresh"] = [_array(jnp.float32, *wide)] * plan.states
    inbox = plan.scatter_slots, plan.cluster, plan.units, plan.columns
    scratch = {
        "matrix": _operand(plan, dtype, plan.gates * plan.units, plan.hdim),
        "gates": _operand(plan, dtype, plan.gates * plan.units, plan.columns),
        "inbox": _operand(plan, jnp.float32, *inbox),
        "fetched": plgpu.Barrier(num_arrivals=plan.gates),
    }
    program = partial(Program, plan, time, reverse, pointwise)
    return _launch(Program.backward, plan, program, given, results, scratch, interpret)


def _launch(
    walk: Callable[[Program], None], plan: Plan, program: Callable[..., Program],
    given: dict, results: dict, scratch: dict, interpret: bool,
) -> dict[str, Any]:  # fmt: skip
    """Runs a method of `Program` in all programs."""
    # The interpreter has no shared memory of others: pieces go through an array of their own.
    through_memory = interpret and plan.cluster > 1
    if through_memory:
        inbox = scratch["inbox"]
        slots, programs, *piece = inbox.shape
        mailbox = _array(inbox.dtype, plan.slices, slots, programs, programs, *piece)
        results = results | {"mailbox": mailbox}
        scratch = scratch | {
            "met": plgpu.ClusterBarrier(collective_axes=(AXIS,)),
            "arrived": plgpu.Barrier(),
        }

    def kernel(given, results, **scratch):
        inbox = scratch["inbox"]
        exchange: Exchange
        if through_memory:
            mailbox = results["mailbox"].at[lax.axis_index("rnnscale_slice")]
            exchange = ThroughMemory(inbox, mailbox, scratch["met"], scratch["arrived"])
        else:
            exchange = (ThroughSharedMemory if plan.cluster > 1 else Alone)(inbox)
        walk(program(exchange, given, results, scratch))

    launched = plgpu.kernel(
        kernel,
        out_type=results,
        grid=(plan.slices,),
        grid_names=("rnnscale_slice",),
        cluster=(plan.cluster,),
        cluster_names=(AXIS,),
        scratch_types=scratch,
        # The approximate functions err by 2^-11, an eighth of the spacing of bfloat16.
        compiler_params=plgpu.CompilerParams(
            unsafe_no_auto_barriers=True,
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            approx_math=True,
        ),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
        kernel_name=f"persistent_rnn_{walk.__name__}",
    )
    with jax.enable_x64(False):  # indices in kernels have 32 bits
        return launched(given)


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _operand(plan: Plan, dtype: Any, *shape: int) -> Any:
    """A buffer in the tiles in which tensor cores read both operands of a product, as wide as a
    program has rows; or with another size of numbers, in similar tiles without bank conflicts."""
    size = jnp.dtype(dtype).itemsize
    width = min(plan.columns, 128 // size)
    transforms = plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(width * size)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=transforms)
