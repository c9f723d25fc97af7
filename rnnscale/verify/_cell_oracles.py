r"""The cells in double precision, written from their papers and nothing else.

Each oracle runs one sequence `x` of shape (time, idim) from `state`, one step of time after the
other, and returns `(last state, outputs)` with outputs of shape (time, odim). The output is the
new state h where nothing else is said. Parameters have the papers' names, one matrix a gate, and
act on columns: h of shape (hdim,), W of shape (hdim, hdim), V or U of shape (hdim, idim). An
absent bias is 0.

They use NumPy and share no code with the cells: the caller unpacks the cell's arrays. Arrays of
any floating dtype will do; all is computed in float64 or complex128.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import ArrayLike, NDArray

type Floats = NDArray[np.floating]
type Complexes = NDArray[np.complexfloating]
type Doubles = NDArray[np.float64]
type Bias = Floats | float
type Activation = Callable[[Doubles], Doubles]


def _in_double[Oracle: Callable](oracle: Oracle) -> Oracle:
    """The oracle with its floating arguments, those inside a state too, in double precision."""

    @functools.wraps(oracle)
    def in_double(*args, **kwargs):
        return oracle(*map(_double, args), **{name: _double(arg) for name, arg in kwargs.items()})

    return in_double  # pyright: ignore[reportReturnType]


def _double(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_double, value))
    if value is None or isinstance(value, str) or callable(value):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "iu":
        return value
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _run(step: Callable[[Any, Doubles], tuple[Any, Doubles]], x: Floats, state: Any) -> Any:
    outputs = []
    for inputs in x:
        state, output = step(state, inputs)
        outputs.append(output)
    return state, np.array(outputs)


def _relu(x: Any) -> Any:
    return np.maximum(x, 0.0)


def _sigmoid(x: Any) -> Any:
    return scipy.special.expit(x)


def _modrelu(z: Any, b: Bias) -> Any:
    # The sign of a complex number is z / |z|, and that of zero is zero.
    return np.sign(z) * _relu(np.abs(z) + b)


def _orthogonal(L: Any) -> Doubles:
    upper = np.triu(L, 1)
    return np.asarray(scipy.linalg.expm(upper - upper.T), np.float64)


@_in_double
def elman_oracle(
    x: Floats, state: Floats, *, W: Floats, V: Floats, b: Bias, act: Activation = np.tanh
) -> tuple[Doubles, Doubles]:
    r"""Elman 1990: $h' = \mathrm{act}(W h + V x + b)$."""

    def step(h, x):
        h = act(W @ h + V @ x + b)
        return h, h

    return _run(step, x, state)


@_in_double
def leaky_elman_oracle(
    x: Floats,
    state: Floats,
    *,
    W: Floats,
    V: Floats,
    b: Bias,
    alpha: Floats | float,
    act: Activation = np.tanh,
) -> tuple[Doubles, Doubles]:
    r"""Jaeger et al. 2007: $h' = (1-\alpha) h + \alpha\, \mathrm{act}(W h + V x + b)$."""

    def step(h, x):
        h = (1 - alpha) * h + alpha * act(W @ h + V @ x + b)
        return h, h

    return _run(step, x, state)


@_in_double
def wilson_cowan_oracle(
    x: Floats,
    state: Floats,
    *,
    W: Floats,
    V: Floats,
    b: Bias,
    alpha: Floats | float,
    act: Activation = np.tanh,
) -> tuple[Doubles, Doubles]:
    r"""Wilson and Cowan 1972, the rate equation of the membrane potential by Euler's method:
    $h' = (1-\alpha) h + \alpha (W\, \mathrm{act}(h) + V x + b)$.

    That is $\tau \dot h = -h + W\, \mathrm{act}(h) + V x + b$ with $\alpha = \Delta t / \tau$. The
    output is the potential h, not the rate act(h).
    """

    def step(h, x):
        h = (1 - alpha) * h + alpha * (W @ act(h) + V @ x + b)
        return h, h

    return _run(step, x, state)


