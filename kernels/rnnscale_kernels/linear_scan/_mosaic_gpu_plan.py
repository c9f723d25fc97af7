"""What is decided before a kernel of Mosaic GPU is lowered: its programs and tiles."""

from typing import NamedTuple

import jax

from .._sizes import power_of_two_within, round_up
from .._target import Target
from ._kernels import Launch

CHANNELS = 128
"""Channels of one program: one for each of its threads."""

MAX_ROWS = 64
"""The most steps in a tile of time."""

# The most bytes in a tile of all inputs, and the least in the ring of tiles. With the outputs, a
# program then takes about 110 KB or less of shared memory, so that two programs fit on a
# multiprocessor. To hide the latency of memory, 30 to 50 KB must be in flight; the two programs
# have twice that. A program that has a multiprocessor to itself gets a ring of twice the size.
_TILE_BYTES = 24 * 1024
_RING_BYTES = 64 * 1024


def cores(target: Target) -> int:
    """Multiprocessors of the target: those of an H100 if nothing says which GPU it is."""
    return target.cores or 132


class Plan(NamedTuple):
    """How a sweep is divided among programs and tiles.

    - `rows`, `steps`, `channels`: of the sequence; `decays`: rows of the decay.
    - `varying`: whether the decay is streamed with the sequence.
    - `chunks`, `blocks`: programs along time and along channels.
    - `width`: channels of what TMA streams, padded: it takes rows of a multiple of 16 bytes.
    - `block_width`: channels of what a thread reads by itself, padded to full blocks.
    - `tile_rows`: steps in a tile; `stages`: tiles in the ring.
    """

    rows: int
    steps: int
    channels: int
    decays: int
    varying: bool
    chunks: int
    blocks: int
    width: int
    block_width: int
    tile_rows: int
    stages: int

    @classmethod
    def of(cls, a, sequences, launch: Launch) -> "Plan":
        """The plan for the decay `a` and the sequences "B L D" that a sweep reads."""
        (rows, steps, channels), (decays, decay_steps, _) = sequences[0].shape, a.shape
        varying = decay_steps > 1
        streamed = jax.tree.leaves((a if varying else None, sequences))
        chunks, blocks = -(-steps // launch.chunk), -(-channels // CHANNELS)
        # The planes of a sequence may be side by side.
        planes = [-(-x.shape[-1] // channels) for x in streamed]
        row_bytes = sum(
            n * CHANNELS * x.dtype.itemsize for n, x in zip(planes, streamed, strict=True)
        )
        tile_rows = min(MAX_ROWS, power_of_two_within(_TILE_BYTES // row_bytes))
        shares_core = rows * chunks * blocks > cores(launch.target)
        ring_bytes = _RING_BYTES * (1 if shares_core else 2)
        return cls(
            rows=rows,
            steps=steps,
            channels=channels,
            decays=decays,
            varying=varying,
            chunks=chunks,
            blocks=blocks,
            width=round_up(channels, 16 // min(x.dtype.itemsize for x in streamed)),
            block_width=blocks * CHANNELS,
            tile_rows=tile_rows,
            stages=-(-ring_bytes // (tile_rows * row_bytes)),
        )
