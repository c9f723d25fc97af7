"""What a Triton kernel is launched with: measured on a device, or by a rule of thumb.

`python -m benchmarks tune` measures and writes `_triton_configs.json`.
"""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from .._target import Target

CONFIGS = Path(__file__).with_name("_triton_configs.json")

MAX_ROWS = 8
"""The most steps that are loaded together."""

_LANES = 32  # threads of a warp


class Config(NamedTuple):
    """How a kernel is launched.

    - `block`: channels of a program, a multiple of its threads, at most 4 times as many.
    - `rows`: steps that are loaded together, in one round.
    - `stages`: rounds under way, including the one that is computed.
    - `warps`: warps of a program.
    """

    block: int
    rows: int
    stages: int
    warps: int


class Case(NamedTuple):
    """What one configuration is for.

    - `kernel`: its name in `_triton_source`.
    - `dtypes`: of the decay and of the sequence.
    - `width`: channels of all rows and chunks together.
    """

    kernel: str
    planar: bool
    varying: bool
    dtypes: tuple[str, str]
    width: int

    @property
    def name(self) -> str:
        """The key of the case in the file of configurations; widths are powers of two there."""
        numbers, decay = ("real", "planar")[self.planar], ("invariant", "varying")[self.varying]
        width = 2 ** int(math.log2(self.width))
        return f"{self.kernel} {numbers} {decay} {'/'.join(self.dtypes)} {width}"

    @property
    def arrays(self) -> int:
        """Planes of the size of the sequence that the kernel reads."""
        return (1 + self.planar) * (self.varying + (2 if self.kernel == "backward" else 1))


def choose_config(case: Case, rows: int, target: Target) -> Config:
    """The measured configuration, or else one by rule of thumb, for `rows` rows and chunks."""
    tuned = tuned_configs().get(target.device_kind, {}).get(case.name)
    if tuned is not None:
        return tuned
    # The widest block that leaves every multiprocessor a program.
    channels = case.width // rows
    block = 4 * _LANES
    while block > narrowest_block(*case.dtypes) and rows * -(-channels // block) < cores(target):
        block //= 2
    return Config(block, rows=MAX_ROWS if case.arrays <= 3 else 4, stages=6, warps=1)


@functools.cache
def tuned_configs() -> dict[str | None, dict[str, Config]]:
    """The measured configurations, by kind of device and name of the case."""
    devices = json.loads(CONFIGS.read_text(encoding="utf-8"))
    return {
        kind: {case: Config(**config) for case, config in cases.items()}
        for kind, cases in devices.items()
    }


def narrowest_block(*dtypes: str) -> int:
    """The narrowest block: an asynchronous copy takes at least 4 bytes for each thread."""
    return _LANES * max(1, 4 // min(jnp.dtype(dtype).itemsize for dtype in dtypes))


def cores(target: Target) -> int:
    """Multiprocessors of the target; between an A100's 108 and an H100's 132 if it is not known."""
    return target.cores or 128