@_in_double
def indrnn_oracle(
    x: Floats, state: Floats, *, u: Floats, W: Floats, b: Bias
) -> tuple[Doubles, Doubles]:
    r"""Li et al. 2018: $h' = \mathrm{relu}(u \odot h + W x + b)$, with W of shape (hdim, idim)."""

    def step(h, x):
        h = _relu(u * h + W @ x + b)
        return h, h

    return _run(step, x, state)


@_in_double
def lstm_oracle(
    x: Floats,
    state: tuple[Floats, Floats],
    *,
    W_i: Floats,
    W_f: Floats,
    W_g: Floats,
    W_o: Floats,
    U_i: Floats,
    U_f: Floats,
    U_g: Floats,
    U_o: Floats,
    b_i: Bias,
    b_f: Bias,
    b_g: Bias,
    b_o: Bias,
) -> tuple[tuple[Doubles, Doubles], Doubles]:
    r"""Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; state (h, c).

    $c' = f \odot c + i \odot g$ and $h' = o \odot \tanh c'$, with W of shape (hdim, idim) and U of
    shape (hdim, hdim).
    """

    def step(state, x):
        h, c = state
        i = _sigmoid(W_i @ x + U_i @ h + b_i)
        f = _sigmoid(W_f @ x + U_f @ h + b_f)
        g = np.tanh(W_g @ x + U_g @ h + b_g)
        o = _sigmoid(W_o @ x + U_o @ h + b_o)
        c = f * c + i * g
        h = o * np.tanh(c)
        return (h, c), h

    return _run(step, x, state)


@_in_double
def gru_cho_oracle(
    x: Floats,
    state: Floats,
    *,
    W_r: Floats,
    W_z: Floats,
    W: Floats,
    U_r: Floats,
    U_z: Floats,
    U: Floats,
    b_r: Bias,
    b_z: Bias,
    b: Bias,
) -> tuple[Doubles, Doubles]:
    r"""Cho et al. 2014, the reset before the product:
    $\tilde h = \tanh(W x + U (r \odot h) + b)$, $h' = z \odot h + (1 - z) \odot \tilde h$.

    W of shape (hdim, idim) and U of shape (hdim, hdim). The paper has no biases.
    """

    def step(h, x):
        r = _sigmoid(W_r @ x + U_r @ h + b_r)
        z = _sigmoid(W_z @ x + U_z @ h + b_z)
        candidate = np.tanh(W @ x + U @ (r * h) + b)
        h = z * h + (1 - z) * candidate
        return h, h

    return _run(step, x, state)


@_in_double
def gru_cudnn_oracle(
    x: Floats,
    state: Floats,
    *,
    W_r: Floats,
    W_z: Floats,
    W: Floats,
    U_r: Floats,
    U_z: Floats,
    U: Floats,
    b_r: Bias,
    b_z: Bias,
    b: Bias,
    b_n: Bias,
) -> tuple[Doubles, Doubles]:
    r"""The GRU of cuDNN, the reset after the product:
    $\tilde h = \tanh(W x + b + r \odot (U h + b_n))$, $h' = (1 - z) \odot \tilde h + z \odot h$.

    W of shape (hdim, idim) and U of shape (hdim, hdim).
    """

    def step(h, x):
        r = _sigmoid(W_r @ x + U_r @ h + b_r)
        z = _sigmoid(W_z @ x + U_z @ h + b_z)
        candidate = np.tanh(W @ x + b + r * (U @ h + b_n))
        h = (1 - z) * candidate + z * h
        return h, h

    return _run(step, x, state)


@_in_double
def antisymmetric_oracle(
    x: Floats,
    state: Floats,
    *,
    W: Floats,
    V: Floats,
    b: Bias,
    gamma: Floats | float,
    epsilon: Floats | float,
) -> tuple[Doubles, Doubles]:
    r"""Chang et al. 2019: $h' = h + \epsilon \tanh((W - W^T - \gamma I) h + V x + b)$."""
    M = W - W.T - gamma * np.eye(W.shape[0])

    def step(h, x):
        h = h + epsilon * np.tanh(M @ h + V @ x + b)
        return h, h

    return _run(step, x, state)


