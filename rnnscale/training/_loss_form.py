"""The two forms of a loss, and the checks of what a loss returns.

A file of its own because the train step, the evaluation step and `in_chunks` all take a loss.
"""

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rnnscale._base import State
from rnnscale._contract import blame, shapes
from rnnscale.training._loss import Batch, Totals

type Loss = Callable[[Any, Batch, Key[Array, "*#batch"] | None, State | None], tuple[State, Totals]]
"""`loss(model, batch, key, state) -> (state, totals)`, which returns sums."""

type RowLoss = Callable[[Any, Batch], Float[Array, "batch"] | Float[Array, ""]]
"""`loss(model, batch) -> value`, which returns a number for each row, or their mean."""

LOSS_PAGE = '"A loss of your own" in rnnscale/training/README.md'

_FORMS = "loss(model, batch) -> rows, or loss(model, batch, key, state) -> (state, sums)"


def as_sums(loss: Loss | RowLoss) -> Loss:
    """The loss in the form that returns sums, which are checked when a program is traced.

    Numbers for the rows of a batch become their sum, weighted by `weight` if the batch has it.

    **Raises:** `TypeError` if `loss` is not a function of one of the two forms.
    """
    given: Any = loss
    sums: Loss = given if takes_state(given) else _sums_of_rows(given)
    name = _name(loss)

    def checked(
        model: PyTree,
        batch: Batch,
        key: Key[Array, "*#batch"] | None,
        state: State | None = None,
    ) -> tuple[State, Totals]:
        hint = f"The batch is {shapes(dict(batch))}, and models return (state, outputs). "
        with blame(f"the loss {name}", LOSS_PAGE, hint):
            result = sums(model, batch, key, state)
        _check_sums(name, result)
        return result

    return checked


def takes_state(loss: Any) -> bool:
    """Whether it is called as `loss(model, batch, key, state)`, and not as `loss(model, batch)`.

    **Raises:** `TypeError` if it is not a function of one of the two forms.
    """
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(
            f"the loss must be a function, {_FORMS}; got {_name(loss)}. See {LOSS_PAGE}."
        )
    # The one place where a signature is read: plain functions have no class that says their form,
    # and a wrapper around one of the forms would be one more thing to know.
    signature = inspect.signature(loss)
    if _binds(signature, 4):
        return True
    # With a third argument it is neither: a loss that waits for a key would never be given one.
    if _binds(signature, 2) and not _binds(signature, 3):
        return False
    raise TypeError(
        f"the loss must be {_FORMS}; got {_name(loss)}{signature}. Make options keyword-only, or "
        f"set them with functools.partial. See {LOSS_PAGE}."
    )


def _binds(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _name(loss: Any) -> str:
    if isinstance(loss, FunctionType | type):
        return loss.__name__
    return f"an object of class {type(loss).__name__}"


def _sums_of_rows(loss: RowLoss) -> Loss:
    name = f"{_name(loss)}(model, batch)"

    def sums(
        model: PyTree, batch: Batch, key: Key[Array, "*#batch"] | None, state: State | None
    ) -> tuple[State, Totals]:
        if state is not None:
            raise ValueError(
                f"the training state has a carry, but {name} takes no state: write it as "
                "loss(model, batch, key, state) -> (state, sums), or leave the carry out."
            )
        rows = jax.tree.leaves(batch)[0].shape[0]
        value = loss(model, batch)
        if not _is_floating(value) or value.shape not in ((), (rows,)):
            raise TypeError(
                f"{name} must return one floating number for each of the {rows} rows, or their "
                f"mean; got {shapes(value)}."
            )
        weight = jnp.asarray(batch.get("weight", jnp.ones(rows)), jnp.float32)
        if weight.shape != (rows,):
            raise ValueError(
                f"the batch has weights of shape {weight.shape}, and {name} gives a number for "
                "each row: write it as loss(model, batch, key, state) -> (state, sums)."
            )
        if value.shape == (rows,):
            weighted = jnp.where(weight > 0, value * weight, 0)
            return None, {"loss": jnp.sum(weighted), "count": jnp.sum(weight)}
        if "weight" in batch:
            raise ValueError(
                f"the batch has a `weight`, which is 0 for the copies that fill up the last batch "
                f"of an evaluation. {name} must return a number for each row then, not their mean."
            )
        return None, {"loss": value * rows, "count": jnp.float32(rows)}

    return sums


def _check_sums(name: str, result: Any) -> None:
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise TypeError(
            f"{name}(model, batch, key, state) must return (state, sums): the last state of the "
            f"model, and a dictionary of sums over the batch; got {shapes(result)}. "
            f"See {LOSS_PAGE}."
        )
    sums = result[1]
    if missing := {"loss", "count"} - sums.keys():
        raise ValueError(
            f"{name}: the sums must include `loss` and `count`, whose quotient is minimised; got "
            f"{', '.join(sorted(sums))} without {' and '.join(sorted(missing))}. See {LOSS_PAGE}."
        )
    if not _is_floating(sums["loss"]) or jnp.shape(sums["loss"]) or jnp.shape(sums["count"]):
        raise TypeError(
            f"{name}: the sums `loss` and `count` must be single numbers, `loss` a floating one; "
            f"got {shapes({each: sums[each] for each in ('loss', 'count')})}. See {LOSS_PAGE}."
        )


def _is_floating(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
