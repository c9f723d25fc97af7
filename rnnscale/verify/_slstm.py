"""The scalar memory of the xLSTM, cell and layer: equations in NumPy, and invariants."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
import scipy.linalg
from jaxtyping import PRNGKeyArray

from rnnscale.cells import SLSTMCell
from rnnscale.layers import SLSTM
from rnnscale.verify._check import Check, agrees, follows, normal
from rnnscale.verify._double import Doubles, fold, sigmoid, to_double
from rnnscale.verify._probe import build, draw, run_steps, with_arrays, with_normal
from rnnscale.verify._segments import layer_matches_oracle
from rnnscale.verify._subject import CellSubject


def _build(key: PRNGKeyArray) -> SLSTMCell:
    return with_normal(SLSTMCell(3, 6, heads=2, key=key), key, recurrent=0.5, bias=1.0)


def _gates(cell: Any, x: Doubles, h: Doubles) -> list[Doubles]:
    inputs = x.reshape(4, -1) if cell.input is None else [W @ x for W in cell.input]
    return [
        Wx + np.asarray(scipy.linalg.block_diag(*R)) @ h + b
        for Wx, R, b in zip(inputs, cell.recurrent, cell.bias, strict=True)
    ]


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Beck et al. 2024, equations 8 to 17: $m' = \max(\log f + m, \tilde \imath)$, and with
    $i = e^{\tilde \imath - m'}$, $f = e^{\log f + m - m'}$ the state
    $c' = f c + i \tanh(z)$, $n' = f n + i$, $h' = o\, c' / n'$. A unit without a past, that is with
    $n = 0$, has $m' = \tilde \imath$."""

    def step(state, x):
        h, c, n, m = state
        i, f, z, o = _gates(cell, x, h)
        log_f = np.log(sigmoid(f))
        new_m = np.where(n == 0, i, np.maximum(log_f + m, i))
        keep = np.where(n == 0, 0, np.exp(log_f + m - new_m))
        c = keep * c + np.exp(i - new_m) * np.tanh(z)
        n = keep * n + np.exp(i - new_m)
        return type(state)(sigmoid(o) * c / n, c, n, new_m)

    return fold(step, state, xs, lambda state: state.h)


def _unstabilised(cell: Any, xs: Doubles) -> Doubles:
    """The equations without m: an input gate that is the exponential itself."""
    h, c, n = np.zeros((3, cell.hdim))
    outputs = []
    for x in xs:
        i, f, z, o = _gates(cell, x, h)
        c = sigmoid(f) * c + np.exp(i) * np.tanh(z)
        n = sigmoid(f) * n + np.exp(i)
        h = sigmoid(o) * c / n
        outputs.append(h)
    return np.array(outputs)


def _past(state: Any, random: np.random.Generator) -> Any:
    """A state as it is after some steps, with n above one."""
    h, c, m = (random.uniform(-1, 1, state.h.shape).astype(np.float32) for _ in range(3))
    n = random.uniform(1, 3, state.h.shape).astype(np.float32)
    return type(state)(h, c, n, m)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(_build, key)
    (xs,) = draw(key, (50, 3))
    checks = [_n_is_at_least_one(cell, xs), _rows_do_not_mix(cell, xs)]
    with jax.enable_x64(True):
        double, wide = to_double((cell, xs))
        _, ys = run_steps(double, wide, double.init_state((), np.float64))
    checks.append(agrees("equals the unstabilised formula", ys, _unstabilised(double, wide), 1e-10))
    for i_bias, f_bias in ((100, -100), (-100, 100), (-100, -100)):
        checks.append(_extreme_gates(cell, xs, i_bias, f_bias))
    large = build(lambda key: SLSTMCell(40, 60, heads=3, position=0.5, key=key), key)
    forget = 5 - 12 * (np.arange(20) / 19) ** 0.95
    expected = np.stack([np.zeros(60), np.tile(forget, 3), np.zeros(60), np.zeros(60)])
    checks += [
        follows("initial input", large.input, normal((2 / 200) ** 0.5)),
        agrees("initial bias", large.bias, expected, 1e-6),
    ]
    return checks