@_in_double
def gated_antisymmetric_oracle(
    x: Floats,
    state: Floats,
    *,
    W: Floats,
    V: Floats,
    b: Bias,
    V_z: Floats,
    b_z: Bias,
    gamma: Floats | float,
    epsilon: Floats | float,
) -> tuple[Doubles, Doubles]:
    r"""Chang et al. 2019, with a gate that shares $M = W - W^T - \gamma I$:
    $z = \sigma(M h + V_z x + b_z)$, $h' = h + \epsilon z \odot \tanh(M h + V x + b)$.
    """
    M = W - W.T - gamma * np.eye(W.shape[0])

    def step(h, x):
        z = _sigmoid(M @ h + V_z @ x + b_z)
        h = h + epsilon * z * np.tanh(M @ h + V @ x + b)
        return h, h

    return _run(step, x, state)


@_in_double
def clockwork_oracle(
    x: Floats,
    state: tuple[Floats, int],
    *,
    W: Floats,
    V: Floats,
    b: Bias,
    periods: Sequence[int],
    act: Activation = np.tanh,
) -> tuple[tuple[Doubles, int], Doubles]:
    r"""Koutník et al. 2014; state (h, t), where t counts the steps taken.

    The rows of h are equal groups, one a period, in ascending order of the periods. Group i is
    active where $t \bmod T_i = 0$; otherwise it is copied. Active groups hear those at least as
    slow: $h'_i = \mathrm{act}(\sum_{j: T_j \ge T_i} W_{ij} h_j + V_i x + b_i)$. W is whole, and the
    blocks that the sum leaves out are not read.
    """
    ordered = sorted(int(period) for period in periods)
    groups = np.split(np.arange(W.shape[0]), len(ordered))
    biases = np.broadcast_to(b, W.shape[:1])

    def step(state, x):
        h, t = state
        new = h.copy()
        for period, rows in zip(ordered, groups, strict=True):
            if t % period == 0:
                total = V[rows] @ x + biases[rows]
                for other_period, columns in zip(ordered, groups, strict=True):
                    if other_period >= period:
                        total = total + W[np.ix_(rows, columns)] @ h[columns]
                new[rows] = act(total)
        return (new, t + 1), new

    return _run(step, x, state)


@_in_double
def lipschitz_oracle(
    x: Floats,
    state: Floats,
    *,
    M_A: Floats,
    M_W: Floats,
    U: Floats,
    b: Bias,
    beta_A: Floats | float,
    beta_W: Floats | float,
    gamma_A: Floats | float,
    gamma_W: Floats | float,
    epsilon: Floats | float,
    method: Literal["euler", "rk2"] = "euler",
) -> tuple[Doubles, Doubles]:
    r"""Erichson et al. 2021: $\dot h = A h + \tanh(W h + U x + b)$ over a step of size epsilon.

    $A = (1-\beta_A)(M_A + M_A^T) + \beta_A (M_A - M_A^T) - \gamma_A I$, and W likewise. "rk2" is
    the midpoint rule; x is held over the step.
    """
    A = _lipschitz_matrix(M_A, beta_A, gamma_A)
    W = _lipschitz_matrix(M_W, beta_W, gamma_W)

    def slope(h, x):
        return A @ h + np.tanh(W @ h + U @ x + b)

    return _run(_integrator(slope, epsilon, method), x, state)


