"""What the papers promise of the cells with dense matrices, of the gated ones, and of IndRNN."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpy.typing import ArrayLike, NDArray

from rnnscale.cells import (
    AntiSymmetricRNNCell,
    Cell,
    ChoGatedRecurrentUnitCell,
    ClockWorkRNNCell,
    ElmanRNNCell,
    GatedAntiSymmetricRNNCell,
    GatedLipschitzRNNCell,
    GatedRecurrentUnitCell,
    IndRNNCell,
    LeakyElmanCell,
    LipschitzRNNCell,
    LongShortTermMemoryCell,
    WilsonCowanCell,
)
from rnnscale.verify._cell_oracles import (
    antisymmetric_oracle,
    clockwork_oracle,
    elman_oracle,
    gated_antisymmetric_oracle,
    gated_lipschitz_oracle,
    gru_cho_oracle,
    gru_cudnn_oracle,
    indrnn_oracle,
    leaky_elman_oracle,
    lipschitz_oracle,
    lstm_oracle,
    wilson_cowan_oracle,
)
from rnnscale.verify._cells import CellSubject
from rnnscale.verify._check import Check, relative_error

type Doubles = NDArray[np.float64]

# A gate of this bias is open to the last bit.
_OPEN = 50.0


def _elman(key: PRNGKeyArray) -> ElmanRNNCell:
    return ElmanRNNCell(3, 5, key=key)


def _elman_oracle(cell: ElmanRNNCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    W, V, b = map(np.asarray, (cell.recurrent, cell.input, cell.bias))
    return elman_oracle(x, state, W=W, V=V, b=b)


def _elman_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = ElmanRNNCell(7, 40, key=key)
    memoryless = _with(cell, recurrent=jnp.zeros_like(cell.recurrent))
    h, xs = _draw(key, (2, 40), (2, 9, 7))
    xs = xs.at[:, -1].set(xs[0, -1])
    last, other = (_run(memoryless, xs[i], h[i])[0] for i in range(2))
    return [
        Check("W = 0 forgets all but the last input", _largest(last - other), 0.0),
        *_uniform_checks(cell),
    ]


def _leaky_elman(key: PRNGKeyArray) -> LeakyElmanCell:
    return LeakyElmanCell(3, 5, leak=0.3, key=key)


def _leaky_elman_oracle(cell: LeakyElmanCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    W, V, b, alpha = map(np.asarray, (cell.recurrent, cell.input, cell.bias, cell.leak))
    return leaky_elman_oracle(x, state, W=W, V=V, b=b, alpha=alpha)


def _leaky_elman_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = LeakyElmanCell(7, 40, key=key)
    h, xs = _draw(key, (40,), (9, 7))
    elman = _elman_of(cell)
    leaks = jnp.linspace(0.0, 1.0, 5)
    mapped = eqx.filter_jit(
        lambda cell: jax.vmap(lambda leak: _with(cell, leak=leak)(xs[0], h)[0])(leaks)
    )(cell)
    between = h + leaks[:, None] * (elman(xs[0], h)[0] - h)
    return [
        Check(
            "α = 1 is Elman's network",
            relative_error(_run(_with(cell, leak=jnp.ones(())), xs, h), _run(elman, xs, h)),
            1e-6,
        ),
        Check(
            "α = 0 is the identity",
            _largest(_run(_with(cell, leak=jnp.zeros(())), xs, h)[0] - h),
            0.0,
        ),
        Check("a step is linear in an α that is traced", relative_error(mapped, between), 1e-6),
        *_uniform_checks(cell),
    ]


def _wilson_cowan(key: PRNGKeyArray) -> WilsonCowanCell:
    return WilsonCowanCell(3, 5, rate=0.3, key=key)


def _wilson_cowan_oracle(cell: WilsonCowanCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    W, V, b, alpha = map(np.asarray, (cell.recurrent, cell.input, cell.bias, cell.rate))
    return wilson_cowan_oracle(x, state, W=W, V=V, b=b, alpha=alpha)


def _wilson_cowan_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = WilsonCowanCell(7, 40, key=key)
    h, xs = _draw(key, (40,), (9, 7))
    _, potentials = _run(_with(cell, rate=jnp.ones(())), xs, h)
    _, rates = _run(_elman_of(cell), xs, jnp.tanh(h))
    bias, (offset,) = 3 * cell.bias, _draw(key, (40,))
    alone = _with(cell, recurrent=jnp.zeros_like(cell.recurrent), bias=bias, rate=jnp.array(0.25))
    _, relaxing = _run(alone, jnp.zeros((9, 7)), bias + offset)
    expected = bias + 0.75 ** np.arange(1, 10)[:, None] * offset
    return [
        Check(
            "with α = 1 rates are Elman's states",
            relative_error(jnp.tanh(potentials), rates),
            1e-5,
        ),
        Check("alone it relaxes to b by 1 - α a step", relative_error(relaxing, expected), 1e-6),
        *_uniform_checks(cell),
    ]


def _indrnn(key: PRNGKeyArray) -> IndRNNCell:
    cell = IndRNNCell(3, 5, recurrent_range=(-1.0, 1.0), key=key)
    weight, bias = _draw(key, (5, 3), (5,))
    return _with(cell, input=weight, bias=bias)


def _indrnn_oracle(cell: IndRNNCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    u, W, b = map(np.asarray, (cell.recurrent, cell.input, cell.bias))
    return indrnn_oracle(x, state, u=u, W=W, b=b)


def _indrnn_invariants(key: PRNGKeyArray) -> list[Check]:
    steps, low, high = 30, 2 ** (-1 / 30), 2 ** (1 / 30)
    with jax.enable_x64(True):
        cell = IndRNNCell(3, 8, recurrent_range=(-high, high), key=key)
        weight, h, xs = _draw(key, (8, 3), (8,), (steps, 3))
        u = np.linspace(-high, high, 8)
        cell = _with(
            _in_double(cell),
            recurrent=jnp.asarray(u),
            input=weight / 10,
            bias=jnp.full(8, 20.0),  # every unit stays above zero
        )
        jacobian = _jacobian(lambda h: _run(cell, xs, h)[0], 10 + h / 10)
    first = IndRNNCell(16, 256, recurrent_range=(0.0, high), key=key)
    last = IndRNNCell(16, 256, recurrent_range=(low, high), key=key)
    return [
        Check(
            "no unit depends on another's past",
            _largest(jacobian - np.diag(np.diag(jacobian))),
            0.0,
        ),
        Check("|u| ≤ 2^(1/T) keeps |∂h_T/∂h_0| at 2", _largest(jacobian), 2 + 1e-12),
        Check(
            "∂h_T/∂h_0 of active units is u^T",
            relative_error(np.diag(jacobian), u**steps),
            1e-12,
        ),
        _follows("initial u of the first layers", first.recurrent, _uniform_cdf(0.0, high)),
        _follows("initial u of the last layer", last.recurrent, _uniform_cdf(low, high)),
        _follows("initial W", last.input, _normal_cdf(0.001)),
    ]


def _lstm(key: PRNGKeyArray) -> LongShortTermMemoryCell:
    return LongShortTermMemoryCell(3, 5, key=key)


def _lstm_oracle(cell: LongShortTermMemoryCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    names = "ifgo"
    named = {f"U_{name}": w for name, w in zip(names, np.asarray(cell.recurrent), strict=True)}
    named |= {f"W_{name}": w for name, w in zip(names, np.asarray(cell.input), strict=True)}
    named |= {f"b_{name}": b for name, b in zip(names, np.asarray(cell.bias), strict=True)}
    return lstm_oracle(x, state, **named)


def _lstm_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = LongShortTermMemoryCell(7, 20, key=key)
    h, c, xs = _draw(key, (20,), (20,), (50, 7))
    holding = _with(cell, bias=cell.bias.at[0].set(-_OPEN).at[1].set(_OPEN))
    (_, held), _ = _run(holding, xs, (h, c))
    retained = _jacobian(lambda c: cell(jnp.zeros(7), (jnp.zeros(20), c))[0][1], c)
    others = cell.bias[jnp.array([0, 2, 3])]
    limit = 1 / math.sqrt(20)
    return [
        Check("f = 1, i = 0 keep c to the bit", _largest(held - c), 0.0),
        Check(
            "at first c is forgotten at the rate of a bias of one",
            relative_error(retained, scipy.special.expit(1) * np.eye(20)),
            1e-6,
        ),
        _follows("initial weights", cell.recurrent, _uniform_cdf(-limit, limit)),
        _follows("initial weights of the input", cell.input, _uniform_cdf(-limit, limit)),
        _follows("initial biases of the other gates", others, _uniform_cdf(-limit, limit)),
    ]


def _gru(key: PRNGKeyArray) -> GatedRecurrentUnitCell:
    return GatedRecurrentUnitCell(3, 5, key=key)


def _gru_oracle(cell: GatedRecurrentUnitCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    U_r, U_z, U = np.asarray(cell.recurrent)
    W_r, W_z, W = np.asarray(cell.input)
    b_r, b_z, b = np.asarray(cell.bias)
    b_n = np.asarray(cell.candidate_bias)
    return gru_cudnn_oracle(
        x, state, W_r=W_r, W_z=W_z, W=W, U_r=U_r, U_z=U_z, U=U, b_r=b_r, b_z=b_z, b=b, b_n=b_n
    )


def _gru_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = GatedRecurrentUnitCell(7, 20, key=key)
    diagonal = _with(
        cell,
        recurrent=cell.recurrent.at[2].multiply(jnp.eye(20)),
        candidate_bias=jnp.zeros(20),
    )
    cho = _with(
        ChoGatedRecurrentUnitCell(7, 20, key=key),
        recurrent=diagonal.recurrent,
        input=diagonal.input,
        bias=diagonal.bias,
    )
    h, xs = _draw(key, (20,), (9, 7))
    limit = 1 / math.sqrt(20)
    return [
        *_gate_checks(cell, key),
        Check(
            "with a diagonal matrix both forms agree",
            relative_error(_run(diagonal, xs, h), _run(cho, xs, h)),
            2e-6,
        ),
        *(
            _follows(f"initial {name}", getattr(cell, name), _uniform_cdf(-limit, limit))
            for name in ("recurrent", "input", "bias")
        ),
    ]


def _cho(key: PRNGKeyArray) -> ChoGatedRecurrentUnitCell:
    weight, bias = _draw(key, (3, 5, 3), (3, 5))
    return _with(ChoGatedRecurrentUnitCell(3, 5, key=key), input=weight, bias=bias)


def _cho_oracle(cell: ChoGatedRecurrentUnitCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    U_r, U_z, U = np.asarray(cell.recurrent)
    W_r, W_z, W = np.asarray(cell.input)
    b_r, b_z, b = np.asarray(cell.bias)
    return gru_cho_oracle(
        x, state, W_r=W_r, W_z=W_z, W=W, U_r=U_r, U_z=U_z, U=U, b_r=b_r, b_z=b_z, b=b
    )


def _cho_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = ChoGatedRecurrentUnitCell(7, 20, key=key)
    recurrent = np.asarray(cell.recurrent, np.float64)
    return [
        *_gate_checks(cell, key),
        Check(
            "recurrent matrices start orthogonal",
            _largest(recurrent @ recurrent.swapaxes(1, 2) - np.eye(20)),
            1e-5,
        ),
        Check(
            "and differ from one another",
            1 - float(np.linalg.norm(recurrent[0] - recurrent[1]) / math.sqrt(40)),
            0.5,
        ),
        _follows("initial input", cell.input, _normal_cdf(0.01)),
    ]


def _gate_checks(
    cell: GatedRecurrentUnitCell | ChoGatedRecurrentUnitCell, key: PRNGKeyArray
) -> list[Check]:
    """Gates r and z that are shut, open, or do not see the state."""
    h, xs = _draw(key, (2, cell.hdim), (9, cell.idim))
    kept, _ = _run(_with(cell, bias=cell.bias.at[1].set(_OPEN)), xs, h[0])

    blind = _with(cell, recurrent=cell.recurrent.at[1].set(0), bias=cell.bias.at[0].set(-_OPEN))
    after, other = (_run(blind, xs[:1], each)[0] for each in h)
    z = jax.nn.sigmoid(cell.input[1] @ xs[0] + cell.bias[1])

    bias = cell.bias[2]
    if isinstance(cell, GatedRecurrentUnitCell):
        bias = bias + cell.candidate_bias
    elman = _with(
        ElmanRNNCell(cell.idim, cell.hdim, key=key),
        recurrent=cell.recurrent[2],
        input=cell.input[2],
        bias=bias,
    )
    plain = _with(cell, bias=cell.bias.at[0].set(_OPEN).at[1].set(-_OPEN))
    return [
        Check("z = 1 copies the state", _largest(kept - h[0]), 0.0),
        Check(
            "r = 0 hides the state from the candidate",
            relative_error(after - other, z * (h[0] - h[1])),
            1e-6,
        ),
        Check(
            "r = 1, z = 0 are Elman's network",
            relative_error(_run(plain, xs, h[0]), _run(elman, xs, h[0])),
            2e-6,
        ),
    ]


def _antisymmetric(key: PRNGKeyArray) -> AntiSymmetricRNNCell:
    cell = AntiSymmetricRNNCell(3, 5, epsilon=0.4, gamma=0.2, key=key)
    return _with(cell, bias=_draw(key, (5,))[0])


def _antisymmetric_oracle(
    cell: AntiSymmetricRNNCell, x: Doubles, state: Any
) -> tuple[Any, Doubles]:
    W, V, b = map(np.asarray, (cell.recurrent, cell.input, cell.bias))
    gamma, epsilon = map(np.asarray, (cell.gamma, cell.epsilon))
    return antisymmetric_oracle(x, state, W=W, V=V, b=b, gamma=gamma, epsilon=epsilon)


def _antisymmetric_invariants(key: PRNGKeyArray) -> list[Check]:
    checks = [
        _follows(f"initial W of σ = {std}", cell.recurrent, _normal_cdf(std / math.sqrt(40)))
        for std in (1.0, 4.0)
        for cell in [AntiSymmetricRNNCell(7, 40, recurrent_std=std, key=key)]
    ]
    cell = AntiSymmetricRNNCell(49, 40, key=key)
    checks.append(_follows("initial V", cell.input, _normal_cdf(1 / 7)))
    with jax.enable_x64(True):
        cell = _in_double(AntiSymmetricRNNCell(3, 9, gamma=0.25, recurrent_std=2.0, key=key))
        h, x = _draw(key, (9,), (3,))
        checks.append(_real_parts("M", cell.weights().recurrent, -0.25))
        for gamma in (0.0, 0.25):
            moved = _with(cell, gamma=jnp.array(gamma))
            epsilon = float(moved.epsilon)
            jacobian = _jacobian(lambda h, cell=moved: cell(x, h)[0], h)
            real = np.linalg.eigvals((jacobian - np.eye(9)) / epsilon).real
            slopes = 1 - np.asarray((moved(x, h)[0] - h) / epsilon) ** 2
            outside = max(
                np.max(real + gamma * np.min(slopes)), np.max(-gamma * np.max(slopes) - real)
            )
            checks.append(
                Check(
                    f"Re eig of the Jacobian, γ = {gamma}, beyond [-γ max D, -γ min D]",
                    float(outside),
                    1e-10,
                )
            )
    return checks


def _gated_antisymmetric(key: PRNGKeyArray) -> GatedAntiSymmetricRNNCell:
    cell = GatedAntiSymmetricRNNCell(3, 5, epsilon=0.4, gamma=0.2, key=key)
    return _with(cell, bias=_draw(key, (2, 5))[0])


def _gated_antisymmetric_oracle(
    cell: GatedAntiSymmetricRNNCell, x: Doubles, state: Any
) -> tuple[Any, Doubles]:
    (V, V_z), (b, b_z) = map(np.asarray, (cell.input, cell.bias))
    W, gamma, epsilon = map(np.asarray, (cell.recurrent, cell.gamma, cell.epsilon))
    return gated_antisymmetric_oracle(
        x, state, W=W, V=V, b=b, V_z=V_z, b_z=b_z, gamma=gamma, epsilon=epsilon
    )


def _gated_antisymmetric_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = GatedAntiSymmetricRNNCell(49, 40, key=key)
    plain = _with(
        AntiSymmetricRNNCell(49, 40, key=key),
        recurrent=cell.recurrent,
        input=cell.input[0],
        bias=cell.bias[0],
    )
    with jax.enable_x64(True):
        double = _in_double(GatedAntiSymmetricRNNCell(3, 9, gamma=0.25, key=key))
        real_parts = _real_parts("M", double.weights().recurrent, -0.25)
    return [
        real_parts,
        *_same_when_open_and_still_when_shut(cell, plain, key),
        _follows("initial W", cell.recurrent, _normal_cdf(1 / math.sqrt(40))),
        _follows("initial V and V_z", cell.input, _normal_cdf(1 / 7)),
    ]


def _clockwork(key: PRNGKeyArray) -> ClockWorkRNNCell:
    cell = ClockWorkRNNCell(2, 9, periods=(3, 1, 2), key=key)
    recurrent, weight, bias = _draw(key, (9, 9), (9, 2), (9,))
    return _with(cell, recurrent=recurrent / 3, input=weight, bias=bias)


def _clockwork_oracle(cell: ClockWorkRNNCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    W, V, b = map(np.asarray, (cell.recurrent, cell.input, cell.bias))
    h, t = state
    (h, t), ys = clockwork_oracle(x, (h, int(t)), W=W, V=V, b=b, periods=cell.periods)
    return (h, np.int32(t % math.lcm(*cell.periods))), ys


def _clockwork_invariants(key: PRNGKeyArray) -> list[Check]:
    cell = _clockwork(key)
    h, xs = _draw(key, (9,), (25, 2))
    start = (h, jnp.array(0, jnp.int32))
    (_, clock), ys = _run(cell, xs, start)
    states = np.concatenate([h[None], ys])
    active = np.arange(25)[:, None] % np.repeat([1, 2, 3], 3) == 0
    unchanged = states[1:] == states[:-1]
    every_step = ClockWorkRNNCell(2, 9, periods=(1, 1, 1), key=key)
    slow, fast = np.arange(9) >= 6, np.arange(9) < 6

    def slow_groups(parameters: list[Array]) -> Float[Array, ""]:
        changed = eqx.tree_at(_parameters, cell, parameters)
        return jnp.sum(_run(changed, xs, start)[0][0][6:] ** 2)

    gradients = map(np.asarray, jax.jit(jax.grad(slow_groups))(_parameters(cell)))
    recurrent, weight, bias = gradients
    to_fast = [recurrent[fast], recurrent[np.ix_(slow, fast)], weight[fast], bias[fast]]
    to_slow = [recurrent[np.ix_(slow, slow)], weight[slow], bias[slow]]
    return [
        Check("inactive groups that change by a bit", float(np.sum(~unchanged & ~active)), 0.0),
        Check("active groups that do not change", float(np.sum(unchanged & active)), 0.0),
        Check("the clock stays within its common multiple", abs(float(clock) - 25 % 6), 0.0),
        Check(
            "periods of one are Elman's network",
            relative_error(_run(every_step, xs, start)[1], _run(_elman_of(every_step), xs, h)[1]),
            1e-6,
        ),
        Check("gradient from slow groups to fast", max(map(_largest, to_fast)), 0.0),
        Check("none from slow groups to themselves", -min(map(_largest, to_slow)), -1e-3),
        _follows("initial weights", ClockWorkRNNCell(7, 40, key=key).recurrent, _normal_cdf(0.1)),
    ]


def _lipschitz(method: Any) -> Callable[[PRNGKeyArray], LipschitzRNNCell]:
    def build(key: PRNGKeyArray) -> LipschitzRNNCell:
        cell = LipschitzRNNCell(
            *(3, 5),
            epsilon=0.3,
            beta=(0.6, 0.9),
            gamma=(0.2, 0.4),
            init_std=2.0,
            method=method,
            key=key,
        )
        return _with(cell, bias=_draw(key, (5,))[0])

    return build


def _lipschitz_oracle(cell: LipschitzRNNCell, x: Doubles, state: Any) -> tuple[Any, Doubles]:
    U, b = map(np.asarray, (cell.input, cell.bias))
    return lipschitz_oracle(x, state, U=U, b=b, **_lipschitz_parameters(cell))


def _lipschitz_invariants(method: Any, order: int) -> Callable[[PRNGKeyArray], list[Check]]:
    def invariants(key: PRNGKeyArray) -> list[Check]:
        cell = LipschitzRNNCell(7, 40, init_std=8.0, key=key)
        checks = [
            _order_of(_lipschitz(method)(key), _lipschitz_slope, order, key),
            _follows("initial M", cell.recurrent, _normal_cdf(8 / 40)),
            _follows("initial U", cell.input, _normal_cdf(math.sqrt(2 / 47))),
        ]
        with jax.enable_x64(True):
            cell = _in_double(_lipschitz(method)(key))
            beta, gamma = map(np.asarray, (cell.beta, cell.gamma))
            for i, name in enumerate("AW"):
                m = np.asarray(cell.recurrent[i])
                matrix = np.split(np.asarray(cell.weights().recurrent), 2)[i]
                symmetric = np.linalg.eigvalsh((matrix + matrix.T) / 2)
                expected = (1 - beta[i]) * np.linalg.eigvalsh(m + m.T) - gamma[i]
                checks.append(
                    Check(
                        f"eig of ({name} + {name}ᵀ)/2 is (1-β) eig(M + Mᵀ) - γ",
                        relative_error(symmetric, expected),
                        1e-12,
                    )
                )
            cell = _with(cell, beta=jnp.ones(2), gamma=jnp.full(2, 0.25))
            A, W = jnp.split(cell.weights().recurrent, 2)
            checks += [_real_parts("A for β = 1", A, -0.25), _real_parts("W for β = 1", W, -0.25)]
        return checks

    return invariants


def _gated_lipschitz(method: Any) -> Callable[[PRNGKeyArray], GatedLipschitzRNNCell]:
    def build(key: PRNGKeyArray) -> GatedLipschitzRNNCell:
        cell = GatedLipschitzRNNCell(
            *(3, 5),
            epsilon=0.3,
            beta=(0.6, 0.9),
            gamma=(0.2, 0.4),
            init_std=2.0,
            method=method,
            key=key,
        )
        return _with(cell, bias=_draw(key, (2, 5))[0])

    return build


def _gated_lipschitz_oracle(
    cell: GatedLipschitzRNNCell, x: Doubles, state: Any
) -> tuple[Any, Doubles]:
    (U, U_z), (b, b_z) = map(np.asarray, (cell.input, cell.bias))
    return gated_lipschitz_oracle(
        x, state, U=U, b=b, U_z=U_z, b_z=b_z, **_lipschitz_parameters(cell)
    )


def _gated_lipschitz_invariants(method: Any, order: int) -> Callable[[PRNGKeyArray], list[Check]]:
    def invariants(key: PRNGKeyArray) -> list[Check]:
        cell = _gated_lipschitz(method)(key)
        plain = _with(
            _lipschitz(method)(key),
            recurrent=cell.recurrent,
            input=cell.input[0],
            bias=cell.bias[0],
        )
        large = GatedLipschitzRNNCell(7, 40, init_std=8.0, key=key)
        return [
            _order_of(cell, _gated_lipschitz_slope, order, key),
            *_same_when_open_and_still_when_shut(cell, plain, key),
            _follows("initial M", large.recurrent, _normal_cdf(8 / 40)),
            _follows("initial U and U_z", large.input, _normal_cdf(math.sqrt(2 / 47))),
        ]

    return invariants


def _lipschitz_parameters(cell: LipschitzRNNCell | GatedLipschitzRNNCell) -> dict[str, Any]:
    M_A, M_W = np.asarray(cell.recurrent)
    beta_A, beta_W = np.asarray(cell.beta)
    gamma_A, gamma_W = np.asarray(cell.gamma)
    return {
        **{"M_A": M_A, "M_W": M_W, "beta_A": beta_A, "beta_W": beta_W},
        **{"gamma_A": gamma_A, "gamma_W": gamma_W},
        **{"epsilon": np.asarray(cell.epsilon), "method": cell.method},
    }


def _lipschitz_slope(cell: LipschitzRNNCell, h: Doubles, x: Doubles) -> Doubles:
    A, W = _lipschitz_matrices(cell)
    return A @ h + np.tanh(W @ h + np.asarray(cell.input) @ x + np.asarray(cell.bias))


def _gated_lipschitz_slope(cell: GatedLipschitzRNNCell, h: Doubles, x: Doubles) -> Doubles:
    A, W = _lipschitz_matrices(cell)
    candidate, gate = np.asarray(cell.input) @ x + np.asarray(cell.bias)
    return scipy.special.expit(W @ h + gate) * (A @ h + np.tanh(W @ h + candidate))


def _lipschitz_matrices(cell: LipschitzRNNCell | GatedLipschitzRNNCell) -> list[Doubles]:
    """A and W: M with its symmetric part times 2 (1 - β), its antisymmetric part times 2 β."""
    matrices = []
    for m, beta, gamma in zip(
        *map(np.asarray, (cell.recurrent, cell.beta, cell.gamma)), strict=True
    ):
        mirrored = (1 - beta) * (m + m.T) + beta * (m - m.T)
        matrices.append(mirrored - np.diag(np.full(len(m), gamma)))
    return matrices


def _order_of[C: LipschitzRNNCell | GatedLipschitzRNNCell](
    cell: C, slope: Callable[[C, Doubles, Doubles], Doubles], order: int, key: PRNGKeyArray
) -> Check:
    """Halving the step divides the error at time one by 2 to the order. The exact solution is by an
    adaptive method of order eight."""
    with jax.enable_x64(True):
        cell = _in_double(cell)
        h, x = _draw(key, (cell.hdim,), (cell.idim,))
        exact = scipy.integrate.solve_ivp(
            lambda _, h: slope(cell, h, np.asarray(x)),
            *((0, 1), np.asarray(h)),
            method="DOP853",
            rtol=1e-12,
            atol=1e-12,
        ).y[:, -1]

        def error(steps: int) -> float:
            finer = _with(cell, epsilon=jnp.array(1 / steps))
            return _largest(_run(finer, jnp.tile(x, (steps, 1)), h)[0] - exact)

        observed = math.log2(error(64) / error(128))
    return Check(f"order of {cell.method}, from {order}", abs(observed - order), 0.1)


def _same_when_open_and_still_when_shut(
    gated: GatedAntiSymmetricRNNCell | GatedLipschitzRNNCell, plain: Cell, key: PRNGKeyArray
) -> list[Check]:
    h, xs = _draw(key, (gated.hdim,), (9, gated.idim))
    ajar, shut = (_with(gated, bias=gated.bias.at[1].set(bias)) for bias in (2 * _OPEN, -2 * _OPEN))
    return [
        Check("an open gate is none", relative_error(_run(ajar, xs, h), _run(plain, xs, h)), 1e-6),
        Check("a shut gate copies the state", _largest(_run(shut, xs, h)[0] - h), 0.0),
    ]


def _real_parts(name: str, matrix: Float[Array, "hdim hdim"], expected: float) -> Check:
    real = np.real(np.linalg.eigvals(np.asarray(matrix)))
    return Check(f"Re eig {name} is {expected}", _largest(real - expected), 1e-12)


def _uniform_checks(cell: ElmanRNNCell | LeakyElmanCell | WilsonCowanCell) -> list[Check]:
    limit = 1 / math.sqrt(cell.hdim)
    names = ("recurrent", "input", "bias")
    return [
        _follows(f"initial {name}", getattr(cell, name), _uniform_cdf(-limit, limit))
        for name in names
    ]


def _follows(name: str, values: Array, cdf: Callable[[Doubles], Doubles]) -> Check:
    """The Kolmogorov-Smirnov distance; a sample of the distribution exceeds the bound three times
    in a million."""
    expected = cdf(np.sort(np.asarray(values, np.float64).ravel()))
    ranks = np.arange(expected.size + 1) / expected.size
    distance = max(np.max(expected - ranks[:-1]), np.max(ranks[1:] - expected))
    return Check(f"distribution of {name}", float(distance), 2.6 / math.sqrt(expected.size))


def _uniform_cdf(low: float, high: float) -> Callable[[Doubles], Doubles]:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def _normal_cdf(std: float) -> Callable[[Doubles], Doubles]:
    return lambda x: scipy.special.ndtr(x / std)


def _parameters(cell: Any) -> list[Array]:
    return [cell.recurrent, cell.input, cell.bias]


def _elman_of(cell: LeakyElmanCell | WilsonCowanCell | ClockWorkRNNCell) -> ElmanRNNCell:
    """Elman's network with the parameters of another cell."""
    elman = ElmanRNNCell(cell.idim, cell.hdim, key=jax.random.key(0))
    return eqx.tree_at(_parameters, elman, _parameters(cell))


