"""What a Triton kernel is launched with: measured on a device, or by a rule of thumb.

`python -m benchmarks tune` measures and writes `_triton_configs.json`.
"""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from .._sizes import power_of_two_within
from .._target import Target

CONFIGS = Path(__file__).with_name("_triton_configs.json")

MAX_ROWS = 8
"""The most steps that are loaded together."""

# Bytes on their way to a multiprocessor, by the major compute capability. By Little's law,
# bandwidth times latency, an A100 needs 13 KB (2.0 TB/s, 108 multiprocessors), an H100 18 KB
# (3.35 TB/s, 132) and a B200 38 KB (8 TB/s, 148), with 0.7 us from a request to its data. These are
# half as many again: the latency grows as the memory gets busy.
_IN_FLIGHT = {8: 20 * 1024, 9: 27 * 1024, 10: 57 * 1024}

# Registers of a thread in which the rows of a round wait.
_ROUND_REGISTERS = 64

# Each round in flight repeats the code of its copies before the loop: 16 take four times as long to
# compile as 6.
_MAX_STAGES = 16

# The ring fits into the shared memory of a program on every GPU of compute capability 8 or more:
# those of workstations have 99 KB.
_RING_BYTES = 96 * 1024

# The part of the multiprocessors that fills the bandwidth, with a program each.
ENOUGH = 0.6

_LANES = 32  # threads of a warp


class Config(NamedTuple):
    """How a kernel is launched.

    - `block`: channels of a program, a multiple of its threads, at most 4 times as many.
    - `rows`: steps that are loaded together, in one round.
    - `stages`: rounds under way, including the one that is computed; the others fill a ring in
        shared memory.
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
    def reads(self) -> list[str]:
        """The dtypes of the planes of the size of the sequence that the kernel reads."""
        decay, sequence = self.dtypes
        sequences = 2 if self.kernel == "backward" else 1
        return (1 + self.planar) * ([decay] * self.varying + [sequence] * sequences)


def choose_config(case: Case, rows: int, target: Target) -> Config:
    """The measured configuration, or else one by rule of thumb, for `rows` rows and chunks."""
    tuned = tuned_configs().get(target.device_kind, {}).get(case.name)
    if tuned is not None:
        return tuned
    # The widest block that leaves enough multiprocessors a program.
    channels = case.width // rows
    block = 4 * _LANES

    def programs():
        return rows * -(-channels // block)

    while block > narrowest_block(*case.dtypes) and programs() < ENOUGH * target.multiprocessors:
        block //= 2
    row_bytes = block * sum(jnp.dtype(x).itemsize for x in case.reads)
    together = power_of_two_within(_ROUND_REGISTERS * 4 * _LANES // row_bytes)
    together = max(4, min(MAX_ROWS, together))
    # Enough rounds for all programs to have those bytes on their way together.
    round_bytes = together * row_bytes
    rounds = -(-_in_flight(target) * target.multiprocessors // (programs() * round_bytes))
    rounds = min(max(2, rounds), _MAX_STAGES - 1, _RING_BYTES // round_bytes)
    return Config(block, together, stages=rounds + 1, warps=1)


def _in_flight(target: Target) -> int:
    """Bytes on their way to a multiprocessor: an H100's if the GPU is not known."""
    major = 9 if target.capability is None else target.capability[0]
    return _IN_FLIGHT.get(major, max(_IN_FLIGHT.values()))


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
