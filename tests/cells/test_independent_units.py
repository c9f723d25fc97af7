"""Cells whose units do not see one another: the derivative of a step has one block a unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import verify
from rnnscale.cells import ParaGRUCell, time_loop
from rnnscale.sharding import make_mesh
from rnnscale.verify._double import to_double
from rnnscale.verify._probe import draw

INDEPENDENT = [
    subject
    for subject in verify.CELLS
    if jax.eval_shape(subject.build, jax.random.key(0)).unit_axis == "state"
]


def test_there_are_such_cells():
    assert {"IndRNNCell", "MinGRUCell", "ParaLSTMCell"} <= {each.name for each in INDEPENDENT}


@pytest.mark.parametrize("subject", INDEPENDENT, ids=lambda subject: subject.name)
def test_blocks_are_derivatives_along_ones(subject, key):
    """The tangent that is one in all units of an array of the state gives a column of blocks."""

    @jax.jit
    def derivatives(cell, x, state):
        def step(state):
            return cell(x, state)[0]

        dense = jax.jacfwd(step)(state)
        leaves, tree = jax.tree.flatten(state)
        columns = []
        for i, ones in enumerate(map(jnp.ones_like, leaves)):
            tangent = [ones if i == j else jnp.zeros_like(each) for j, each in enumerate(leaves)]
            columns.append(jax.jvp(step, (state,), (jax.tree.unflatten(tree, tangent),))[1])
        return jax.tree.leaves(dense), [jax.tree.leaves(column) for column in columns]

    with jax.enable_x64(True):
        cell = to_double(jax.jit(subject.build)(key))
        state = to_double(jax.eval_shape(cell.init_state))
        n = len(jax.tree.leaves(state))
        x, *leaves = draw(key, (cell.idim,), *[(cell.hdim,)] * n)
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
        dense, columns = jax.device_get(derivatives(cell, x, state))
    blocks = [columns[j][i] for i in range(n) for j in range(n)]
    for got, expected in zip(blocks, dense, strict=True):
        assert np.all(expected[~np.eye(cell.hdim, dtype=bool)] == 0)
        np.testing.assert_allclose(got, np.diag(expected), rtol=1e-14, atol=0)
    assert any(map(np.any, dense))


def test_heads_see_their_own_features(key):
    cell = ParaGRUCell(6, 9, heads=3, key=key)
    jacobian = jax.jit(jax.jacobian(lambda x: cell(x, cell.init_state())[1]))(np.ones(6))
    assert np.all((np.asarray(jacobian) != 0) == np.kron(np.eye(3), np.ones((3, 2))))


def test_heads_that_a_mesh_would_cut_are_refused(key):
    cell = ParaGRUCell(6, 6, heads=3, key=key)
    xs = jnp.zeros((4, 5, 6))
    with jax.set_mesh(make_mesh(data=4, tensor=2)):
        with pytest.raises(ValueError, match="gives 3 units .* heads of 2 units nor a part of one"):
            jax.eval_shape(time_loop, cell, xs)
