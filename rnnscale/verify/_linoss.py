"""LinOSS and D-LinOSS: their difference equations in NumPy, and the invariants of the layers."""

import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.ssm import DampedLinOSS, LinOSS, OscillatorState, OscillatorySSM
from rnnscale.verify._check import Check, agrees, follows, normal, parameters_follow, uniform
from rnnscale.verify._double import Doubles, as_complex, sigmoid
from rnnscale.verify._lru import skip
from rnnscale.verify._probe import build, generator, with_arrays

type Pair = tuple[NDArray[np.complex128], NDArray[np.complex128]]


def oracle(layer: Any, u: Doubles, reset: NDArray[np.bool_] | None = None) -> tuple[Pair, Doubles]:
    """Rusch, Rus 2025, equations 3 and 4, and Boyer et al. 2025: `(last (z, y), outputs)` for `u`
    of shape (time, idim). Complex forcing, and each step a linear system that is solved for the
    new velocity and position."""
    step = sigmoid(layer.step_logit)
    damped = isinstance(layer, DampedLinOSS)
    damping = np.maximum(layer.g, 0) if damped else 0.0
    stiffness = np.maximum(layer.a, 0)
    if damped or layer.discretisation == "imex":
        root = np.sqrt(1 + step * damping)
        low, high = (1 - 2 * root + root**2) / step**2, (1 + 2 * root + root**2) / step**2
        stiffness = np.clip(stiffness, low, (1 - 2.0**-20) * high)
    # What z' = -A y - G z + B u takes from the new state (matrix) and from the old one (pull).
    implicit = not damped and layer.discretisation == "im"
    matrix = np.zeros((layer.state_dim, 2, 2))
    matrix[:, 0, 0] = 1 + step * damping
    matrix[:, 0, 1] = step * stiffness if implicit else 0
    matrix[:, 1, 0], matrix[:, 1, 1] = -step, 1
    pull = 0 if implicit else stiffness

    forcing = u @ as_complex(layer.b_re, layer.b_im).T
    z = y = np.zeros(layer.state_dim, np.complex128)
    positions = []
    for t, force in enumerate(forcing):
        if reset is not None and reset[t]:
            z = y = np.zeros_like(z)
        right = np.stack([z + step * (force - pull * y), y], axis=-1)
        z, y = np.linalg.solve(matrix, right[..., None])[..., 0].T
        positions.append(y)
    ys = (np.array(positions) @ as_complex(layer.c_re, layer.c_im).T).real
    return (z, y), ys + skip(layer, u)


def invariants(layer: Any, key: PRNGKeyArray) -> Iterator[Check]:
    """What holds for every discretisation, of a layer and of any parameters in its place."""
    yield quadratic_form_follows_determinant(layer, key)
    yield spectral_radius_at_most_one(layer)


def quadratic_form_follows_determinant(layer: OscillatorySSM, key: PRNGKeyArray) -> Check:
    r"""Without an input, $q(z, y) = m_{yz} z^2 + (m_{yy} - m_{zz}) z y - m_{zy} y^2$ is multiplied
    by $\det M$ in every step, over 10,000 steps.

    That is the invariant of a matrix of two by two. For `"im"` it is the energy $z^2 + A y^2$, for
    `"imex"` the energy that the symplectic Euler scheme conserves.
    """
    time = 10_000
    random = generator(key)
    # With little damping, so that something is left at the end, and without eigenvalues near -1.
    if isinstance(layer, DampedLinOSS):
        layer = with_arrays(layer, g=1e-4 * layer.g, a=layer.a / 4)
    elif isinstance(layer, LinOSS) and layer.discretisation == "im":
        layer = with_arrays(layer, a=1e-4 * layer.a)
    xs: Any = np.zeros((time, layer.idim), np.float32)
    (zz, zy), (yz, yy) = jax.tree.map(np.float64, _matrix(layer))

    def form(state: OscillatorState) -> tuple[Doubles, ...]:
        pairs = [
            (np.float64(getattr(state.z, part)), getattr(state.y, part)) for part in ("re", "im")
        ]
        return tuple(yz * z**2 + (yy - zz) * z * y - zy * y**2 for z, y in pairs)

    start = jax.tree.map(
        lambda x: random.standard_normal(x.shape).astype(x.dtype), layer.init_state()
    )
    last, _ = jax.device_get(eqx.filter_jit(layer)(xs, start))
    decay = np.abs(zz * yy - zy * yz) ** time
    expected = [decay * q for q in form(start)]
    return agrees("energy over 10,000 steps", [*form(last)], expected, 2e-3)


