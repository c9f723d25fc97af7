"""What the papers promise of unitary and orthogonal cells: lengths, eigenvalues, and their cost."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale._fields import trainable
from rnnscale.cells import Cell, ExpRNNCell, NonNormalRNNCell, UnitaryEvolutionRNNCell, time_loop
from rnnscale.verify._cell_oracles import exprnn_oracle, nnrnn_oracle, unitary_oracle
from rnnscale.verify._cells import CellSubject
from rnnscale.verify._check import Check, relative_error
from rnnscale_kernels import Planar


def _unitary(key: PRNGKeyArray) -> UnitaryEvolutionRNNCell:
    return _with_bias(UnitaryEvolutionRNNCell(3, 7, key=key), key)


def _unitary_oracle(cell: UnitaryEvolutionRNNCell, x: NDArray[np.float64], state: Any) -> Any:
    theta_1, theta_2, theta_3 = np.asarray(cell.theta)
    v_1, v_2 = _complex(cell.reflection_re, cell.reflection_im)
    last, outputs = unitary_oracle(
        x,
        _complex(*state),
        theta_1=theta_1,
        theta_2=theta_2,
        theta_3=theta_3,
        v_1=v_1,
        v_2=v_2,
        permutation=np.asarray(cell.permutation),
        V=_complex(cell.input_re, cell.input_im),
        b=np.asarray(cell.bias),
    )
    return state._replace(re=last.real, im=last.imag), outputs


def _unitary_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = UnitaryEvolutionRNNCell(3, 33, key=key)
    trained = _trained(cell, key)
    return [
        *_keeps_lengths(cell, key),
        _unitary_step("W^H W = 1", cell),
        _unitary_step("W^H W = 1 after training", trained),
        # So that the check before it says something.
        Check("θ not moved by training", -_distance(cell.theta, trained.theta), -0.01),
        _reflections_are_involutions(key),
        _finite_at_zero(cell),
    ]


def _unitary_step(name: str, cell: UnitaryEvolutionRNNCell) -> Check:
    """The step is linear over the complex numbers and keeps lengths."""
    matrix = _matrix(cell)
    eye = np.eye(cell.hdim)
    turn = np.kron([[0.0, -1.0], [1.0, 0.0]], eye)
    orthogonal = relative_error(matrix.T @ matrix, np.eye(2 * cell.hdim))
    return Check(name, max(orthogonal, relative_error(turn @ matrix, matrix @ turn)), 1e-5)


def _reflections_are_involutions(key: PRNGKeyArray) -> Check:
    """Without rotations and the permutation, and with $v_1 = F v_2$, $W = R_2^2 = 1$."""
    cell = UnitaryEvolutionRNNCell(3, 12, key=key)
    v = _complex(cell.reflection_re, cell.reflection_im)
    v[0] = np.fft.fft(v[1])
    cell = eqx.tree_at(
        lambda c: (c.theta, c.permutation, c.reflection_re, c.reflection_im),
        cell,
        (
            jnp.zeros_like(cell.theta),
            jnp.arange(cell.hdim),
            jnp.asarray(v.real, jnp.float32),
            jnp.asarray(v.imag, jnp.float32),
        ),
    )
    return Check("R² = 1", relative_error(_matrix(cell), np.eye(2 * cell.hdim)), 1e-5)


def _exprnn(key: PRNGKeyArray, hdim: int = 7) -> ExpRNNCell:
    cell = ExpRNNCell(3, hdim, key=key)
    log = 0.7 * jax.random.normal(key, (hdim, hdim), jnp.float32)
    return _with_bias(eqx.tree_at(lambda c: c.log_orthogonal, cell, log), key)


def _exprnn_oracle(cell: ExpRNNCell, x: NDArray[np.float64], state: Any) -> Any:
    return exprnn_oracle(
        x,
        state,
        L=np.asarray(cell.log_orthogonal),
        V=np.asarray(cell.input),
        b=np.asarray(cell.bias),
    )


def _exprnn_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = _exprnn(key, hdim=33)
    trained = _trained(cell, key)
    moved = _distance(cell.log_orthogonal, trained.log_orthogonal)
    return [
        *_keeps_lengths(cell, key),
        *_rotation("", cell),
        *_rotation(" after training", trained),
        Check("A not moved by training", -moved, -0.01),
        *(
            check
            for init in ("henaff", "cayley")
            for check in _rotation(f" at the start, {init}", ExpRNNCell(3, 9, init=init, key=key))
        ),
        *_exponentials(cell),
        _finite_at_zero(cell),
    ]


def _rotation(when: str, cell: ExpRNNCell) -> list[Check]:
    matrix = _matrix(cell)
    return [
        Check(f"BᵀB = 1{when}", relative_error(matrix.T @ matrix, np.eye(cell.hdim)), 2e-6),
        Check(f"det B = 1{when}", float(abs(np.linalg.det(matrix) - 1)), 1e-5),
    ]


def _exponentials(cell: ExpRNNCell) -> list[Check]:
    """The matrix exponential is computed once a call, and never in a loop over time."""

    def run(cell: ExpRNNCell) -> Array:
        return jnp.sum(time_loop(cell, jnp.zeros((20, cell.idim)), cell.init_state())[1])

    inside = list(_places_of("expm", jax.make_jaxpr(run)(cell).jaxpr))
    backward = _places_of("expm", jax.make_jaxpr(jax.grad(run))(cell).jaxpr)
    return [
        Check("exponentials in a call, but one", abs(len(inside) - 1.0), 0.0),
        Check("exponentials in loops", float(sum(inside) + sum(backward)), 0.0),
    ]


def _places_of(name: str, jaxpr: Any, in_loop: bool = False) -> Iterator[bool]:
    """For every call of that name, whether it is in a loop."""
    for equation in jaxpr.eqns:
        if equation.params.get("name") == name:
            yield in_loop
            continue
        inner = in_loop or equation.primitive.name in ("scan", "while")
        for value in equation.params.values():
            for each in value if isinstance(value, (tuple, list)) else (value,):
                inside = getattr(each, "jaxpr", each)
                if hasattr(inside, "eqns"):
                    yield from _places_of(name, inside, inner)


def _nnrnn(key: PRNGKeyArray) -> NonNormalRNNCell:
    cell = NonNormalRNNCell(3, 8, key=key)
    keys = jax.random.split(key, 3)
    changed = (
        0.7 * jax.random.normal(keys[0], (8, 8), jnp.float32),
        jax.random.uniform(keys[1], (4,), jnp.float32, 0.6, 1.1),
        0.3 * jax.random.normal(keys[2], (8, 8), jnp.float32),
    )
    where = lambda c: (c.log_orthogonal, c.gamma, c.upper)  # noqa: E731
    return _with_bias(eqx.tree_at(where, cell, changed), key)


def _nnrnn_oracle(cell: NonNormalRNNCell, x: NDArray[np.float64], state: Any) -> Any:
    return nnrnn_oracle(
        x,
        state,
        L=np.asarray(cell.log_orthogonal),
        gamma=np.asarray(cell.gamma),
        theta=np.asarray(cell.theta),
        T=np.asarray(cell.upper),
        U=np.asarray(cell.input),
        b=np.asarray(cell.bias),
    )


def _nnrnn_invariants(key: PRNGKeyArray) -> list[Check]:
    initial = NonNormalRNNCell(3, 8, key=key)
    matrix = _matrix(initial)
    cell = _nnrnn(key)
    penalty = np.sum((np.asarray(cell.gamma, np.float64) - 1) ** 2)
    return [
        Check("V orthogonal at the start", relative_error(matrix.T @ matrix, np.eye(8)), 2e-6),
        _moduli_are_gamma("|eigenvalues| = γ", cell),
        _moduli_are_gamma("|eigenvalues| = γ after training", _trained(cell, key)),
        Check("penalty at the start", float(initial.penalty()), 0.0),
        Check("penalty = |γ - 1|²", relative_error(cell.penalty(), penalty), 1e-6),
        _finite_at_zero(cell),
    ]


def _moduli_are_gamma(name: str, cell: NonNormalRNNCell) -> Check:
    # In double precision: eigenvalues of matrices that are not normal amplify rounding.
    with jax.enable_x64(True):
        moduli = np.sort(np.abs(np.linalg.eigvals(_matrix(_in_double(cell)))))
    gamma = np.sort(np.repeat(np.abs(np.asarray(cell.gamma, np.float64)), 2))
    return Check(name, relative_error(moduli, gamma), 1e-9)


def _keeps_lengths(cell: Cell, key: PRNGKeyArray) -> list[Check]:
    """Without bias and input, |h| stays as it is, in single and in double precision."""
    name = "|h_t| / |h_0| - 1"
    single = _drift(cell, key)
    with jax.enable_x64(True):
        double = _drift(_in_double(cell), key)
    return [
        Check(f"{name} over 100 steps", float(np.max(single[:100])), 1e-5),
        Check(f"{name} over 10,000 steps", float(np.max(single)), 2e-3),
        Check(f"{name} over 10,000 steps in float64", float(np.max(double)), 1e-9),
    ]


def _drift(cell: Cell, key: PRNGKeyArray, steps: int = 10_000) -> NDArray[np.float64]:
    cell = _without_bias(cell)
    dtype = jax.tree.leaves(eqx.filter(cell, eqx.is_inexact_array))[0].dtype
    state = jax.tree.map(
        lambda x: jax.random.normal(key, x.shape, dtype), cell.init_state((), dtype)
    )
    _, ys = eqx.filter_jit(time_loop)(cell, jnp.zeros((steps, cell.idim), dtype), state)
    start = np.linalg.norm(np.asarray(cell.output(state), np.float64))
    return np.abs(np.linalg.norm(np.asarray(ys, np.float64), axis=1) / start - 1)


def _finite_at_zero(cell: Cell) -> Check:
    """Counts the derivatives of a step at zero state and zero input that are not finite.

    With a positive bias the length of a state jumps at zero, and a plain |z| has no derivative.
    """
    cell = eqx.tree_at(lambda c: c.bias, cell, jnp.full_like(_bias(cell), 0.1))
    state = jax.tree.map(jnp.zeros_like, cell.init_state())

    def total(arguments: Any) -> Array:
        cell, x, state = arguments
        state, output = cell(x, state)
        return jnp.sum(output)

    arguments = cell, jnp.zeros(cell.idim), state
    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(total))(arguments)
    leaves = [value, *jax.tree.leaves(gradient)]
    bad = sum(int(np.sum(~np.isfinite(np.asarray(leaf)))) for leaf in leaves)
    return Check("derivatives at zero that are not finite", float(bad), 0.0)


def _trained[C: Cell](cell: C, key: PRNGKeyArray) -> C:
    """After 100 steps of Adam, towards random targets."""
    xs_key, ys_key = jax.random.split(key)
    xs = jax.random.normal(xs_key, (2, 3, cell.idim), jnp.float32)
    targets = jax.random.normal(ys_key, (2, 3, cell.odim), jnp.float32)
    weights, fixed = eqx.partition(cell, trainable(cell))
    optimiser = optax.adam(1e-2)

    def loss(weights: Any) -> Array:
        cell = eqx.combine(weights, fixed)
        return jnp.mean((time_loop(cell, xs, cell.init_state((2,)))[1] - targets) ** 2)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        weights, moments = carry
        updates, moments = optimiser.update(jax.grad(loss)(weights), moments)
        return (optax.apply_updates(weights, updates), moments), None

    @jax.jit
    def train(carry: Any) -> Any:
        return jax.lax.scan(step, carry, length=100)[0]

    weights, _ = train((weights, optimiser.init(weights)))
    return eqx.combine(weights, fixed)


def _matrix(cell: Cell) -> NDArray[np.float64]:
    """The linear map of a step without bias and input, on all planes of the state."""
    cell = _without_bias(cell)
    dtype = _bias(cell).dtype
    rows = jnp.eye(cell.odim, dtype=dtype)
    state = Planar(*jnp.split(rows, 2, axis=1)) if cell.odim != cell.hdim else rows
    _, output = eqx.filter_jit(cell)(jnp.zeros((cell.odim, cell.idim), dtype), state)
    return np.asarray(output, np.float64).T


def _with_bias[C: Cell](cell: C, key: PRNGKeyArray) -> C:
    """With a bias that closes some units and not others. Where it is positive modReLU jumps at
    zero, by so little that rounding there does no harm."""
    bias = jax.random.uniform(key, _bias(cell).shape, jnp.float32, -0.4, 0.02)
    return eqx.tree_at(_bias, cell, bias)


def _without_bias[C: Cell](cell: C) -> C:
    return eqx.tree_at(_bias, cell, jnp.zeros_like(_bias(cell)))


def _bias(cell: Any) -> Array:
    return cell.bias


def _in_double[C: Cell](cell: C) -> C:
    return jax.tree.map(lambda x: x.astype(jnp.float64) if eqx.is_inexact_array(x) else x, cell)


def _distance(before: Array, after: Array) -> float:
    return float(jnp.max(jnp.abs(after - before)))


def _complex(re: Any, im: Any) -> NDArray[np.complex128]:
    return np.asarray(re, np.float64) + 1j * np.asarray(im, np.float64)


ORTHOGONAL_CELLS: list[CellSubject] = [
    CellSubject(
        "UnitaryEvolutionRNNCell",
        "Arjovsky et al. 2016",
        _unitary,
        _unitary_oracle,
        _unitary_invariants,
    ),
    CellSubject(
        "ExpRNNCell",
        "Lezcano-Casado and Martínez-Rubio 2019",
        _exprnn,
        _exprnn_oracle,
        _exprnn_invariants,
    ),
    CellSubject("NonNormalRNNCell", "Kerg et al. 2019", _nnrnn, _nnrnn_oracle, _nnrnn_invariants),
]
