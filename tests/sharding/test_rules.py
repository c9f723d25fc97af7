"""The layout of parameters and activations: tables, meshes, sharded initialisation, `describe`."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float

from rnnscale import S5, ElmanRNNCell, RGLRUCell, RNNEncoder
from rnnscale._fields import trainable
from rnnscale.models import FFN, SequenceClassifier
from rnnscale.sharding import (
    AXES,
    constrain,
    describe,
    layouts,
    make_mesh,
    sharded_init,
    shardings,
)
from rnnscale.training import Carry


class Layer(eqx.Module):
    b: Float[Array, "state idim"]
    square: Float[Array, "hdim hdim"]
    gates: Float[Array, "4 hdim idim"]
    expression: Float[Array, "3*hdim state"]


def layer(state=4, idim=6, hdim=8, stack=()):
    shapes = (state, idim), (hdim, hdim), (4, hdim, idim), (3 * hdim, state)
    return Layer(*(jnp.zeros((*stack, *shape)) for shape in shapes))


def specs(model, **axes: Any) -> Any:
    mesh = make_mesh(**axes)
    return jax.tree.map(lambda x: x.spec, shardings(model, mesh))


def test_names_become_mesh_axes():
    got = specs(layer(), data=2, fsdp=2, tensor=2)
    assert got.b == P(("tensor",), ("fsdp",))
    # A mesh axis is used once per array, for the first axis that is mapped to it.
    assert got.square == P(("fsdp",), None)
    assert got.gates == P(None, ("fsdp",), None)
    assert got.expression == P(None, ("tensor",))
    # Leading axes are stacks.
    assert specs(layer(stack=(3,)), fsdp=2, tensor=4).b == P(None, ("tensor",), ("fsdp",))


def test_optimiser_state_is_laid_out_like_the_parameters():
    model = layer()
    params: Any = model
    state = optax.adam(1e-3).init(params)
    got = specs(state, data=4, tensor=2)
    assert got[0].mu.b == got[0].nu.b == P(("tensor",), None)
    assert got[0].count == P()


def test_a_size_that_the_mesh_does_not_divide():
    with pytest.raises(ValueError, match=r"axis state of b has size 6, not a multiple of the mesh"):
        specs(layer(state=6), data=2, tensor=4)


def test_fsdp_replicates_uneven_sizes_with_a_warning(caplog):
    got = specs(layer(idim=5, hdim=7), fsdp=8)
    assert got.square == P(None, None)
    assert "axis hdim of square has size 7" in caplog.text
    assert "replicated" in caplog.text


def test_fsdp_splits_another_axis_that_it_divides(caplog):
    got = specs(layer(idim=8, hdim=7), fsdp=8)
    assert got.gates == P(None, None, ("fsdp",))
    assert "gates" not in caplog.text


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"data": 3}, "needs 3 devices (data=3), but there are 8"),
        ({"data": 0}, "data must be at least 1; got 0"),
        ({"data": 4, "tensor": 4}, "needs 16 devices (data=4 * tensor=4)"),
    ],
)
def test_make_mesh_errors(axes, says):
    with pytest.raises(ValueError) as caught:
        make_mesh(**axes)
    assert says in str(caught.value)


def test_make_mesh():
    mesh = make_mesh(data=2, tensor=4)
    assert mesh.axis_names == AXES
    assert all(kind == AxisType.Auto for kind in mesh.axis_types)


def model(key):
    return SequenceClassifier(
        1, 10, make_layer=lambda key: S5(16, 32, key=key), dim=16, depth=3, make_mixer=FFN, key=key
    )


def test_sharded_init_gives_the_values_of_one_device(key):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    expected, got = model(key), sharded_init(model, key, mesh)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
    layer: Any = got.stack.blocks.layer
    assert layer.b_re.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "tensor", "fsdp")), 3)
    assert layer.b_re.addressable_shards[0].data.shape == (3, 8, 8)


def test_sharded_init_never_holds_a_full_sharded_parameter(key):
    """The program of a device has no array of the global shape of a sharded parameter."""
    mesh = make_mesh(tensor=8)
    abstract = jax.eval_shape(model, key)
    build = jax.jit(model, out_shardings=shardings(abstract, mesh))
    text = build.lower(key).compile().as_text() or ""
    assert "f32[3,2,16]" in text
    assert "f32[3,16,16]" not in text


def test_every_parameter_of_a_model_has_a_row(capsys, key):
    """Also on a mesh without devices."""
    mesh = AbstractMesh((16, 4, 2, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    built = jax.eval_shape(model, key)
    rows = {row.path: row for row in layouts(built, mesh)}
    assert len(rows) == len(jax.tree.leaves(built))
    # Only scalars and stacks of scalars have no named axis.
    assert all(any(row.axes) for row in rows.values() if len(row.shape) > 1)
    b = rows["stack.blocks.layer.b_re"]
    assert b.axes == (None, "state", "idim")
    assert b.spec == P(None, ("tensor",), ("fsdp",))
    assert b.bytes_per_device == 3 * 16 * 16 * 4 // 8
    up = next(row for path, row in rows.items() if path.endswith("mixer.w_in"))
    assert "tensor" in str(up.spec)
    describe(built, mesh)
    printed = capsys.readouterr().out
    assert "data=16, fsdp=4, tensor=2" in printed
    assert "total" in printed


def test_trainable_parameters_of_a_model(key):
    layer: Any = trainable(jax.eval_shape(model, key)).stack.blocks.layer
    assert layer.step_rescale is False
    assert layer.lambda_re is True


def test_constrain_without_a_mesh_does_nothing():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x


def test_constrain_splits_only_axes_that_the_mesh_divides():
    with jax.set_mesh(make_mesh(data=4, tensor=2)):
        run = jax.jit(lambda x: constrain(x, "batch", "time", None))
        assert run(jnp.ones((8, 3, 2))).sharding.spec == P("data")
        assert run(jnp.ones((1, 3, 2))).sharding.is_fully_replicated
        with pytest.raises(ValueError, match="2 axis names for an array of shape"):
            constrain(jnp.ones((8, 3, 2)), "batch", None)


def test_blocks_are_split_over_tensor_if_it_divides_them(key, caplog):
    mesh = AbstractMesh((1, 1, 4, 1), AXES)
    for blocks, axes in ((8, ("tensor",)), (2, ())):
        cell = RGLRUCell(16, blocks=blocks, key=key)
        (gates,) = (each for each in layouts(cell, mesh) if each.path == "gates")
        assert gates.mesh_axes == [(), axes, (), ()]
    assert "axis blocks of gates has size 2" in caplog.text


def test_an_axis_is_split_over_as_many_mesh_axes_as_divide_it_together():
    """The rows of a carry go over `data` and `fsdp`."""
    encoder = RNNEncoder(ElmanRNNCell(2, 3, key=jax.random.key(0)))
    carry = jax.eval_shape(lambda: Carry.zeros(encoder, 4))
    assert jax.tree.leaves(specs(carry, data=4, fsdp=2)) == [P(("data",), None)]
    carry = jax.eval_shape(lambda: Carry.zeros(encoder, 8))
    assert jax.tree.leaves(specs(carry, data=4, fsdp=2)) == [P(("data", "fsdp"), None)]
