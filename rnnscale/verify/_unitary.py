"""The unitary evolution network: its equation in NumPy, and its invariants."""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import UnitaryEvolutionRNNCell
from rnnscale.verify._check import Check, agrees, relative_error
from rnnscale.verify._double import Doubles, as_complex, fold, modrelu
from rnnscale.verify._lengths import finite_at_zero, lengths_stay, step_matrix, trained, with_bias
from rnnscale.verify._probe import build, largest, with_arrays
from rnnscale.verify._subject import CellSubject
from rnnscale_kernels import Planar


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Arjovsky et al. 2016: $h' = \mathrm{modReLU}(W h + V x)$ with complex h and V, and
    $W = D_3 R_2 F^{-1} D_2 \Pi R_1 F D_1$. The output is [Re h, Im h].

    $D_k = \mathrm{diag}(e^{i \theta_k})$, $R_k = I - 2 v_k v_k^H / \|v_k\|^2$, F the unitary
    Fourier transform, $(\Pi h)_n = h_{\mathrm{permutation}[n]}$, and
    $\mathrm{modReLU}(z) = \mathrm{relu}(|z| + b)\, z / |z|$, which is 0 at 0.
    """
    D_1, D_2, D_3 = np.exp(1j * cell.theta)
    v_1, v_2 = as_complex(cell.reflection_re, cell.reflection_im)
    V = as_complex(cell.input_re, cell.input_im)

    def reflect(v, h):
        return h - 2 * v * (v.conj() @ h) / (v.conj() @ v)

    def step(h, x):
        h = np.fft.fft(D_1 * h, norm="ortho")
        h = reflect(v_1, h)[cell.permutation]
        h = np.fft.ifft(D_2 * h, norm="ortho")
        h = D_3 * reflect(v_2, h)
        return modrelu(h + V @ x, cell.bias)

    last, outputs = fold(step, as_complex(*state), xs, lambda h: np.concatenate([h.real, h.imag]))
    return Planar(last.real, last.imag), outputs


def _build(key: PRNGKeyArray) -> UnitaryEvolutionRNNCell:
    return with_bias(UnitaryEvolutionRNNCell(3, 7, key=key), key)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: UnitaryEvolutionRNNCell(3, 33, key=key), key)
    after_training = trained(cell, key)
    return [
        *lengths_stay(cell, key),
        _step_is_unitary("W^H W = 1", cell),
        _step_is_unitary("W^H W = 1 after training", after_training),
        # So that the check before it says something.
        Check("θ not moved by training", -largest(cell.theta - after_training.theta), -0.01),
        _reflections_are_involutions(cell),
        finite_at_zero(cell),
    ]


def _step_is_unitary(name: str, cell: Any) -> Check:
    """The step is linear over the complex numbers and keeps lengths."""
    matrix = step_matrix(cell)
    turn = np.kron([[0.0, -1.0], [1.0, 0.0]], np.eye(cell.hdim))
    orthogonal = relative_error(matrix.T @ matrix, np.eye(2 * cell.hdim))
    return Check(name, max(orthogonal, relative_error(turn @ matrix, matrix @ turn)), 1e-5)


def _reflections_are_involutions(cell: Any) -> Check:
    """Without rotations and the permutation, and with $v_1 = F v_2$, $W = R_2^2 = 1$."""
    v = as_complex(cell.reflection_re, cell.reflection_im)
    v[0] = np.fft.fft(v[1])
    cell = with_arrays(
        cell,
        theta=np.zeros_like(cell.theta),
        permutation=np.arange(cell.hdim),
        reflection_re=v.real,
        reflection_im=v.imag,
    )
    return agrees("R² = 1", step_matrix(cell), np.eye(2 * cell.hdim), 1e-5)


SUBJECTS = [
    CellSubject("UnitaryEvolutionRNNCell", "Arjovsky et al. 2016", _build, _oracle, _invariants)
]
