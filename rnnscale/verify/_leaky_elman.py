"""Elman's network with leaky units: its equation in NumPy, and its invariants."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.cells import LeakyElmanCell
from rnnscale.verify._check import Check, agrees
from rnnscale.verify._double import Doubles, fold
from rnnscale.verify._elman import parameters_start_uniform
from rnnscale.verify._probe import (
    build,
    draw,
    elman_with_arrays_of,
    largest,
    run_steps,
    with_arrays,
)
from rnnscale.verify._subject import CellSubject


def _oracle(cell: Any, xs: Doubles, state: Any) -> tuple[Any, Doubles]:
    r"""Jaeger et al. 2007: $h' = (1-\alpha) h + \alpha \tanh(W h + V x + b)$."""

    def step(h, x):
        target = np.tanh(cell.recurrent @ h + cell.input @ x + cell.bias)
        return (1 - cell.leak) * h + cell.leak * target

    return fold(step, state, xs)


def _invariants(key: PRNGKeyArray) -> list[Check]:
    cell = build(lambda key: LeakyElmanCell(7, 40, key=key), key)
    h, xs = draw(key, (40,), (9, 7))
    by_elman = run_steps(elman_with_arrays_of(cell), xs, h)
    leaks = np.linspace(0.0, 1.0, 5, dtype=np.float32)
    step_by_leak = eqx.filter_jit(
        eqx.filter_vmap(
            lambda leak, cell: eqx.tree_at(lambda c: c.leak, cell, leak)(xs[0], h)[0],
            in_axes=(0, None),
        )
    )
    between = h + leaks[:, None] * (by_elman[1][0] - h)
    return [
        agrees(
            "α = 1 is Elman's network",
            run_steps(with_arrays(cell, leak=1.0), xs, h),
            by_elman,
            1e-6,
        ),
        Check(
            "α = 0 is the identity",
            largest(run_steps(with_arrays(cell, leak=0.0), xs, h)[0] - h),
            0.0,
        ),
        agrees(
            "a step is linear in an α that is traced",
            jax.device_get(step_by_leak(leaks, cell)),
            between,
            1e-6,
        ),
        *parameters_start_uniform(cell),
    ]


SUBJECTS = [
    CellSubject(
        "LeakyElmanCell",
        "Jaeger et al. 2007",
        lambda key: LeakyElmanCell(3, 5, leak=0.3, key=key),
        _oracle,
        _invariants,
    )
]
