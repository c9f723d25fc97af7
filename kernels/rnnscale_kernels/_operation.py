"""Differentiable operations of our own: a primitive, its tangent, and the tangent's transpose.

JAX chooses the lowering of a primitive by the platform that it compiles for, which `custom_vjp`
cannot do, and a primitive with a tangent and a transpose has forward mode, reverse mode and every
mix of them. Arguments and results are trees: `None` stands for an absent argument, and integer and
boolean leaves are not differentiated.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec, use_abstract_mesh

from ._target import Target

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

Tree = Any


def differentiable(tree: Tree) -> Tree:
    """The tree with `None` in place of its integer and boolean leaves."""
    return jax.tree.map(lambda x: x if _is_inexact(x) else None, tree)


def vary_alike(tree: Tree) -> Tree:
    """The arrays, cast to vary over every mesh axis over which one of them varies.

    Inside `shard_map`, the arguments of an operation that is differentiated have to be cast first:
    the transpose of the cast is the sum over devices that the gradient of a replicated argument
    needs.
    """
    leaves, treedef = jax.tree.flatten(tree)
    varying = [jax.typeof(x).manual_axis_type.varying for x in leaves]
    union = frozenset().union(*varying)
    leaves = [
        jax.lax.pcast(x, tuple(union - axes), to="varying") if union - axes else x
        for x, axes in zip(leaves, varying, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)


class Operation:
    """A differentiable operation, in three stages that share their keyword-only `static` values.

    | stage       | arguments                      | results                                  |
    |-------------|--------------------------------|------------------------------------------|
    | `forward`   | primals                        | outputs: the pair (public, residuals)    |
    | `tangent`   | primals, outputs, tangents     | tangents of the public outputs           |
    | `transpose` | primals, outputs, cotangents   | cotangents of `differentiable(primals)`  |

    **Arguments:**

    - `name`: the name of the primitive.
    - `shapes(primals, **static)`: the outputs, as `jax.ShapeDtypeStruct`s.
    - `tangent`, `transpose`: definitions of the last two stages. They are written with
        differentiable operations, so that they give the derivatives of higher order. `transpose`
        is the linear transpose of `tangent`.
    - `batch(stage, arguments, mapped, **static)`: the results under `vmap`. The leaves of
        `arguments` have the mapped axis in front where the tree `mapped` is true, and all results
        must have it in front.

    `lower` sets the code of the stages `forward` and `transpose`.
    """

    def __init__(
        self,
        name: str,
        *,
        shapes: Callable[..., Tree],
        tangent: Callable[..., Tree],
        transpose: Callable[..., Tree],
        batch: Callable[..., Tree],
    ):
        self._shapes = shapes
        self._definitions = {"tangent": tangent, "transpose": transpose}
        self._batch = batch
        self._primitives = {
            "forward": Primitive(name),
            "tangent": Primitive(f"{name}_tangent"),
            "transpose": Primitive(f"{name}_transpose"),
        }
        for stage, primitive in self._primitives.items():
            primitive.multiple_results = True
            primitive.def_impl(partial(_run_compiled, primitive))
            primitive.def_abstract_eval(partial(self._abstract_eval, stage))
            batching.primitive_batchers[primitive] = partial(self._batch_rule, stage)
        ad.primitive_jvps[self._primitives["forward"]] = self._forward_jvp
        for stage, other in (("tangent", "transpose"), ("transpose", "tangent")):
            primitive = self._primitives[stage]
            ad.primitive_jvps[primitive] = partial(self._definition_jvp, stage)
            ad.primitive_transposes[primitive] = partial(self._linear_transpose, other)
        mlir.register_lowering(
            self._primitives["tangent"], _lowering(partial(self._define, "tangent"))
        )

    def forward(self, primals: Tree, **static) -> Tree:
        """The outputs: the pair of public results and residuals."""
        return self.bind("forward", primals, **static)

    def tangent(self, primals: Tree, outputs: Tree, tangents: Tree, **static) -> Tree:
        """The tangents of the public outputs."""
        return self.bind("tangent", primals, outputs, tangents, **static)

    def transpose(self, primals: Tree, outputs: Tree, cotangents: Tree, **static) -> Tree:
        """The cotangents of the primals: the backward pass."""
        return self.bind("transpose", primals, outputs, cotangents, **static)

    def bind(self, stage: str, *arguments: Tree, **static) -> Tree:
        """The results of the stage of this name."""
        leaves, tree = jax.tree.flatten(arguments)
        results = self._primitives[stage].bind(*leaves, tree=tree, **static)
        structure = jax.tree.structure(self._result_shapes(stage, arguments, static))
        return jax.tree.unflatten(structure, results)

    def lower(self, forward: Callable[..., Tree], transpose: Callable[..., Tree]) -> None:
        """Sets the code of the two stages, which receives its `target` as a keyword."""
        for stage, code in (("forward", forward), ("transpose", transpose)):
            for platform in PLATFORMS:
                rule = _lowering(partial(_run_on_leaves, code, platform))
                mlir.register_lowering(self._primitives[stage], rule, platform=platform)

    def _result_shapes(self, stage: str, arguments: tuple[Tree, ...], static: dict) -> Tree:
        if stage == "forward":
            return self._shapes(*arguments, **static)
        primals, (public, _), _ = arguments
        return public if stage == "tangent" else differentiable(primals)

    def _abstract_eval(self, stage: str, *leaves, tree, **static):
        arguments = jax.tree.unflatten(tree, leaves)
        return _avals(self._result_shapes(stage, arguments, static), leaves)

    def _define(self, stage: str, *leaves, tree, **static) -> list:
        arguments = jax.tree.unflatten(tree, leaves)
        return jax.tree.leaves(self._definitions[stage](*arguments, **static))

    def _forward_jvp(self, primals, tangents, *, tree, **static):
        (arguments,) = jax.tree.unflatten(tree, primals)
        (directions,) = jax.tree.unflatten(
            tree,
            [
                ad.instantiate_zeros(t) if _is_inexact(p) else None
                for p, t in zip(primals, tangents, strict=True)
            ],
        )
        public, residuals = self.forward(arguments, **static)
        public_tangents = self.tangent(arguments, (public, residuals), directions, **static)
        # No caller sees the residuals, so they count as constants in derivatives.
        no_tangents = [ad.Zero(jax.typeof(x)) for x in jax.tree.leaves(residuals)]
        return jax.tree.leaves((public, residuals)), jax.tree.leaves(public_tangents) + no_tangents

    def _linear_transpose(self, other: str, cotangents, *leaves, tree, **static):
        """The transpose rule of the two linear stages: in its last argument, each is the transpose
        of the other."""
        primals, outputs, _ = jax.tree.unflatten(tree, leaves)
        like = outputs[0] if other == "transpose" else differentiable(primals)
        cotangents = jax.tree.unflatten(
            jax.tree.structure(like), map(ad.instantiate_zeros, cotangents)
        )
        results = self.bind(other, primals, outputs, cotangents, **static)
        results = jax.tree.leaves(results)
        known, linear = leaves[: -len(results)], leaves[-len(results) :]
        return [None] * len(known) + [
            result if ad.is_undefined_primal(x) else None
            for x, result in zip(linear, results, strict=True)
        ]

    def _definition_jvp(self, stage: str, primals, tangents, **params):
        chosen = [i for i, x in enumerate(primals) if _is_inexact(x)]

        def definition(*values):
            leaves = list(primals)
            for i, value in zip(chosen, values, strict=True):
                leaves[i] = value
            return self._define(stage, *leaves, **params)

        return jax.jvp(
            definition,
            [primals[i] for i in chosen],
            [ad.instantiate_zeros(tangents[i]) for i in chosen],
        )

    def _batch_rule(self, stage: str, leaves, axes, *, tree, **static):
        arguments = jax.tree.unflatten(
            tree,
            [
                x if axis is None else jnp.moveaxis(x, axis, 0)
                for x, axis in zip(leaves, axes, strict=True)
            ],
        )
        mapped = jax.tree.unflatten(tree, [axis is not None for axis in axes])
        results = jax.tree.leaves(self._batch(stage, arguments, mapped, **static))
        return results, [0] * len(results)


class Reduction:
    """Some results of an operation that take less work than all of them. It has no derivative.

    **Arguments:**

    - `name`: the name of the primitive.
    - `definition(*arguments, **static)`: the results, computed by the operation.

    `lower` sets the code, which receives its `target` as a keyword.
    """

    def __init__(self, name: str, definition: Callable[..., Tree]):
        self._definition = definition
        self._primitive = Primitive(name)
        self._primitive.multiple_results = True
        self._primitive.def_impl(partial(_run_compiled, self._primitive))
        self._primitive.def_abstract_eval(self._abstract_eval)
        batching.primitive_batchers[self._primitive] = self._batch_rule

    def __call__(self, *arguments: Tree, **static) -> Tree:
        leaves, tree = jax.tree.flatten(arguments)
        results = self._primitive.bind(*leaves, tree=tree, **static)
        return jax.tree.unflatten(jax.tree.structure(self._shapes(arguments, static)), results)

    def lower(self, code: Callable[..., Tree]) -> None:
        for platform in PLATFORMS:
            rule = _lowering(partial(_run_on_leaves, code, platform))
            mlir.register_lowering(self._primitive, rule, platform=platform)

    def _shapes(self, arguments: tuple[Tree, ...], static: dict) -> Tree:
        plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        return jax.eval_shape(partial(self._definition, **static), *plain)

    def _abstract_eval(self, *leaves, tree, **static):
        return _avals(self._shapes(jax.tree.unflatten(tree, leaves), static), leaves)

    def _batch_rule(self, leaves, axes, *, tree, **static):
        def define(*leaves):
            return self._definition(*jax.tree.unflatten(tree, leaves), **static)

        results = jax.tree.leaves(jax.vmap(define, in_axes=tuple(axes))(*leaves))
        return results, [0] * len(results)


def mapped_size(arguments: Tree, mapped: Tree) -> int:
    """The size of the mapped axis, for the function `batch` of an operation."""
    leaves = zip(jax.tree.leaves(arguments), jax.tree.leaves(mapped), strict=True)
    return next(x.shape[0] for x, is_mapped in leaves if is_mapped)


def one_by_one(run: Callable[..., Tree], arguments: Tree, mapped: Tree) -> Tree:
    """Runs one element of the mapped axis after another, for the function `batch` of an operation
    whose batch axes cannot take it."""
    leaves, tree = jax.tree.flatten(arguments)
    is_mapped = jax.tree.leaves(mapped)

    def run_one(mapped_leaves):
        rest = iter(mapped_leaves)
        one = [next(rest) if m else x for x, m in zip(leaves, is_mapped, strict=True)]
        return run(*jax.tree.unflatten(tree, one))

    return jax.lax.map(run_one, [x for x, m in zip(leaves, is_mapped, strict=True) if m])


def _is_inexact(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _avals(shapes: Tree, leaves) -> list[ShapedArray]:
    """Abstract results of these shapes, which vary over all axes over which an argument varies."""
    like = leaves[0]
    varying = frozenset().union(*(x.manual_axis_type.varying for x in leaves))
    return [
        ShapedArray(
            x.shape,
            x.dtype,
            sharding=NamedSharding(like.sharding.mesh, PartitionSpec(*[None] * len(x.shape))),
            manual_axis_type=type(like.manual_axis_type)(varying=varying),
        )
        for x in jax.tree.leaves(shapes)
    ]


def _lowering(code: Callable[..., list]):
    """The rule that lowers `code`.

    The mesh axes over which values vary or are split have been checked on the operation itself.
    Inside they are dropped: constants would vary over none of them and buffers over all.
    """
    rule = mlir.lower_fun(code)

    def lower(context, *values, **params):
        plain = [ShapedArray(x.shape, x.dtype) for x in context.avals_in]
        with _without_explicit_axes():
            return rule(context.replace(avals_in=plain), *values, **params)

    return lower


def _run_on_leaves(code, platform: str, *leaves, tree, **static) -> list:
    target = Target.of(platform)
    return jax.tree.leaves(code(*jax.tree.unflatten(tree, leaves), target=target, **static))


def _without_explicit_axes() -> AbstractContextManager:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return nullcontext()
    types = (AxisType.Auto if x == AxisType.Explicit else x for x in mesh.axis_types)
    return use_abstract_mesh(mesh.update(axis_types=tuple(types)))


@lru_cache(maxsize=4096)
def _compiled(primitive: Primitive, params: tuple):
    return jax.jit(partial(primitive.bind, **dict(params)))


def _run_compiled(primitive: Primitive, *leaves, **params):
    return _compiled(primitive, tuple(sorted(params.items())))(*leaves)
