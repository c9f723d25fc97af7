"""A function as a single primitive, which JAX's partial evaluation can't split."""

from collections.abc import Callable
from functools import partial

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


def atomic(function: Callable[..., PyTree], message: str) -> Callable[..., PyTree]:
    """Wrap a function as one primitive, which is evaluated once all its arguments are known.

    In the derivative of a loop, JAX splits a `shard_map` into what depends on the loop and what
    does not, such as masks and device indices. The arrays passed from one part to the other then
    have a layout that is invalid inside another `shard_map`. A primitive is never split.

    **Arguments:**

    - `function`: maps trees of arrays to a tree of arrays.
    - `message`: the message of the `NotImplementedError` raised when it is differentiated.

    **Returns:** a function with the same arguments and results.
    """

    def run(*arguments: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(arguments)
        out_structures = []  # filled by the trace

        def flat(*leaves):
            results, out_structure = jax.tree.flatten(function(*structure.unflatten(leaves)))
            out_structures.append(out_structure)
            return results

        jaxpr = jax.make_jaxpr(flat)(*leaves)
        results = _atomic.bind(*leaves, jaxpr=jaxpr, message=message)
        return out_structures[0].unflatten(results)

    return run


def _evaluate(*leaves, jaxpr: ClosedJaxpr, message: str) -> list:
    return jaxpr_as_fun(jaxpr)(*leaves)


def _batch_rule(leaves, axes, *, jaxpr: ClosedJaxpr, message: str):
    mapped = jax.vmap(jaxpr_as_fun(jaxpr), in_axes=tuple(axes), out_axes=0)
    results = atomic(mapped, message)(*leaves)
    return results, [0] * len(results)


def _no_derivative(primals, tangents, *, jaxpr: ClosedJaxpr, message: str):
    raise NotImplementedError(message)


_atomic = Primitive("atomic")
_atomic.multiple_results = True
_atomic.def_impl(lambda *leaves, **params: jax.jit(partial(_evaluate, **params))(*leaves))
_atomic.def_abstract_eval(lambda *_, jaxpr, message: jaxpr.out_avals)
mlir.register_lowering(_atomic, mlir.lower_fun(_evaluate, multiple_results=True))
batching.primitive_batchers[_atomic] = _batch_rule
ad.primitive_jvps[_atomic] = _no_derivative
