"""AdamW, with a rate of its own and no weight decay for the parameters of a recurrence."""

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

    - `model`: the one to be trained; it is only looked at.
    - `learning_rate`, `recurrence_rate`: at the end of the warm-up.
    - `weight_decay`: as in AdamW, times the rate.
    - `warmup`: number of steps until then, below `steps`.
    - `steps`: number of steps until the rate is zero.
    - `clip`: the largest global norm of the gradient.

    **Raises:** `ValueError` where `warmup` is not below `steps`.
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
