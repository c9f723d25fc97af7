"""What depends on the weights only, computed once."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun


def folded(function: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
    """`function`, for arguments like these `jax.ShapeDtypeStruct`s, with all that doesn't depend on
    them as constants: a discretised system, a matrix exponential, gates side by side.

    A compiler folds some of it too, but no call of a linear algebra library, and each time anew.
    What is inside a loop stays there.
    """
    program, out = jax.make_jaxpr(function, return_shape=True)(*specs)
    jaxpr, weights = program.jaxpr, program.jaxpr.constvars
    fixed, rest = [], []
    known = set(weights)
    for each in jaxpr.eqns:
        inputs_known = all(isinstance(x, Literal) or x in known for x in each.invars)
        # An axis whose size is not known yet can't be made yet.
        sized = all(isinstance(n, int) for x in each.outvars for n in getattr(x.aval, "shape", ()))
        if inputs_known and sized and not each.effects:
            fixed.append(each)
            known.update(each.outvars)
        else:
            rest.append(each)
    needed = [*(x for each in rest for x in each.invars), *jaxpr.outvars]
    constants = list(dict.fromkeys(x for x in needed if isinstance(x, Var) and x in known))
    before = jaxpr.replace(invars=[], outvars=constants, eqns=fixed)
    values = jax.jit(jaxpr_as_fun(ClosedJaxpr(before, program.consts)))()
    after = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(constvars=constants, eqns=rest), values))
    structure = jax.tree.structure(out)
    return lambda *args: jax.tree.unflatten(structure, after(*jax.tree.leaves(args)))
