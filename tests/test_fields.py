"""The walk over the fields of modules: axes, groups and trainability of every array."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from jaxtyping import Array, Float, Int, PyTree

from rnnscale._fields import groups, map_parameters, parameter, parameters, trainable
from rnnscale_kernels import Planar

type Weight = Float[Array, "odim idim"] | None


class Inner(eqx.Module):
    weight: Float[Array, "state idim"]
    gate: Weight = parameter(group="recurrence")
    rate: Float[Array, ""] = parameter(trainable=False)
    size: int = eqx.field(static=True, default=3)


class Outer(eqx.Module):
    inner: Inner
    many: list[Inner]
    pair: tuple[Float[Array, "x"], Float[Array, "4 hdim _"]]
    named: dict[str, Float[Array, "... vocab"]]
    maybe: Float[Array, "dim"] | None
    frozen: Inner = parameter(trainable=False)
    clock: Int[Array, "*batch"]
    rest: PyTree


def inner(gate=None):
    return Inner(jnp.ones((2, 3)), gate, jnp.ones(()))


def outer():
    return Outer(
        inner(),
        [inner(jnp.ones((7, 2, 3)))],
        (jnp.ones(3), jnp.ones((4, 5, 6))),
        {"a": jnp.ones((2, 9))},
        None,
        inner(),
        jnp.zeros(2, jnp.int32),
        {"loose": jnp.ones(3), "module": inner(), "state": Planar(jnp.ones(2), jnp.ones(2))},
    )


def test_every_parameter():
    rows = {each.path: (each.axes, each.group, each.trainable) for each in parameters(outer())}
    assert rows == {
        "inner.weight": (("state", "idim"), "weight", True),
        "inner.rate": ((), "weight", False),
        "many.0.weight": (("state", "idim"), "weight", True),
        # Two names, three axes: the leading one is a stack of layers.
        "many.0.gate": ((None, "odim", "idim"), "recurrence", True),
        "many.0.rate": ((), "weight", False),
        "pair.0": (("x",), "weight", True),
        "pair.1": ((None, "hdim", None), "weight", True),
        "named.a": ((None, "vocab"), "weight", True),
        "frozen.weight": (("state", "idim"), "weight", False),
        "frozen.rate": ((), "weight", False),
        "clock": ((None,), "weight", True),
        "rest.loose": ((None,), "weight", True),
        "rest.module.weight": (("state", "idim"), "weight", True),
        "rest.module.rate": ((), "weight", False),
        "rest.state.re": ((None,), "weight", True),
        "rest.state.im": ((None,), "weight", True),
    }


def test_parameters_come_in_the_order_of_the_leaves():
    model = outer()
    again = map_parameters(lambda each: each.value, model)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert all(x is y for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True))


def test_optimiser_state_follows_the_modules_inside_it():
    model = outer()
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition({"weight": optax.adam(1e-3), "recurrence": optax.sgd(1e-3)}, groups),
    )
    floats = eqx.filter(eqx.filter(model, trainable(model)), eqx.is_inexact_array)
    axes = {each.path.split("mu.")[-1]: each.axes for each in parameters(optimiser.init(floats))}
    assert axes["inner.weight"] == ("state", "idim")
    assert axes["pair.1"] == (None, "hdim", None)
    assert "many.0.gate" not in axes  # the other group has no moments
    counts = [each for each in parameters(optimiser.init(floats)) if "count" in each.path]
    assert counts
    assert all(each.axes == () for each in counts)


def test_trainable_selects_what_an_optimiser_changes():
    model = outer()
    kept = eqx.filter(model, trainable(model))
    assert kept.frozen.weight is None
    assert kept.inner.rate is None
    assert kept.inner.weight is not None


class Unannotated(eqx.Module):
    weight: Array


class Number(eqx.Module):
    rate: float


class TooFewAxes(eqx.Module):
    weight: Float[Array, "state idim"]


class Unresolvable(eqx.Module):
    weight: "Float[Array, 'state'] | OnlyForTypeCheckers"  # pyright: ignore[reportUndefinedVariable]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Unannotated(jnp.ones(3)), "Unannotated.weight holds an array of shape (3,)"),
        (Number(0.5), "Number.rate holds float 0.5"),
        (TooFewAxes(jnp.ones(3)), "TooFewAxes.weight holds an array of shape (3,)"),
        (Unresolvable(jnp.ones(3)), "OnlyForTypeCheckers"),
    ],
)
def test_errors_name_class_and_field(model, says):
    with pytest.raises(TypeError) as caught:
        parameters(model)
    assert says in str(caught.value)
