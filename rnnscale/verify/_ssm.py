"""What the papers promise of LRU and S5: initialisation, stability, discretisation."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from rnnscale.ssm import LRU, S5, BidirectionalS5, hippo_legs, hippo_normal
from rnnscale.verify._check import Check, relative_error
from rnnscale.verify._oracles import lru_oracle, s5_oracle


def matches_oracle(
    layer: LRU | S5 | BidirectionalS5,
    xs: Float[Array, "time idim"],
    reset: NDArray[np.bool_] | None = None,
    bound: float = 1e-5,
    *,
    intervals: NDArray[np.floating] | None = None,
) -> Check:
    """Outputs and last state of one sequence against the double-precision oracle. `intervals` are
    for S5."""
    options = {} if intervals is None else {"intervals": intervals}
    run = eqx.filter_jit(lambda layer, xs, **options: layer(xs, **options))
    state, ys = run(layer, xs, reset=reset, **options)
    if isinstance(layer, BidirectionalS5):
        state, _ = state
    got = (_complex(*state), ys)
    expected = _oracle(layer, np.asarray(xs), reset, intervals)
    return Check(f"{type(layer).__name__} matches oracle", relative_error(got, expected), bound)


def gradient_matches_oracle(
    layer: LRU | S5 | BidirectionalS5,
    xs: Float[Array, "time idim"],
    key: PRNGKeyArray,
    bound: float = 1e-7,
    *,
    intervals: NDArray[np.floating] | None = None,
) -> Check:
    """The derivative of the outputs along a random direction of all parameters, inputs and, for S5,
    intervals, by our backward pass and by central differences of the oracle.

    Under `jax.enable_x64`, with a layer, inputs and intervals of float64.
    """
    leaves, structure = jax.tree.flatten((layer, xs, intervals))
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    direction = [random.standard_normal(leaf.shape) for leaf in leaves]
    weights = random.standard_normal((xs.shape[0], layer.odim))

    @jax.jit
    @jax.grad
    def gradient(leaves: list[Array]) -> Array:
        layer, xs, intervals = jax.tree.unflatten(structure, leaves)
        options = {} if intervals is None else {"intervals": intervals}
        return jnp.sum(weights * layer(xs, **options)[1])

    def shifted(distance: float) -> float:
        moved = [np.asarray(x) + distance * v for x, v in zip(leaves, direction, strict=True)]
        layer, xs, intervals = jax.tree.unflatten(structure, moved)
        return float(np.sum(weights * _oracle(layer, np.asarray(xs), None, intervals)[1]))

    slope = sum(np.vdot(*pair) for pair in zip(gradient(leaves), direction, strict=True))
    # Of fourth order: phases turn fast, so the plain difference is good for six digits only.
    h = 3e-5
    near, far = shifted(h) - shifted(-h), shifted(2 * h) - shifted(-2 * h)
    expected = (8 * near - far) / (12 * h)
    error = relative_error(np.float64(slope), np.float64(expected))
    return Check(f"{type(layer).__name__} gradient matches oracle", error, bound)


def _oracle(
    layer: LRU | S5 | BidirectionalS5,
    u: NDArray[np.floating],
    reset: NDArray[np.bool_] | None,
    intervals: NDArray[np.floating] | None,
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    if intervals is not None:
        if not isinstance(layer, S5):
            raise TypeError(f"{type(layer).__name__} takes no intervals")
        return _continuous_oracle(layer, u, reset, intervals)
    if isinstance(layer, LRU):
        return lru_oracle(
            u,
            nu_log=np.asarray(layer.nu_log),
            theta_log=np.asarray(layer.theta_log),
            gamma_log=np.asarray(layer.gamma_log),
            b=_complex(layer.b_re, layer.b_im),
            c=_complex(layer.c_re, layer.c_im),
            d=_numpy(layer.d),
            reset=reset,
        )
    c_backward = None
    if isinstance(layer, BidirectionalS5):
        c_backward = _complex(layer.c_backward_re, layer.c_backward_im)
        layer = layer.forward
    return s5_oracle(
        u,
        eigenvalues=_complex(layer.lambda_re, layer.lambda_im),
        log_step=np.asarray(layer.log_step),
        b=_complex(layer.b_re, layer.b_im),
        c=_complex(layer.c_re, layer.c_im),
        d=_numpy(layer.d),
        discretisation=layer.discretisation,
        step_rescale=float(layer.step_rescale),
        c_backward=c_backward,
        reset=reset,
    )


def _continuous_oracle(
    layer: S5,
    u: NDArray[np.floating],
    reset: NDArray[np.bool_] | None,
    intervals: NDArray[np.floating],
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    r"""$\dot x = \lambda x + b$ solved over one interval after another, in every state's own time:
    with the input held, by the exponential of a matrix that takes $(x, 1)$ along; or by the
    trapezoidal rule, which is what bilinear means."""
    eigenvalues = _complex(layer.lambda_re, layer.lambda_im)
    step = float(layer.step_rescale) * np.exp(np.asarray(layer.log_step, np.float64))
    inputs = np.asarray(u, np.float64) @ _complex(layer.b_re, layer.b_im).T
    x, states = np.zeros_like(eigenvalues), []
    for t, b in enumerate(inputs):
        if reset is not None and reset[t]:
            x = np.zeros_like(x)
        time = step * np.float64(intervals[t])
        if layer.discretisation == "zoh":
            system = np.zeros((len(x), 2, 2), np.complex128)
            system[:, 0, 0], system[:, 0, 1] = time * eigenvalues, time * b
            solution = scipy.linalg.expm(system)
            x = solution[:, 0, 0] * x + solution[:, 0, 1]
        else:
            half = time * eigenvalues / 2
            x = ((1 + half) * x + time * b) / (1 - half)
        states.append(x)
    skip = 0.0 if layer.d is None else np.asarray(layer.d, np.float64) * np.asarray(u, np.float64)
    return x, 2 * (np.array(states) @ _complex(layer.c_re, layer.c_im).T).real + skip


def decay_below_one(layer: LRU | S5) -> Check:
    """The magnitude of the discrete decay stays below one whatever the parameters.

    The figure is the largest over all combinations of extreme and ordinary float32 values, in
    place of the layer's own; the bound is the spacing of float32 below one.
    """
    sizes = [0.0, 1e-30, 1e-7, 1e-3, 0.5, 5.0, 16.0, 60.0, 200.0, 1e5, 1e30, 3e38]
    values = np.unique(np.array([sizes, np.negative(sizes)], np.float32))
    if isinstance(layer, LRU):
        names = ["nu_log", "theta_log"]
    else:
        names = ["lambda_re", "lambda_im", "log_step"]
    grid = [jnp.asarray(axis.ravel()) for axis in np.meshgrid(*[values] * len(names))]
    b = jnp.zeros((grid[0].size, layer.idim), jnp.float32)
    changed = dict(zip(names, grid, strict=True)) | {"b_re": b, "b_im": b}
    if isinstance(layer, LRU):
        changed["gamma_log"] = jnp.zeros_like(grid[0])
    layer = _replace(layer, changed)
    decay, _, _ = eqx.filter_jit(lambda layer: layer.discretise())(layer)
    excess = np.max(np.abs(_complex(*decay))) - 1
    return Check(f"{type(layer).__name__} |decay| - 1", float(excess), -(2.0**-24))


def ring_is_uniform(key: PRNGKeyArray, r_min: float = 0.4, r_max: float = 0.9) -> list[Check]:
    """LRU decays start uniformly over the ring: |λ|² and the phase are uniform.

    The figures are Kolmogorov-Smirnov distances; a uniform sample exceeds the bound once in 1000.
    """
    layer = LRU(1, 4096, r_min=r_min, r_max=r_max, max_phase=2.0, key=key)
    decay = _complex(*layer.discretise()[0])
    square = (np.abs(decay) ** 2 - r_min**2) / (r_max**2 - r_min**2)
    bound = 1.95 / math.sqrt(decay.size)
    return [
        Check("LRU ring uniform in area", _distance_from_uniform(square), bound),
        Check("LRU phase uniform", _distance_from_uniform(np.angle(decay) / 2.0), bound),
    ]


def white_noise_power(key: PRNGKeyArray) -> Check:
    """White noise of unit power gives LRU states of unit power: E|h|² = 1, at the initial gamma."""
    layer_key, noise_key = jax.random.split(key)
    layer = LRU(64, 256, r_max=0.95, key=layer_key)
    noise = jax.random.normal(noise_key, (256, 128, 64), jnp.float32)
    state, _ = eqx.filter_jit(layer)(noise)
    power = np.mean(np.abs(_complex(*state)) ** 2)
    return Check("LRU white-noise power - 1", float(abs(power - 1)), 0.05)


def hippo_diagonalised(state_dim: int = 64) -> list[Check]:
    """V Λ Vᴴ = A_N, Vᴴ V = 1, Re Λ = -1/2, and the halves of Λ are conjugate."""
    eigenvalues, vectors = hippo_normal(state_dim)
    normal = _hippo_n(state_dim)
    half = state_dim // 2
    return [
        Check(
            "V Λ Vᴴ = HiPPO-N",
            relative_error((vectors * eigenvalues) @ vectors.conj().T, normal),
            1e-12,
        ),
        Check("Vᴴ V = 1", relative_error(vectors.conj().T @ vectors, np.eye(state_dim)), 1e-12),
        Check("Re Λ = -1/2", float(np.max(np.abs(eigenvalues.real + 0.5))), 1e-12),
        Check(
            "first half of Λ conjugate to the second",
            relative_error(eigenvalues[:half], eigenvalues[half:][::-1].conj()),
            1e-12,
        ),
        Check("Im Λ of the first half", float(np.max(eigenvalues[:half].imag)), 0.0),
    ]


def s5_kernel_is_hippo(key: PRNGKeyArray, state_dim: int = 16, bound: float = 1e-5) -> Check:
    r"""The impulse response of S5, from half the states, is that of the real HiPPO-N system.

    That system is $C A_d^k B_d$ with $A_d = e^{A\Delta}$, $B_d = A^{-1} (A_d - 1) B$: the layer's
    own B in its original basis, and a real C.
    """
    layer_key, c_key = jax.random.split(key)
    idim, odim, time, step = 3, 2, 64, 0.05
    layer = S5(idim, state_dim, odim, dt_min=step, dt_max=step, key=layer_key)
    _, vectors = hippo_normal(state_dim)
    half = vectors[:, : state_dim // 2]
    b = 2 * (half @ _complex(layer.b_re, layer.b_im)).real
    c = np.asarray(jax.random.normal(c_key, (odim, state_dim)), np.float64)
    c_half = c @ half
    layer = _replace(
        layer,
        {
            "c_re": jnp.asarray(c_half.real, jnp.float32),
            "c_im": jnp.asarray(c_half.imag, jnp.float32),
        },
    )
    impulses = jnp.zeros((idim, time, idim)).at[jnp.arange(idim), 0, jnp.arange(idim)].set(1.0)
    _, response = eqx.filter_jit(layer)(impulses)

    a = _hippo_n(state_dim)
    # The step as the layer holds it, rounded to float32 as a logarithm.
    a_discrete = scipy.linalg.expm(a * np.exp(np.float64(layer.log_step[0])))
    b_discrete = np.linalg.solve(a, (a_discrete - np.eye(state_dim)) @ b)
    expected = []
    for _ in range(time):
        expected.append(c @ b_discrete)
        b_discrete = a_discrete @ b_discrete
    expected = np.stack(expected).transpose(2, 0, 1)
    return Check("S5 kernel is HiPPO-N", relative_error(response, expected), bound)


def hippo_decay_rate(key: PRNGKeyArray) -> Check:
    """At the start every ZOH decay of S5 has the magnitude exp(-Δ/2)."""
    layer = S5(1, 64, blocks=4, key=key)
    step = np.exp(np.asarray(layer.log_step, np.float64))
    magnitude = np.abs(_complex(*layer.discretise()[0]))
    return Check("S5 |decay| = exp(-Δ/2)", relative_error(magnitude, np.exp(-step / 2)), 5e-7)


def bilinear_approaches_zoh(key: PRNGKeyArray) -> Check:
    """Halving Δ divides the difference of the two decays by 8: both are e^{λΔ} up to Δ³."""

    def difference(step: float) -> NDArray[np.float64]:
        held, bilinear = (
            S5(1, 8, dt_min=step, dt_max=step, discretisation=discretisation, key=key)
            for discretisation in ("zoh", "bilinear")
        )
        return np.abs(_complex(*held.discretise()[0]) - _complex(*bilinear.discretise()[0]))

    order = np.log2(np.max(difference(0.01)) / np.max(difference(0.005)))
    return Check("bilinear approaches ZOH at order 3", float(abs(order - 3)), 0.1)


def step_rescale_follows_rate(key: PRNGKeyArray) -> Check:
    """Every second sample with `step_rescale=2` gives about the outputs at all samples.

    The bound is the error of holding a slow sine for two samples; without rescaling it is about 1.
    """
    full = S5(1, 16, dt_min=1e-3, dt_max=1e-2, key=key)
    halved = S5(1, 16, dt_min=1e-3, dt_max=1e-2, step_rescale=2.0, key=key)
    time = jnp.arange(1024)
    xs = jnp.sin(2 * jnp.pi * time / 512)[:, None]
    # A slow sample is held for two fast ones, the second of which ends its interval.
    run = eqx.filter_jit(lambda layer, xs: layer(xs)[1])
    expected = run(full, xs)[1::2]
    return Check(
        "S5 step_rescale follows the rate", relative_error(run(halved, xs[::2]), expected), 0.05
    )


def _hippo_n(state_dim: int) -> NDArray[np.float64]:
    p = np.sqrt(np.arange(state_dim) + 0.5)
    return hippo_legs(state_dim) + np.outer(p, p)


def _distance_from_uniform(sample: NDArray[np.floating]) -> float:
    sample = np.sort(sample)
    grid = np.arange(sample.size + 1) / sample.size
    return float(max(np.max(sample - grid[:-1]), np.max(grid[1:] - sample)))


def _replace[Layer: eqx.Module](layer: Layer, changed: dict[str, Array]) -> Layer:
    return eqx.tree_at(
        lambda layer: [getattr(layer, name) for name in changed], layer, list(changed.values())
    )


def _complex(re: Array, im: Array) -> NDArray[np.complex128]:
    return np.asarray(re, np.float64) + 1j * np.asarray(im, np.float64)


def _numpy(x: Array | None) -> NDArray[np.floating] | None:
    return None if x is None else np.asarray(x)
