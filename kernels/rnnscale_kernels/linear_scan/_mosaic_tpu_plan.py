"""What is decided before a kernel of Mosaic TPU is lowered: the streams of a program and its tiles.

In memory, 8 steps of 128 channels make a vector register, with one step in each sublane. The
recurrence fills its registers if a register has one step of 8 *streams* instead, where a stream is
128 channels of a row. So a program takes 8 streams, from one row or from several, and transposes
steps and streams in registers, which takes less time than the memory does.
"""

import math
from typing import NamedTuple

import jax
from jax import lax

from .._sizes import power_of_two_within, round_up
from ._kernels import Launch

LANES = 128
STREAMS = 8

WINDOW = 16
"""Steps that are transposed at once: those of a register of bfloat16."""

# Two tiles of each array that a program streams have at most this many bytes together: half of what
# a kernel gets by default. A tile takes some microseconds, much more than it takes to start one.
_VMEM_BYTES = 8 * 1024 * 1024


class Plan(NamedTuple):
    """How a sweep is divided among programs and tiles of time.

    - `rows`, `steps`, `channels`: of the sequence; `decays`: rows of the decay.
    - `varying`: whether the decay is streamed with the sequence.
    - `launch`: chunks and direction, see `Launch`.
    - `group`: rows that the streams of a program come from; `width`: channels of each of them.
    - `tile`: steps in a tile; `tiles`: tiles in a chunk.
    """

    rows: int
    steps: int
    channels: int
    decays: int
    varying: bool
    launch: Launch
    group: int
    width: int
    tile: int
    tiles: int

    @classmethod
    def of(cls, a, streamed, launch: Launch) -> "Plan":
        """The plan for the decay `a` and the sequences "B L D" that are read or written."""
        (rows, steps, channels), (decays, decay_steps, _) = streamed[0].shape, a.shape
        varying = decay_steps > 1
        arrays = jax.tree.leaves((a if varying else None, streamed))
        tile = _tile_steps(steps, launch.chunk, sum(x.dtype.itemsize for x in arrays))
        group = _rows_of_a_program(rows, channels, decays if varying else 1, launch.inner)
        return cls(
            rows=rows,
            steps=steps,
            channels=channels,
            decays=decays,
            varying=varying,
            launch=launch,
            group=group,
            width=LANES * STREAMS // group,
            tile=tile,
            tiles=-(-min(launch.chunk, steps) // tile),
        )

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Groups of rows, blocks of channels, chunks, and tiles of a chunk, which go in order."""
        chunks = -(-self.steps // self.launch.chunk)
        return -(-self.rows // self.group), -(-self.channels // self.width), chunks, self.tiles

    @property
    def following(self) -> int:
        """The offset from a step to the one that this sweep takes next: 1 or -1."""
        return -1 if self.launch.descending else 1

    @property
    def edge(self) -> int:
        """The step of a window that this sweep takes first."""
        return WINDOW - 1 if self.launch.descending else 0

    @property
    def shares_decay(self) -> bool:
        """Whether all rows of a program use one row of the decay."""
        return self.decays == 1 or self.launch.inner % self.group == 0

    def tile_at(self, chunk, n):
        """The index of the tile that this sweep takes as number `n` of a chunk, if there is one."""
        return chunk * self.tiles + (self.tiles - 1 - n if self.launch.descending else n)

    def tile_or_last(self, chunk, n):
        """`tile_at`, but the last tile of the sequence if the chunk lacks it."""
        return lax.min(self.tile_at(chunk, n), -(-self.steps // self.tile) - 1)

    def window_beyond(self, chunk, n):
        """The window that this sweep takes after that tile, or the nearest one that there is."""
        windows = self.tile // WINDOW
        window = self.tile_or_last(chunk, n) * windows
        window = window - 1 if self.launch.descending else window + windows
        return lax.clamp(0, window, -(-self.steps // WINDOW) - 1)

    def decay_block(self, i):
        """The block of a varying decay for group `i` of the rows."""
        if self.shares_decay:
            return lax.rem(lax.div(i * self.group, self.launch.inner), self.decays)
        return lax.rem(i, -(-self.decays // self.group))


def _rows_of_a_program(rows: int, channels: int, decays: int, inner: int) -> int:
    """Rows that the streams of a program come from, chosen to minimise the number of programs.

    The rows of a program either share one decay or have one each, in the same order.
    """

    def fits(group):
        in_order = inner == 1 and (decays == rows or decays % group == 0)
        return decays == 1 or inner % group == 0 or in_order

    def programs(group):
        return -(-rows // group) * -(-channels * group // (LANES * STREAMS))

    return min(filter(fits, (1, 2, 4, 8)), key=programs)


def _tile_steps(steps: int, chunk: int, step_bytes: int) -> int:
    """Steps in a tile, where one channel streams `step_bytes` in a step.

    They are a multiple of a window. If there are several chunks, they divide a chunk, whose steps
    have to be a multiple of a window too.
    """
    most = power_of_two_within(_VMEM_BYTES // (2 * STREAMS * LANES * step_bytes))
    if chunk < steps:
        return math.gcd(chunk, most)
    return min(most, round_up(steps, WINDOW))
