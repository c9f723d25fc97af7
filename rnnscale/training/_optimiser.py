"""Optimisers of optax by groups of parameters: those of a recurrence have their own rate and no
weight decay."""

from typing import get_args

import jax
import optax
import optax.contrib
from jaxtyping import PyTree

from rnnscale._checks import Count, NonNegative, Positive, Size, check_arguments
from rnnscale._fields import Parameter, map_parameters, parameters
from rnnscale.training._names import Optimiser, Schedule
from rnnscale.training._schedule import make_schedule

_MOMENTUM = 0.9  # of SGD
_MATRIX = "matrix"  # a part of the group `weight`
_RMS_OF_ADAMW = 0.2  # the size of the updates of AdamW, by Liu et al.


@check_arguments
def make_optimiser(
    model: PyTree,
    *,
    learning_rate: Positive,
    recurrence_rate: Positive,
    weight_decay: NonNegative,
    warmup: Count,
    steps: Size,
    clip: Positive,
    optimiser: Optimiser = "adamw",
    schedule: Schedule = "cosine",
) -> optax.GradientTransformation:
    """An optimiser of optax with clipping and a schedule, by groups of parameters.

    | group of the field | rate              | weight decay   |
    |--------------------|-------------------|----------------|
    | `weight`           | `learning_rate`   | `weight_decay` |
    | `bias`             | `learning_rate`   | none           |
    | `recurrence`       | `recurrence_rate` | none           |

    The groups are those of `rnnscale.parameter`. S5 and LRU are trained like this, by AdamW with
    the cosine schedule, by their authors.

    **Arguments:**

    - `model`: the model to train, or its shapes; only its fields are read.
    - `learning_rate`, `recurrence_rate`: the rates at the end of the warm-up, positive.
    - `weight_decay`: as in AdamW, multiplied by the rate.
    - `warmup`: number of steps in which the rates rise from zero, at least 0 and below `steps`.
    - `steps`: number of steps until the rates are zero.
    - `clip`: the largest global norm of the gradient.
    - `optimiser`: `"adamw"` or `"nadamw"`; `"lion"`, whose rates should be three to ten times
        smaller, with a decay that is larger by the same factor; `"sgd"` with Nesterov momentum 0.9,
        whose rates should be larger; or `"muon"`. Muon makes the updates of matrices orthogonal,
        scaled so that the rates of AdamW suit it, and leaves everything else to AdamW. Matrices are
        the arrays of the group `weight` whose annotation has two named axes, except for tables of
        embeddings; each gate and each layer is a matrix of its own.
    - `schedule`: `"cosine"`, `"constant"`, `"linear"` or `"wsd"`; see `make_schedule`.

    **Returns:** the optimiser. The rates follow one schedule each.

    **Raises:** `ValueError` if `warmup` is out of range, or a name is unknown.

    Liu et al., *Muon is Scalable for LLM Training*, 2025, for its scale; Chen et al., *Symbolic
    Discovery of Optimization Algorithms*, NeurIPS 2023, for Lion.
    """

    def of_group(group: str) -> optax.GradientTransformation:
        peak = recurrence_rate if group == "recurrence" else learning_rate
        rate = make_schedule(schedule, peak, warmup=warmup, steps=steps)
        decay = weight_decay if group in ("weight", _MATRIX) else 0.0
        match optimiser:
            case "muon" if group == _MATRIX:
                return _muon(rate, decay)
            case "adamw" | "muon":
                return optax.adamw(rate, weight_decay=decay)
            case "nadamw":
                return optax.nadamw(rate, weight_decay=decay)
            case "lion":
                return optax.lion(rate, weight_decay=decay)
            case "sgd":
                return optax.chain(
                    optax.trace(_MOMENTUM, nesterov=True),
                    optax.add_decayed_weights(decay),
                    optax.scale_by_learning_rate(rate),
                )
            case _:
                names = ", ".join(get_args(Optimiser.__value__))
                raise ValueError(f"optimiser must be one of {names}; got {optimiser!r}")

    def group_of(each: Parameter) -> str:
        return _MATRIX if optimiser == "muon" and _is_matrix(each) else each.group

    present = {group_of(each) for each in parameters(model) if each.trainable}
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.partition(
            {group: of_group(group) for group in sorted(present)},
            lambda model: map_parameters(group_of, model),
        ),
    )


def _is_matrix(each: Parameter) -> bool:
    """Whether an array is a linear map, or a stack of them."""
    named = [axis for axis in each.axes if axis is not None]
    return each.group == "weight" and len(named) == 2 and "vocab" not in named


def _muon(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    def last_two_axes(params: PyTree) -> PyTree:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-1, -2), params)

    return optax.contrib.muon(
        rate,
        weight_decay=decay,
        consistent_rms=_RMS_OF_ADAMW,
        muon_weight_dimension_numbers=last_two_axes,
    )
