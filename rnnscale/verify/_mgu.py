"""The minimal gated unit in its three forms: equations in NumPy, and their invariants."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import MinimalGatedUnitCell
from rnnscale.verify._check import Check, agrees, parameters_follow, uniform
from rnnscale.verify._double import Doubles, fold, sigmoid, to_double
from rnnscale.verify._probe import (
    OPEN,
    build,
    draw,
    elman_with_arrays_of,
    largest,
    run_steps,
    with_arrays,
    with_entry,
)
from rnnscale.verify._subject import CellSubject


def _build(key: PRNGKeyArray) -> MinimalGatedUnitCell:
    return MinimalGatedUnitCell(3, 5, key=key)


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Zhou et al. 2016: $f = \sigma(W_f h + V_f x + b_f)$,
    $\tilde h = \tanh(W_h (f \odot h) + V_h x + b_h)$, $h' = (1 - f) \odot h + f \odot \tilde h$.

    With the reset after the product $\tilde h = \tanh(V_h x + b_h + f \odot (W_h h + c))$, and
    without $\tilde h = \tanh(W_h h + V_h x + b_h)$.
    """
    W_f, W_h = cell.recurrent
    V_f, V_h = cell.input
    b_f, b_h = cell.bias

    def step(h, x):
        f = sigmoid(W_f @ h + V_f @ x + b_f)
        seen = {
            "before": lambda: W_h @ (f * h),
            "after": lambda: f * (W_h @ h + cell.candidate_bias),
            "none": lambda: W_h @ h,
        }[cell.reset]()
        return (1 - f) * h + f * np.tanh(seen + V_h @ x + b_h)

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    checks = []
    h, xs = draw(key, (20,), (9, 7))
    limit = 1 / math.sqrt(20)
    for reset in ("before", "after", "none"):
        cell = build(lambda key, r=reset: MinimalGatedUnitCell(7, 20, reset=r, key=key), key)
        double: Any = to_double(cell)
        with jax.enable_x64(True):
            got = run_steps(double, xs.astype(np.float64), h.astype(np.float64))
        shut, opened = (
            with_arrays(cell, bias=with_entry(cell.bias, 0, bias)) for bias in (-OPEN, OPEN)
        )
        candidate_bias = 0 if cell.candidate_bias is None else cell.candidate_bias
        elman = elman_with_arrays_of(
            cell,
            recurrent=cell.recurrent[1],
            input=cell.input[1],
            bias=cell.bias[1] + candidate_bias,
        )
        checks += [
            agrees(f"{reset}: equals the oracle", got, _oracle(double, *to_double((xs, h))), 1e-12),
            Check(f"{reset}: f = 0 copies", largest(run_steps(shut, xs, h)[0] - h), 0.0),
            agrees(
                f"{reset}: f = 1 is Elman's network",
                run_steps(opened, xs, h),
                run_steps(elman, xs, h),
                2e-6,
            ),
            *parameters_follow(cell, uniform(-limit, limit), "recurrent", "input", "bias"),
        ]
    return checks


SUBJECTS = [CellSubject("MinimalGatedUnitCell", "Zhou et al. 2016", _build, _oracle, _invariants)]