def _with[C: Cell](cell: C, **arrays: Array) -> C:
    """The cell with other arrays."""
    return eqx.tree_at(lambda cell: [getattr(cell, n) for n in arrays], cell, [*arrays.values()])


def _in_double[C: Cell](cell: C) -> C:
    return jax.tree.map(lambda x: x.astype(jnp.float64), cell)


def _draw(key: PRNGKeyArray, *shapes: tuple[int, ...]) -> list[Array]:
    """Standard normal arrays, in float64 under `jax.enable_x64`."""
    keys = jax.random.split(jax.random.fold_in(key, 1), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@eqx.filter_jit
def _run(cell: Cell, xs: Float[Array, "time idim"], state: Any) -> tuple[Any, Array]:
    return jax.lax.scan(lambda state, x: cell(x, state), state, xs)


def _jacobian(fn: Callable[[Array], Array], x: Array) -> Doubles:
    return np.asarray(jax.jit(jax.jacfwd(fn))(x), np.float64)


def _largest(x: ArrayLike | PyTree) -> float:
    return float(np.max(np.abs(x)))


DENSE_CELLS: list[CellSubject] = [
    CellSubject("ElmanRNNCell", "Elman 1990", _elman, _elman_oracle, _elman_invariants),
    CellSubject(
        "LeakyElmanCell",
        "Jaeger et al. 2007",
        _leaky_elman,
        _leaky_elman_oracle,
        _leaky_elman_invariants,
    ),
    CellSubject(
        "WilsonCowanCell",
        "Wilson and Cowan 1972",
        _wilson_cowan,
        _wilson_cowan_oracle,
        _wilson_cowan_invariants,
    ),
    CellSubject("IndRNNCell", "Li et al. 2018", _indrnn, _indrnn_oracle, _indrnn_invariants),
    CellSubject(
        "LongShortTermMemoryCell",
        "Hochreiter and Schmidhuber 1997, Gers et al. 2000",
        _lstm,
        _lstm_oracle,
        _lstm_invariants,
    ),
    CellSubject("GatedRecurrentUnitCell", "Cho et al. 2014", _gru, _gru_oracle, _gru_invariants),
    CellSubject("ChoGatedRecurrentUnitCell", "Cho et al. 2014", _cho, _cho_oracle, _cho_invariants),
    CellSubject(
        "AntiSymmetricRNNCell",
        "Chang et al. 2019",
        _antisymmetric,
        _antisymmetric_oracle,
        _antisymmetric_invariants,
    ),
    CellSubject(
        "GatedAntiSymmetricRNNCell",
        "Chang et al. 2019",
        _gated_antisymmetric,
        _gated_antisymmetric_oracle,
        _gated_antisymmetric_invariants,
    ),
    CellSubject(
        "ClockWorkRNNCell",
        "Koutník et al. 2014",
        _clockwork,
        _clockwork_oracle,
        _clockwork_invariants,
    ),
    CellSubject(
        "LipschitzRNNCell euler",
        "Erichson et al. 2021",
        _lipschitz("euler"),
        _lipschitz_oracle,
        _lipschitz_invariants("euler", 1),
    ),
    CellSubject(
        "LipschitzRNNCell rk2",
        "Erichson et al. 2021",
        _lipschitz("rk2"),
        _lipschitz_oracle,
        _lipschitz_invariants("rk2", 2),
    ),
    CellSubject(
        "GatedLipschitzRNNCell euler",
        "Erichson et al. 2021",
        _gated_lipschitz("euler"),
        _gated_lipschitz_oracle,
        _gated_lipschitz_invariants("euler", 1),
    ),
    CellSubject(
        "GatedLipschitzRNNCell rk2",
        "Erichson et al. 2021",
        _gated_lipschitz("rk2"),
        _gated_lipschitz_oracle,
        _gated_lipschitz_invariants("rk2", 2),
    ),
]
