"""AdamW by groups of parameters: those of a recurrence have their own rate and no weight decay."""

import optax
from jaxtyping import PyTree

from rnnscale._fields import groups, parameters


def make_optimiser(
    model: PyTree,
    *,
    learning_rate: float,
    recurrence_rate: float,
    weight_decay: float,
    warmup: int,
    steps: int,
    clip: float,
) -> optax.GradientTransformation:
    """AdamW with clipping, linear warm-up and a cosine decay to zero.

    | group of the field | rate              | weight decay   |
    |--------------------|-------------------|----------------|
    | `weight`           | `learning_rate`   | `weight_decay` |
    | `bias`             | `learning_rate`   | none           |
    | `recurrence`       | `recurrence_rate` | none           |

    The groups are those of `rnnscale.parameter`. S5 and LRU are trained like this by their authors.

    **Arguments:**

    - `model`: the model to train, or its shapes; only its fields are read.
    - `learning_rate`, `recurrence_rate`: the rates at the end of the warm-up, positive.
    - `weight_decay`: as in AdamW, multiplied by the rate.
    - `warmup`: number of steps in which the rates rise from zero, at least 0 and below `steps`.
    - `steps`: number of steps until the rates are zero.
    - `clip`: the largest global norm of the gradient.

    **Returns:** the optimiser. The rates follow one schedule each.

    **Raises:** `ValueError` if `warmup` is out of range.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be at least 0 and below steps={steps}, got {warmup}")
    rates = {"weight": learning_rate, "bias": learning_rate, "recurrence": recurrence_rate}
    present = {each.group for each in parameters(model) if each.trainable}

    def adamw(group: str) -> optax.GradientTransformation:
        schedule = optax.warmup_cosine_decay_schedule(0.0, rates[group], warmup, steps)
        decay = weight_decay if group == "weight" else 0.0
        return optax.adamw(schedule, weight_decay=decay)

    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.partition({group: adamw(group) for group in sorted(present)}, groups),
    )