@_in_double
def gated_lipschitz_oracle(
    x: Floats,
    state: Floats,
    *,
    M_A: Floats,
    M_W: Floats,
    U: Floats,
    b: Bias,
    U_z: Floats,
    b_z: Bias,
    beta_A: Floats | float,
    beta_W: Floats | float,
    gamma_A: Floats | float,
    gamma_W: Floats | float,
    epsilon: Floats | float,
    method: Literal["euler", "rk2"] = "euler",
) -> tuple[Doubles, Doubles]:
    r"""The gated variant in the authors' code of Erichson et al. 2021, absent from the equations
    of the paper: $\dot h = \sigma(W h + U_z x + b_z) \odot (A h + \tanh(W h + U x + b))$.

    The gate shares W and scales the linear term too. A and W as in `lipschitz_oracle`. The authors'
    code takes Euler steps only.
    """
    A = _lipschitz_matrix(M_A, beta_A, gamma_A)
    W = _lipschitz_matrix(M_W, beta_W, gamma_W)

    def slope(h, x):
        gate = _sigmoid(W @ h + U_z @ x + b_z)
        return gate * (A @ h + np.tanh(W @ h + U @ x + b))

    return _run(_integrator(slope, epsilon, method), x, state)


def _lipschitz_matrix(M: Any, beta: Any, gamma: Any) -> Doubles:
    return (1 - beta) * (M + M.T) + beta * (M - M.T) - gamma * np.eye(M.shape[0])


def _integrator(
    slope: Callable[[Doubles, Doubles], Doubles], epsilon: Any, method: str
) -> Callable[[Doubles, Doubles], tuple[Doubles, Doubles]]:
    def euler(h, x):
        h = h + epsilon * slope(h, x)
        return h, h

    def midpoint(h, x):
        h = h + epsilon * slope(h + epsilon / 2 * slope(h, x), x)
        return h, h

    if method == "euler":
        return euler
    if method == "rk2":
        return midpoint
    raise ValueError(f"method is {method!r}; give 'euler' or 'rk2'")


@_in_double
def unitary_oracle(
    x: Floats,
    state: Complexes,
    *,
    theta_1: Floats,
    theta_2: Floats,
    theta_3: Floats,
    v_1: Complexes,
    v_2: Complexes,
    permutation: NDArray[np.integer],
    V: Complexes,
    b: Bias,
) -> tuple[NDArray[np.complex128], Doubles]:
    r"""Arjovsky et al. 2016: $h' = \mathrm{modReLU}(W h + V x)$ with complex h and V, and
    $W = D_3 R_2 F^{-1} D_2 \Pi R_1 F D_1$. The output is [Re h, Im h].

    $D_k = \mathrm{diag}(e^{i \theta_k})$, $R_k = I - 2 v_k v_k^H / \|v_k\|^2$, F the unitary
    Fourier transform, $(\Pi h)_n = h_{\mathrm{permutation}[n]}$, and
    $\mathrm{modReLU}(z) = \mathrm{relu}(|z| + b)\, z / |z|$, which is 0 at 0.
    """

    def reflect(v, h):
        return h - 2 * v * (v.conj() @ h) / (v.conj() @ v)

    def step(h, x):
        h = np.exp(1j * theta_1) * h
        h = np.fft.fft(h, norm="ortho")
        h = reflect(v_1, h)
        h = h[permutation]
        h = np.exp(1j * theta_2) * h
        h = np.fft.ifft(h, norm="ortho")
        h = reflect(v_2, h)
        h = np.exp(1j * theta_3) * h
        h = _modrelu(h + V @ x, b)
        return h, np.concatenate([h.real, h.imag])

    return _run(step, x, state)


@_in_double
def cornn_oracle(
    x: Floats,
    state: tuple[Floats, Floats],
    *,
    W: Floats,
    W_z: Floats,
    V: Floats,
    b: Bias,
    gamma: Floats | float,
    epsilon: Floats | float,
    dt: Floats | float,
) -> tuple[tuple[Doubles, Doubles], Doubles]:
    r"""Rusch and Mishra 2021, as in the authors' code; state (y, z), output y.

    $z' = z + \Delta t (\tanh(W y + \mathcal{W} z + V u + b) - \gamma y - \epsilon z)$, then
    $y' = y + \Delta t z'$. W_z is the paper's $\mathcal{W}$.
    """

    def step(state, u):
        y, z = state
        z = z + dt * (np.tanh(W @ y + W_z @ z + V @ u + b) - gamma * y - epsilon * z)
        y = y + dt * z
        return (y, z), y

    return _run(step, x, state)


