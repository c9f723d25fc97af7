"""Learning rates over the steps of a run, by name, put together from the schedules of optax."""

from typing import get_args

import optax

from rnnscale._checks import Count, Positive, Size, check_arguments
from rnnscale.training._names import Schedule

_WSD_DECAY = 0.2  # the fraction of all steps in which the rate falls


@check_arguments
def make_schedule(name: Schedule, peak: Positive, *, warmup: Count, steps: Size) -> optax.Schedule:
    r"""A linear rise from zero to `peak` in `warmup` steps, and what follows it.

    With $t$, which goes from 0 to 1 between the end of the warm-up and `steps`, the rate is

    | name         | rate / peak after the warm-up                                     |
    |--------------|-------------------------------------------------------------------|
    | `"cosine"`   | $(1 + \cos \pi t) / 2$                                            |
    | `"linear"`   | $1 - t$                                                           |
    | `"constant"` | 1                                                                 |
    | `"wsd"`      | 1, then a linear fall to zero in the last fifth of all `steps`    |

    **Arguments:**

    - `name`: one of the names above. WSD stands for warm-up, stable, decay.
    - `peak`: the rate at the end of the warm-up.
    - `warmup`: number of steps of the warm-up, at least 0 and below `steps`.
    - `steps`: number of steps of the run.

    **Returns:** a function of the number of steps done.

    **Raises:** `ValueError` if the name is unknown or `warmup` is out of range.

    Hu et al., *MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training
    Strategies*, 2024, for WSD.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be at least 0 and below steps={steps}, got {warmup}")
    match name:
        case "cosine":
            return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)
        case "constant":
            rest = optax.constant_schedule(peak)
        case "linear":
            rest = optax.linear_schedule(peak, 0.0, steps - warmup)
        case "wsd":
            start = max(warmup, steps - max(1, round(_WSD_DECAY * steps)))
            fall = optax.linear_schedule(peak, 0.0, steps - start)
            stable = optax.constant_schedule(peak)
            rest = optax.join_schedules([stable, fall], [start - warmup])
        case _:
            raise ValueError(
                f"schedule must be one of {', '.join(get_args(Schedule.__value__))}; got {name!r}"
            )
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, rest], [warmup])
