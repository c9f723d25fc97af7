import jax

from rnnscale._errors import UserError


def use_cpu_devices(count: int) -> None:
    """Makes jax run on `count` virtual devices of the CPU, to try out a mesh.

    **Raises:** `ValueError` if jax has already started with another number; this is for the
    beginning of a program.
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
