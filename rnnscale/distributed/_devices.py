"""Virtual devices of the CPU, which must be asked for before jax starts."""

import jax

from rnnscale._errors import UserError


def use_cpu_devices(count: int) -> None:
    """Makes jax run on virtual devices of the CPU, to try out a mesh. Call it at the beginning of a
    program.

    **Arguments:**

    - `count`: number of devices, at least 1.

    **Raises:** `ValueError` if `count` is below 1, or jax has already started with another number.
    """
    if count < 1:
        raise UserError(f"cpu_devices must be at least 1, got {count}")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise UserError(
            f"cpu_devices={count} comes too late: jax already runs with {jax.device_count()} "
            "devices; set it before anything else uses jax"
        ) from error
    jax.config.update("jax_platforms", "cpu")