def _n_is_at_least_one(cell: SLSTMCell, xs: Any) -> Check:
    """No division by zero: either the past or the present step counts in full."""
    state = cell.init_state()
    least = np.inf
    for x in xs:
        state, _ = run_steps(cell, x[None], state)
        least = np.minimum(least, np.min(state.n))  # which hands NaN on
    return Check("1 - n", 1 - float(least), 1e-6)


def _rows_do_not_mix(cell: SLSTMCell, xs: Any) -> Check:
    """A row at its first step gets the same beside one that is not."""
    old, _ = run_steps(cell, xs, cell.init_state())
    fresh = jax.device_get(cell.init_state())
    both = jax.tree.map(lambda *rows: np.stack(rows), old, fresh)
    _, together = run_steps(cell, np.stack([xs, xs], axis=1), both)
    _, alone = run_steps(cell, xs, fresh)
    return agrees("the first step of a row is its own", together[:, 1], alone, 1e-6)


def _extreme_gates(cell: SLSTMCell, xs: Any, i_bias: float, f_bias: float) -> Check:
    """Pre-activations whose exponentials are beyond float32."""
    bias = np.array(cell.bias)
    bias[0], bias[1] = i_bias, f_bias
    cell = with_arrays(cell, bias=bias)
    _, ys = run_steps(cell, xs, cell.init_state())
    double, wide, state = to_double((cell, xs, jax.device_get(cell.init_state())))
    _, expected = _oracle(double, wide, state)
    # A gate of 100 is rounded by 8e-6, and so is its exponential.
    return agrees(f"i near {i_bias}, f near {f_bias}: matches oracle", ys, expected, 1e-4)


def build_layer(key: PRNGKeyArray) -> SLSTM:
    """A small layer whose recurrent weights are not zero."""
    layer = with_normal(SLSTM(6, 2, conv_width=3, key=key), key, input=0.5, scale=1.0)
    cell = with_normal(layer.encoder.cell, key, recurrent=0.5, bias=1.0)
    return eqx.tree_at(lambda layer: layer.encoder.cell, layer, cell)


def _layer_oracle(layer: Any, xs: Doubles) -> Doubles:
    """Beck et al. 2024, figure 10: a convolution and swish before the input and forget gates, maps
    within each head, and a group norm."""
    pairs = zip(xs.T, layer.conv.weight, layer.conv.bias, strict=True)
    convolved = np.stack([np.convolve(x, w)[: len(xs)] + b for x, w, b in pairs], axis=1)
    u = convolved * sigmoid(convolved)
    maps = [np.asarray(scipy.linalg.block_diag(*blocks)) for blocks in layer.input]
    inputs = [each @ W.T for each, W in zip((u, u, xs, xs), maps, strict=True)]
    cell = layer.encoder.cell
    _, hs = _oracle(cell, np.concatenate(inputs, axis=1), _zeros(cell))
    hs = hs.reshape(len(xs), *layer.scale.shape)
    hs = hs - hs.mean(axis=-1, keepdims=True)
    hs = hs / np.sqrt((hs**2).mean(axis=-1, keepdims=True) + 1e-5) * layer.scale
    return hs.reshape(len(xs), -1)


def _zeros(cell: Any) -> Any:
    return to_double(jax.device_get(cell.init_state()))


def layer_invariants(layer: SLSTM, key: PRNGKeyArray) -> Iterator[Check]:
    yield from layer_matches_oracle(_layer_oracle, layer, key, time=20, starts=[5, 6])


SUBJECTS = [CellSubject("SLSTMCell", "Beck et al. 2024", _build, _oracle, _invariants, past=_past)]