@_in_double
def ron_oracle(
    x: Floats,
    state: tuple[Floats, Floats],
    *,
    W: Floats,
    V: Floats,
    b: Bias,
    gamma: Floats,
    epsilon: Floats,
    dt: Floats | float,
) -> tuple[tuple[Doubles, Doubles], Doubles]:
    r"""Ceni et al. 2024, the randomly coupled oscillators; state (y, z), output y.

    $z' = z + \Delta t (\tanh(W y + V u + b) - \gamma \odot y - \epsilon \odot z)$, then
    $y' = y + \Delta t z'$, with one γ and one ε a unit.
    """

    def step(state, u):
        y, z = state
        z = z + dt * (np.tanh(W @ y + V @ u + b) - gamma * y - epsilon * z)
        y = y + dt * z
        return (y, z), y

    return _run(step, x, state)


@_in_double
def exprnn_oracle(
    x: Floats, state: Floats, *, L: Floats, V: Floats, b: Bias
) -> tuple[Doubles, Doubles]:
    r"""Lezcano-Casado and Martínez-Rubio 2019: $h' = \mathrm{modReLU}(e^A h + V x)$ with
    $A = \mathrm{triu}(L, 1) - \mathrm{triu}(L, 1)^T$.

    $\mathrm{modReLU}(z) = \mathrm{sign}(z)\, \mathrm{relu}(|z| + b)$ has the only bias.
    """
    B = _orthogonal(L)

    def step(h, x):
        h = _modrelu(B @ h + V @ x, b)
        return h, h

    return _run(step, x, state)


