"""Functions that JAX's transformations take as a whole."""

from collections.abc import Callable
from functools import partial

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


def atomic(function: Callable[..., PyTree], message: str) -> Callable[..., PyTree]:
    """The function, as one operation: it is computed when all of its arguments are known.

    JAX splits a `shard_map` in a loop into what depends on the loop and what does not, such as
    masks and indices of devices. What is handed from one part to the other then has no layout that
    would do inside another `shard_map`.

    **Arguments:**

    - `function`: of arrays to arrays.
    - `message`: what an attempt to differentiate it is told.
    """

    def run(*arguments: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(arguments)
        out_structures = []

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
