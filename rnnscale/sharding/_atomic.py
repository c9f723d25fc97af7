"""A function as a single primitive, which JAX's partial evaluation can't split."""

from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


def atomic(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Wrap a function from arrays to arrays as one primitive, which has no derivative.

    In the derivative of a loop, JAX splits a `shard_map` into what depends on the loop and what
    does not, such as masks and device indices. The arrays passed from one part to the other then
    have a layout that is invalid inside another `shard_map`. A primitive is never split: it is
    evaluated once all its arguments are known.
    """

    def run(*arguments: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(arguments)
        out_structures = []  # filled by the trace

        def flat(*leaves):
            results, out_structure = jax.tree.flatten(function(*structure.unflatten(leaves)))
            out_structures.append(out_structure)
            return results

        jaxpr = jax.make_jaxpr(flat)(*leaves)
        return out_structures[0].unflatten(_atomic.bind(*leaves, jaxpr=jaxpr))

    return run


def _evaluate(*leaves, jaxpr: ClosedJaxpr) -> list:
    return jaxpr_as_fun(jaxpr)(*leaves)


def _batch_rule(leaves, axes, *, jaxpr: ClosedJaxpr):
    mapped = jax.vmap(jaxpr_as_fun(jaxpr), in_axes=tuple(axes), out_axes=0)
    results = atomic(mapped)(*leaves)
    return results, [0] * len(results)


def _no_derivative(primals, tangents, *, jaxpr: ClosedJaxpr):
    raise NotImplementedError(
        "on a mesh, only first-order derivatives in reverse mode are available: differentiate "
        "once, with jax.grad or jax.vjp, or compute without a mesh"
    )


_atomic = Primitive("atomic")
_atomic.multiple_results = True
_atomic.def_impl(lambda *leaves, jaxpr: jax.jit(jaxpr_as_fun(jaxpr))(*leaves))
_atomic.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)
mlir.register_lowering(_atomic, mlir.lower_fun(_evaluate, multiple_results=True))
batching.primitive_batchers[_atomic] = _batch_rule
ad.primitive_jvps[_atomic] = _no_derivative