def spectral_radius_at_most_one(layer: OscillatorySSM) -> Check:
    """No eigenvalue of a step is longer than one, whatever the parameters.

    The figure is the largest over all combinations of extreme and ordinary float32 values, in place
    of the layer's own, of the float32 matrices, whose rounding is the bound.
    """
    sizes = [0.0, 1e-30, 1e-7, 1e-3, 0.1, 0.5, 2.0, 3.99999, 4.0, 5.0, 16.0, 100.0, 1e5, 1e30, 3e38]
    values = np.unique(np.array([sizes, np.negative(sizes)], np.float32))
    names = ["a", "step_logit", *(["g"] if isinstance(layer, DampedLinOSS) else [])]
    grid = [axis.ravel() for axis in np.meshgrid(*[values] * len(names))]
    layer = with_arrays(layer, **dict(zip(names, grid, strict=True)))
    return Check(f"{type(layer).__name__} |eigenvalue| - 1", spectral_excess(layer), 2.0**-22)


def spectral_excess(layer: OscillatorySSM) -> float:
    """The largest magnitude of an eigenvalue of the layer's float32 matrices, minus one."""
    steps = matrices(layer)
    if not np.isfinite(steps).all():
        return math.inf
    return float(np.max(np.abs(np.linalg.eigvals(steps))) - 1)


def linoss_invariants(key: PRNGKeyArray) -> list[Check]:
    """The distributions of the initial parameters."""
    layer = build(lambda key: LinOSS(90, 80, key=key), key)
    return [
        *parameters_follow(layer, uniform(0, 1), "a", "step_logit"),
        *_maps_follow(layer),
    ]


def damped_invariants(key: PRNGKeyArray, r_min: float = 0.5, r_max: float = 0.95) -> list[Check]:
    """The distributions of the initial parameters, which put the eigenvalues on a ring, and what
    holds for any parameters: the damping alone sets the radius, and without it the layer is LinOSS
    with the scheme `imex`."""
    units = 2048
    layer = build(
        lambda key: DampedLinOSS(40, units, r_min=r_min, r_max=r_max, theta_max=2.0, key=key), key
    )
    (zz, zy), (yz, yy) = jax.tree.map(np.float64, _matrix(layer))
    square = zz * yy - zy * yz
    checks = [
        follows("|λ|² over the ring", square, uniform(r_min**2, r_max**2)),
        follows("the angle", np.arccos((zz + yy) / (2 * np.sqrt(square))), uniform(0, 2.0)),
        follows("initial step_logit", layer.step_logit, normal(0.5)),
        *_maps_follow(layer),
    ]

    random = generator(key)
    a, g = 10 * random.standard_normal((2, units))
    layer = with_arrays(layer, a=a, g=g)
    lengths = np.abs(np.linalg.eigvals(matrices(layer)))
    radius = (1 + sigmoid(np.float64(layer.step_logit)) * np.maximum(layer.g, 0)) ** -0.5
    checks.append(agrees("|λ|² = 1 / (1 + Δ G)", lengths.prod(axis=-1), radius**2, 1e-6))

    linoss = build(lambda key: LinOSS(1, units, discretisation="imex", key=key), key)
    linoss = with_arrays(linoss, a=layer.a, step_logit=layer.step_logit)
    layer = with_arrays(layer, g=np.minimum(layer.g, 0))
    checks.append(agrees("G = 0 is LinOSS imex", _matrix(layer), _matrix(linoss), 0.0))
    return checks


def _maps_follow(layer: OscillatorySSM) -> list[Check]:
    b, c = 1 / math.sqrt(layer.idim), 1 / math.sqrt(layer.state_dim)
    return [
        *parameters_follow(layer, uniform(-b, b), "b_re", "b_im"),
        *parameters_follow(layer, uniform(-c, c), "c_re", "c_im"),
        *parameters_follow(layer, normal(1.0), "d"),
    ]


def _matrix(layer: OscillatorySSM) -> Any:
    return jax.device_get(_discretise(layer))


@eqx.filter_jit
def _discretise(layer: OscillatorySSM) -> Any:
    return layer.discretise()[0]


def matrices(layer: OscillatorySSM) -> Doubles:
    """The matrices with the axes `state 2 2`, in double precision."""
    return np.moveaxis(np.array(_matrix(layer), np.float64), -1, 0)