@_in_double
def nnrnn_oracle(
    x: Floats,
    state: Floats,
    *,
    L: Floats,
    gamma: Floats,
    theta: Floats,
    T: Floats,
    U: Floats,
    b: Bias,
) -> tuple[Doubles, Doubles]:
    r"""Kerg et al. 2019: $h' = \mathrm{modReLU}(V h + U x)$ with $V = P \Theta P^T$.

    $P = e^A$ and modReLU as in `exprnn_oracle`. $\Theta$ has the blocks $\gamma_j R(\theta_j)$,
    $R(\theta) = ((\cos\theta, -\sin\theta), (\sin\theta, \cos\theta))$, on its diagonal, T of shape
    (hdim, hdim) above them and zero below; the rest of T is not read. gamma and theta of shape
    (hdim / 2,). (The authors' code lets T into the upper corners of the blocks too, where the
    moduli of the eigenvalues are no longer the γ.)
    """
    Theta = np.zeros_like(T)
    for j in range(len(gamma)):
        cos, sin = gamma[j] * np.cos(theta[j]), gamma[j] * np.sin(theta[j])
        Theta[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [[cos, -sin], [sin, cos]]
        Theta[2 * j : 2 * j + 2, 2 * j + 2 :] = T[2 * j : 2 * j + 2, 2 * j + 2 :]
    P = _orthogonal(L)
    V = P @ Theta @ P.T

    def step(h, x):
        h = _modrelu(V @ h + U @ x, b)
        return h, h

    return _run(step, x, state)


@_in_double
def mingru_oracle(
    x: Floats, state: Floats, *, W_z: Floats, W_h: Floats, b_z: Bias, b_h: Bias
) -> tuple[Doubles, Doubles]:
    r"""Feng et al. 2024: $z = \sigma(W_z x + b_z)$, $\tilde h = W_h x + b_h$,
    $h' = (1 - z) \odot h + z \odot \tilde h$, with W of shape (hdim, idim).
    """

    def step(h, x):
        z = _sigmoid(W_z @ x + b_z)
        h = (1 - z) * h + z * (W_h @ x + b_h)
        return h, h

    return _run(step, x, state)


@_in_double
def minlstm_oracle(
    x: Floats,
    state: Floats,
    *,
    W_f: Floats,
    W_i: Floats,
    W_h: Floats,
    b_f: Bias,
    b_i: Bias,
    b_h: Bias,
) -> tuple[Doubles, Doubles]:
    r"""Feng et al. 2024: $h' = \frac{f}{f + i} \odot h + \frac{i}{f + i} \odot \tilde h$ with
    $f = \sigma(W_f x + b_f)$, $i = \sigma(W_i x + b_i)$, $\tilde h = W_h x + b_h$.

    W of shape (hdim, idim).
    """

    def step(h, x):
        f = _sigmoid(W_f @ x + b_f)
        i = _sigmoid(W_i @ x + b_i)
        h = f / (f + i) * h + i / (f + i) * (W_h @ x + b_h)
        return h, h

    return _run(step, x, state)


@_in_double
def rglru_oracle(
    x: Floats, state: Floats, *, W_a: Floats, W_x: Floats, b_a: Bias, b_x: Bias, Lambda: Floats
) -> tuple[Doubles, Doubles]:
    r"""De et al. 2024 (Griffin): $h' = a \odot h + \sqrt{1 - a^2} \odot (i \odot x)$ with
    $r = \sigma(W_a x + b_a)$, $i = \sigma(W_x x + b_x)$, $\log a = -8\, \mathrm{softplus}(\Lambda)
    \odot r$.

    W of shape (dim, dim), dense. The formula of log a is that of the appendix and of the authors'
    code; the main text's $a = \sigma(\Lambda)^{8 r}$ is the same with the sign of Λ turned. The
    root stands at every step; the authors' code has 1 in its place at the start of a sequence.
    """

    def step(h, x):
        r = _sigmoid(W_a @ x + b_a)
        i = _sigmoid(W_x @ x + b_x)
        log_a = -8 * np.logaddexp(0, Lambda) * r
        # 1 - a² without the cancellation near a = 1.
        h = np.exp(log_a) * h + np.sqrt(-np.expm1(2 * log_a)) * (i * x)
        return h, h

    return _run(step, x, state)


@_in_double
def linear_attention_oracle(
    x: Floats, state: None, *, W_q: Floats, W_k: Floats, W_v: Floats, W_o: Floats, heads: int
) -> tuple[None, Doubles]:
    r"""Katharopoulos et al. 2020, causal, in the quadratic form, which needs no state.

    In each head $y_t = \sum_{s \le t} w_{ts} v_s / \sum_{s \le t} w_{ts}$ with
    $w_{ts} = \phi(q_t) \cdot \phi(k_s)$ and $\phi(x) = \mathrm{elu}(x) + 1$; q is not scaled. The
    output is W_o applied to the heads' y, one after the other.

    W_q and W_k of shape (heads * key, idim), W_v of shape (heads * value, idim), W_o of shape
    (odim, heads * value).
    """
    q, k, v = (np.split(x @ W.T, heads, axis=1) for W in (W_q, W_k, W_v))
    outputs = []
    for t in range(len(x)):
        mixed = []
        for head in range(heads):
            weights = _elu_plus_one(k[head][: t + 1]) @ _elu_plus_one(q[head][t])
            mixed.append(weights @ v[head][: t + 1] / np.sum(weights))
        outputs.append(W_o @ np.concatenate(mixed))
    return None, np.array(outputs)


def _elu_plus_one(x: Any) -> Any:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def numeric_jacobian(
    fn: Callable[[Doubles], ArrayLike], x: ArrayLike, eps: float = 1e-6
) -> Doubles:
    """The Jacobian of `fn` at `x` by central differences, of shape (*output, *input).

    **Arguments:**

    - `fn`: takes and returns a real float64 array.
    - `x`: where.
    - `eps`: the distance to either side. The error is of order eps² of the third derivative, and
      of order 1e-16 / eps of the values.
    """
    x = np.asarray(x, np.float64)
    columns = []
    for index in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[index] = eps
        columns.append((np.asarray(fn(x + shift)) - np.asarray(fn(x - shift))) / (2 * eps))
    jacobian = np.stack(columns, axis=-1)
    return jacobian.reshape(*jacobian.shape[:-1], *x.shape)
