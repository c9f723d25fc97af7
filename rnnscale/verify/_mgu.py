"""The minimal gated unit in its three forms: equations in NumPy, and their invariants."""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import MinimalGatedUnitCell
from rnnscale.verify._check import Check, agrees, parameters_follow, uniform
from rnnscale.verify._chrono import remembers
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


def _build_form(form: Any, key: PRNGKeyArray) -> MinimalGatedUnitCell:
    return MinimalGatedUnitCell(7, 20, reset_gate=form, key=key)


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
        }[cell.reset_gate]()
        return (1 - f) * h + f * np.tanh(seen + V_h @ x + b_h)

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    checks = []
    limit = 1 / math.sqrt(20)
    with jax.enable_x64(True):
        h, xs = draw(key, (20,), (9, 7))
    for form in ("before", "after", "none"):
        double: Any = to_double(build(partial(_build_form, form), key))
        shut, opened = (
            with_arrays(double, bias=with_entry(double.bias, 0, bias)) for bias in (-OPEN, OPEN)
        )
        candidate_bias = 0 if form != "after" else double.candidate_bias
        elman = elman_with_arrays_of(
            double,
            recurrent=double.recurrent[1],
            input=double.input[1],
            bias=double.bias[1] + candidate_bias,
        )
        with jax.enable_x64(True):
            got, copied, plain, expected = (
                run_steps(each, xs, h) for each in (double, shut, opened, to_double(elman))
            )
        checks += [
            agrees(f"{form}: equals the oracle", got, _oracle(double, xs, h), 1e-12),
            Check(f"{form}: f = 0 copies the state", largest(copied[0] - h), 1e-12),
            # The arrays of Elman's network are float32.
            agrees(f"{form}: f = 1 is Elman's network", plain, expected, 2e-6),
        ]
    arrays = ("recurrent", "input", "bias", "candidate_bias")
    cell = build(partial(_build_form, "after"), key)
    return [
        *checks,
        *parameters_follow(cell, uniform(-limit, limit), *arrays),
        *remembers(MinimalGatedUnitCell, key, "recurrent"),
    ]


SUBJECTS = [CellSubject("MinimalGatedUnitCell", "Zhou et al. 2016", _build, _oracle, _invariants)]
