"""Data races in kernels, which the interpreters of their toolchains can find."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

_REPORT = "RACE DETECTED"


def find_races(function: Callable[..., Any], *arguments: Any, platform: str) -> list[str]:
    """Runs interpreted kernels and reports accesses to memory that nothing orders.

    The interpreter of Pallas keeps a vector clock for every thread and every copy engine. A race
    is a pair of accesses to the same place, at least one of them a write, whose clocks are not
    ordered. A barrier hands on the clocks of all that have arrived, so a race between programs
    that meet at one may show in some runs only. The detector does not know fences between the two
    views that a GPU has of its shared memory other than `commit_smem`.

    **Arguments:**

    - `function`: calls interpreted Pallas kernels, forward or backward, such as
        `linear_scan` with the implementation `"mosaic_gpu_interpreted"`.
    - `platform`: `"cuda"` or `"tpu"`, the platform of these kernels. A TPU gets two cores, which
        share the programs of the grid's parallel axes.

    **Returns:** a description of each race, or an empty list.
    """
    printed = io.StringIO()
    with _detecting(platform), contextlib.redirect_stdout(printed):
        jax.block_until_ready(function(*arguments))
    _, *reports = printed.getvalue().split(_REPORT)
    return [re.sub(r"\n *clock: .*", "", report).strip() for report in reports]


@contextlib.contextmanager
def _detecting(platform: str) -> Iterator[None]:
    # Set for the process: kernels are interpreted by callbacks, in threads of their own.
    if platform == "cuda":
        from jax.experimental.pallas import mosaic_gpu as plgpu

        params, set_mode = plgpu.InterpretGPUParams(detect_races=True), plgpu.set_gpu_interpret_mode
    elif platform == "tpu":
        from jax.experimental.pallas import tpu as pltpu

        params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
        set_mode = pltpu.set_tpu_interpret_mode
    else:
        raise ValueError(f"platform must be 'cuda' or 'tpu', got {platform!r}")
    set_mode(params)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        set_mode(None)  # pyright: ignore[reportArgumentType]
