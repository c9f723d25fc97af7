"""Constant folding: what a program computes from its constants alone is computed once, before it
is exported."""

from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun


def with_constants_folded(function: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
    """`function` for arguments like these `jax.ShapeDtypeStruct`s, with everything that does not
    depend on them replaced by its value: a discretised system, a matrix exponential, stacked gates.

    A compiler folds some of this too, but never a call of a linear algebra library, and again at
    every compilation. The insides of loops are left as they are.
    """
    # Each equation of the traced program is either `fixed`, if all of its inputs are constants or
    # outputs of fixed equations, or it belongs to the `rest`, which depends on the arguments.
    program, out = jax.make_jaxpr(function, return_shape=True)(*specs)
    jaxpr, weights = program.jaxpr, program.jaxpr.constvars
    fixed, rest = [], []
    known = set(weights)
    for each in jaxpr.eqns:
        inputs_known = all(isinstance(x, Literal) or x in known for x in each.invars)
        # An array with a symbolic axis has no value before the export is called.
        sized = all(
            isinstance(x.aval, ShapedArray) and all(isinstance(n, int) for n in x.aval.shape)
            for x in each.outvars
        )
        if inputs_known and sized and not each.effects:
            fixed.append(each)
            known.update(each.outvars)
        else:
            rest.append(each)
    # The fixed equations become a program of their own, which runs now. Its results, and the
    # constants that the rest uses directly, become the constants of the rest.
    needed = [*(x for each in rest for x in each.invars), *jaxpr.outvars]
    constants = list(dict.fromkeys(x for x in needed if isinstance(x, Var) and x in known))
    before = jaxpr.replace(invars=[], outvars=constants, eqns=fixed)
    values = jax.jit(jaxpr_as_fun(ClosedJaxpr(before, program.consts)))()
    after = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(constvars=constants, eqns=rest), values))
    structure = jax.tree.structure(out)
    return lambda *args: jax.tree.unflatten(structure, after(*jax.tree.leaves(args)))
