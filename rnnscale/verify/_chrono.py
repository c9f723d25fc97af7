"""Chrono initialisation, which gated cells share."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from rnnscale.verify._check import Check, follows, uniform
from rnnscale.verify._double import Doubles
from rnnscale.verify._probe import build, run_steps, with_arrays


def remembers(make: Callable[..., Any], key: PRNGKeyArray, *recurrent: str) -> list[Check]:
    """Tallec and Ollivier 2018: a unit whose gates see nothing keeps the share $u / (1 + u)$ of its
    memory in a step, for $u$ uniform in `[1, t_max - 1)`.

    **Arguments:**

    - `make`: the class of the cell.
    - `recurrent`: the names of the arrays through which it sees its state.
    """
    cell = build(lambda key: make(3, 400, t_max=50, key=key), key)
    blind = with_arrays(cell, **{name: np.zeros_like(getattr(cell, name)) for name in recurrent})

    def memory(start: float) -> Doubles:
        state = jax.tree.map(lambda x: np.full_like(x, start), jax.device_get(cell.init_state()))
        after, _ = run_steps(blind, np.zeros((1, 3), np.float32), state)
        return np.asarray(jax.tree.leaves(after)[-1], np.float64)  # c of the state (h, c)

    kept = memory(1.0) - memory(0.0)
    return [follows("times to remember", kept / (1 - kept), uniform(1, 49))]
