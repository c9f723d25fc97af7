"""Every operand of a kernel for TPUs is used by it.

With libtpu from 0.0.43 on, a Pallas kernel can return zeros if there is an operand that it does not
use and that is computed under the same jit (jax issue 39744).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from rnnscale.cli._cell_arguments import CellArguments
from rnnscale_kernels.testing import (
    BLOCK_ARGUMENTS,
    SCAN_ARGUMENTS,
    CallArguments,
    SSMArguments,
)
from rnnscale_kernels.testing._call_arguments import OpCallArguments

# A new kernel joins with a call of it.
CALLS: tuple[CallArguments, ...] = (
    *SCAN_ARGUMENTS,
    *BLOCK_ARGUMENTS,
    SSMArguments((3,), 100, 24, 40, 16, dtype="bfloat16"),
    SSMArguments((1,), 70, 24, 40, 16, planar=False, ragged=True, reverse=True),
    CellArguments("indrnn"),
    CellArguments("paralstm", dtype="bfloat16"),
)


def unused_operands(call: Callable[..., Any], *arguments: Any) -> tuple[list[str], Any]:
    """The references in the kernel of a `pallas_call` that are neither read nor written, and the
    shapes of its results."""
    traced, shapes = jax.make_jaxpr(call, return_shape=True)(*arguments)
    (eqn,) = (eqn for eqn in traced.jaxpr.eqns if eqn.primitive.name == "pallas_call")
    kernel: Any = eqn.params["jaxpr"]
    used = {id(x) for inner in kernel.eqns for x in inner.invars}
    return [str(x.aval) for x in kernel.invars if id(x) not in used], shapes


@pytest.fixture
def audit(monkeypatch):
    """The unused operands of all kernels that are lowered, by the kernel's name."""
    found: dict[str, list[str]] = {}
    pallas_call = pl.pallas_call

    def audited(kernel, *given, name, **options):
        call = pallas_call(kernel, *given, name=name, **options)

        def run(*arguments):
            unused, shapes = unused_operands(call, *arguments)
            found.setdefault(name, []).extend(unused)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        return run

    monkeypatch.setattr(pl, "pallas_call", audited)
    return found


def both_passes(arguments: CallArguments) -> tuple[Callable[..., Any], tuple]:
    """Results and all gradients of a call, with resets and lengths, and what to trace it with."""
    start, inputs = arguments.structs()
    run: Any = partial(arguments.run, implementation="mosaic_tpu")
    if isinstance(arguments, OpCallArguments):
        run = partial(run_op, arguments, options_of(arguments))
    g, _ = jax.eval_shape(run, start, inputs)
    return arguments.call("gradient", run), (start, inputs, g)


def options_of(arguments: OpCallArguments) -> dict[str, Any]:
    arrays = arguments.arrays()
    given = {name: arrays.get(name) for name in ("reset", "lengths")}
    return {name: jnp.asarray(x) for name, x in given.items() if x is not None}


def run_op(arguments: OpCallArguments, options: dict[str, Any], start: Any, inputs: tuple) -> Any:
    return type(arguments).function(
        *inputs, start, reverse=arguments.reverse, implementation="mosaic_tpu", **options
    )


@pytest.mark.parametrize("arguments", CALLS, ids=str)
def test_kernels_use_every_operand(arguments, audit):
    function, shapes = both_passes(arguments)
    jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",))
    assert len(audit) >= 2
    assert not any(audit.values()), audit


@pytest.mark.parametrize("arguments", [SCAN_ARGUMENTS[4], BLOCK_ARGUMENTS[0]], ids=str)
def test_kernels_of_totals_use_every_operand(arguments, audit):
    op = type(arguments).op
    start, inputs = arguments.structs()

    def totals(start, inputs):
        primals, _ = op.canonical(op.check(*inputs, start), reverse=arguments.reverse)
        static = op.static(primals, reverse=arguments.reverse, implementation="mosaic_tpu")
        return op.totals(primals, **static), op.transpose_totals(primals, primals[1], **static)

    jax.jit(totals).trace(start, inputs).lower(lowering_platforms=("tpu",))
    assert len(audit) == 2
    assert not any(audit.values()), audit


def test_an_unused_operand_is_found():
    def kernel(x, y, out):
        out[...] = x[...]

    x = jax.ShapeDtypeStruct((8, 128), "float32")
    unused, _ = unused_operands(pl.pallas_call(kernel, out_shape=x), x, x)
    assert len(unused) == 1
