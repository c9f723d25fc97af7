"""What is decided before a kernel of Mosaic GPU is lowered: its programs and tiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._sizes import power_of_two_within, round_up
from .._target import Target
from ._kernels import Launch, SideBySide, is_side_by_side

CHANNELS = 128
"""The most channels of one program: one for each thread of a warpgroup."""

MAX_ROWS = 64
"""The most steps in a part of a tile."""

_LEAST_ROWS = 8
"""The fewest, if they fit into shared memory."""

# And if they do not. A copy of a single row would not stop at the end of an array whose width is no
# multiple of a block's, but write into the next step.
_FEWEST_ROWS = 2

# The most bytes in a tile of all inputs, and the least in the ring of tiles. With the outputs, a
# program then takes about 110 KB or less of shared memory, so that two programs fit on a
# multiprocessor. To hide the latency of memory, 30 to 50 KB must be in flight; the two programs
# have twice that. A program that has a multiprocessor to itself gets a ring of twice the size.
_TILE_BYTES = 24 * 1024
_RING_BYTES = 64 * 1024

# A stage of the ring has a barrier, and Mosaic has no more of them in a group.
_MOST_BARRIERS = 32

# The same for a program that splits time, with all of its warpgroups, and the shared memory that it
# may take. It exchanges totals once a tile, so a tile is as large as shared memory permits.
_SPLIT_TILE_BYTES = 64 * 1024
_SHARED_BYTES = 218 * 1024
COPY_BYTES = 128
"""Mosaic GPU copies a multiple of these."""

_LEAST_STEPS = 512
"""Shorter sequences are not split: the launch of the kernel takes as long."""

_WARPGROUPS = 2
"""The most warpgroups of a program that splits time. Two are enough to hide latencies. More would
have shorter parts, and the exchange costs each thread the same."""


class Division(NamedTuple):
    """How the threads of the GPU share channels and time.

    - `lanes`: channels of a program.
    - `warpgroups`, `cluster`: warpgroups of a program, and programs of a cluster. All of them are a
        team, whose threads share the time of a row.
    """

    lanes: int = CHANNELS
    warpgroups: int = 1
    cluster: int = 1

    @property
    def parts(self) -> int:
        """Parts of time that the threads of a warpgroup take at once."""
        return CHANNELS // self.lanes

    def programs(self, rows: int, channels: int) -> int:
        return rows * -(-channels // self.lanes) * self.cluster

    @classmethod
    def of(cls, rows: int, steps: int, channels: int, itemsize: int, target: Target) -> "Division":
        """Time is split only if rows and channels do not fill the GPU, and then as little as fills
        it.

        By Little's law programs on about half the multiprocessors have enough bytes on their way
        for the full bandwidth of the memory. With 16 bits, the steps of a warpgroup take as long as
        the memory for their bytes, so that all multiprocessors have to have a program.
        """
        enough = 0.45 * target.multiprocessors * (4 / itemsize)
        if steps < _LEAST_STEPS or cls().programs(rows, channels) >= enough:
            return cls()
        divisions = [cls(lanes, _WARPGROUPS) for lanes in (128, 64, 32)]
        # Eight is the most programs in a cluster that every GPU with clusters can run.
        divisions += [cls(32, _WARPGROUPS, cluster) for cluster in (2, 4, 8)]
        if target.interpret:
            # The interpreter takes a thread for each warpgroup of a cluster. All of them wait for
            # one another, so there must not be more than XLA has.
            divisions = [x._replace(warpgroups=1) for x in divisions if x.cluster <= 2]
        fitting = [x for x in divisions if 2 * x.team * x.parts * _LEAST_ROWS <= steps]
        filling = [x for x in fitting if x.programs(rows, channels) >= enough]
        return (filling or fitting[-1:])[0]

    @property
    def within(self) -> int:
        """Buffers for an exchange within a program. One is enough if programs, too, wait for one
        another after it."""
        return 2 if self.cluster == 1 else 1

    @property
    def exchanged_totals(self) -> int:
        """Totals that a thread has a place for in shared memory."""
        among = 2 if self.cluster > 1 else 0
        return self.within * self.warpgroups * self.parts + among

    @property
    def team(self) -> int:
        """Warpgroups that share the time of a row."""
        return self.warpgroups * self.cluster


class Plan(NamedTuple):
    """How a sweep is divided among programs and tiles.

    - `rows`, `steps`, `channels`: of the sequence; `decays`: rows of the decay.
    - `varying`: whether the decay is streamed with the sequence.
    - `division`: how threads share channels and time; `blocks`: programs along channels.
    - `width`: channels of what TMA streams, padded: it takes rows of a multiple of 16 bytes.
    - `block_width`: channels of what a thread reads by itself, padded to full blocks.
    - `part_rows`: steps in a part of a tile; `stages`: tiles in the ring.
    """

    rows: int
    steps: int
    channels: int
    decays: int
    varying: bool
    division: Division
    blocks: int
    width: int
    block_width: int
    part_rows: int
    stages: int

    @property
    def splits_time(self) -> bool:
        return self.division.team * self.division.parts > 1

    @classmethod
    def of(
        cls, a, sequences, outputs, fields: int, launch: Launch, *, splits: bool = True
    ) -> "Plan":
        """The plan for the decay `a` and the sequences "B L D" that a sweep reads, and the dtypes
        of those that it writes. A total of some steps has `fields` numbers. Without `splits` a
        thread takes all steps of its channel."""
        (rows, steps, channels), (decays, decay_steps, _) = sequences[0].shape, a.shape
        varying = decay_steps > 1
        itemsizes = _itemsizes([a] if varying else []) + _itemsizes(sequences)
        division = Division()
        if splits:
            division = Division.of(rows, steps, channels, min(itemsizes), launch.target)
        programs = 1 + (division.programs(rows, channels) > launch.target.multiprocessors)
        small = COPY_BYTES * (len(_itemsizes(sequences[1:])) + 1)
        sizes = _Sizes(sum(itemsizes), sum(_itemsizes(outputs)), 4 * fields, small)
        fit = None if division == Division() else _fit(division, steps, sizes, programs)
        division, part_rows, stages = fit or (Division(), *_fit_unsplit(steps, sizes, programs))
        blocks = -(-channels // division.lanes)
        return cls(
            rows=rows,
            steps=steps,
            channels=channels,
            decays=decays,
            varying=varying,
            division=division,
            blocks=blocks,
            width=round_up(channels, 16 // min(itemsizes)),
            block_width=blocks * division.lanes,
            part_rows=part_rows,
            stages=stages,
        )


def _itemsizes(sequences) -> list[int]:
    """The bytes of a number in each plane of the sequences, which are trees of arrays or dtypes."""

    def of(x) -> list[int]:
        if isinstance(x, SideBySide):
            return 2 * of(x.array)
        return [jnp.dtype(x if isinstance(x, jnp.dtype) else x.dtype).itemsize]

    return [n for x in jax.tree.leaves(sequences, is_leaf=is_side_by_side) for n in of(x)]


class _Sizes(NamedTuple):
    """Bytes: those that a channel reads in a step, and writes; those of a total; and what a part
    reads besides, the edges of its arrays."""

    read: int
    written: int
    total: int
    small: int


def _fit(
    division: Division, steps: int, sizes: _Sizes, programs: int
) -> tuple[Division, int, int] | None:
    """`(division, part_rows, stages)`: tiles and a ring that fit into shared memory, of which
    `programs` share a multiprocessor. If need be, with fewer warpgroups; `None` if none fit."""
    rows = MAX_ROWS
    while True:
        threads = CHANNELS * division.warpgroups
        free = _SHARED_BYTES // programs - 2 * threads * rows * sizes.written
        free -= CHANNELS * sizes.total * division.exchanged_totals
        tile = threads * rows * sizes.read
        stages = free // (tile + division.warpgroups * division.parts * sizes.small)
        # Several turns, so that the copies of some tiles go on during the work on others.
        long = 4 * division.team * division.parts * rows > steps
        if rows > _LEAST_ROWS and (tile > _SPLIT_TILE_BYTES // programs or long or stages < 2):
            rows //= 2
        elif stages >= 2 or (rows == _FEWEST_ROWS and stages == 1):
            return division, rows, min(stages, 4)
        elif division.warpgroups > 1:
            division = division._replace(warpgroups=division.warpgroups // 2)
        elif rows > _FEWEST_ROWS:
            rows //= 2
        else:
            return None


def _fit_unsplit(steps: int, sizes: _Sizes, programs: int) -> tuple[int, int]:
    """`(part_rows, stages)` where a thread takes all steps of its channel."""
    rows = power_of_two_within(_TILE_BYTES // (CHANNELS * sizes.read))
    rows = max(_FEWEST_ROWS, min(MAX_ROWS, rows, max(8, 1 << (steps - 1).bit_length())))
    while True:
        tile = CHANNELS * rows * sizes.read
        free = _SHARED_BYTES // programs - 2 * CHANNELS * rows * sizes.written
        fitting = free // (tile + sizes.small)
        if fitting >= 2 or rows == _FEWEST_ROWS:
            ring_bytes = _RING_BYTES * (2 if programs == 1 else 1)
            return rows, min(-(-ring_bytes // tile), _MOST_BARRIERS, max(2, fitting))
        rows //= 2
