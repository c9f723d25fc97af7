"""What is decided before the kernel for wide layers is lowered: segments, slices, shared memory."""

import math
from typing import NamedTuple

import jax

from .._sizes import round_up
from .._target import Target
from ._mosaic_gpu_plan import CORES, LANES, SHARED_BYTES, TILE, WIDTH
from ._spec import SSMSpec

COLUMNS = 64
"""Columns of the input map in one program: its slice of the states, all planes of them."""

CLUSTER = 2
"""Programs that share the tiles of the input, which TMA sends to all of them at once."""

PAD = 8
"""float32 after each row of drives, so that a product is stored without bank conflicts."""

# Tiles in the ring, `TILE` steps of `WIDTH` inputs each. Six hide the latency of the memory.
_FEWEST_STAGES, _MOST_STAGES = 6, 16

_PAYS = 0.75  # of the time of one segment


class WidePlan(NamedTuple):
    """How time and states are divided among programs.

    A program takes one segment of time of one row, and one slice of the states. Its warpgroup has
    fewer states than threads, so a tile of time is divided into parts, which its threads take at
    the same time.

    - `rows`, `steps`: of the sequence.
    - `segments`: segments of a row; `length`: steps in a segment.
    - `chunk`: steps from one border to the next, where the operation keeps the state.
    - `planes`: 2 for complex states; `states`: their number, padded.
    - `descending`: the sweep goes from the last step to the first.
    - `sharing`: programs that share a multiprocessor, if there is room for them.
    - `interpret`: the kernel runs in the interpreter.
    """

    rows: int
    steps: int
    segments: int
    length: int
    chunk: int
    planes: int
    states: int
    descending: bool
    sharing: int
    interpret: bool

    @classmethod
    def of(cls, u, decay, chunk: int, target: Target) -> "WidePlan":
        """The plan for the input `u` and a decay of the operation."""
        *batch, steps, _ = u.shape
        rows, planes = math.prod(batch), len(jax.tree.leaves(decay))
        chunk = chunk if chunk < steps else round_up(steps, TILE)
        if chunk % TILE:
            raise ValueError(f"chunks must have a multiple of {TILE} steps, got {chunk}")
        chunks, block = -(-steps // chunk), COLUMNS // planes
        states = round_up(decay.shape[-1], CLUSTER * block)
        programs = rows * (states // block)
        cores = target.cores or CORES

        def turns(segments: int) -> int:
            """Chunks that a multiprocessor takes one after another. With several segments, each is
            swept twice: for its last state, and for all its states."""
            sweeps = 2 if segments > 1 else 1
            return sweeps * -(-programs * segments // cores) * -(-chunks // segments)

        # The second sweep reads the input again, so it has to pay well.
        segments = min(range(1, min(chunks, cores) + 1), key=turns)
        if turns(segments) > _PAYS * turns(1):
            segments = 1
        length = -(-chunks // segments)
        return cls(
            rows=rows,
            steps=steps,
            segments=-(-chunks // length),
            length=length * chunk,
            chunk=chunk,
            planes=planes,
            states=states,
            descending=False,
            sharing=2 if programs * segments > cores else 1,
            interpret=target.interpret,
        )

    @property
    def block(self) -> int:
        """States of a slice."""
        return COLUMNS // self.planes

    @property
    def slices(self) -> int:
        return self.states // self.block

    @property
    def programs(self) -> int:
        return self.rows * self.segments * self.slices

    @property
    def parts(self) -> int:
        """Parts of a tile: its threads are "part state"."""
        return LANES // self.block

    @property
    def part_rows(self) -> int:
        """Steps in a part."""
        return TILE // self.parts

    @property
    def tiles(self) -> int:
        """Tiles in a segment."""
        return self.length // TILE

    def tile(self, i):
        """The tile that a sweep takes as number `i` of a segment."""
        return self.tiles - 1 - i if self.descending else i

    def in_order(self, count: int) -> range:
        """The numbers of `count` steps or parts in the order in which a sweep takes them."""
        return range(count)[::-1] if self.descending else range(count)

    def stages(self, inputs: int, *, other: bool) -> int:
        """Tiles in the ring of a sweep over so wide an input."""
        fixed = fixed_bytes(self.planes, inputs, other=other)
        shared, alone = ((SHARED_BYTES // n - fixed) // (TILE * WIDTH * 2) for n in (2, 1))
        fitting = shared if self.sharing == 2 and shared >= _FEWEST_STAGES else alone
        return min(fitting, _MOST_STAGES, self.tiles * (inputs // WIDTH))


def fixed_bytes(planes: int, inputs: int, *, other: bool) -> int:
    """Bytes of shared memory for everything but the ring."""
    states = COLUMNS * TILE * 2
    drives = (COLUMNS + planes * PAD) * TILE * 4
    ends = planes * LANES * (LANES * planes // COLUMNS + 1) * 4
    return inputs * COLUMNS * 2 + drives + ends + states * (3 if other else 1)


def too_wide(spec: SSMSpec) -> str | None:
    """Why a slice of the matrices does not fit in shared memory, or `None`."""
    widest = round_up(max(spec.idim, spec.odim), WIDTH)
    # The backward pass maps outputs to cotangents of states, and reads these again.
    fixed = fixed_bytes(1 + spec.planar, widest, other=True)
    needed = fixed + _FEWEST_STAGES * TILE * WIDTH * 2
    if needed > SHARED_BYTES:
        return (
            f"{COLUMNS} columns of B or C and their tiles take {needed >> 10} KB of "
            f"{SHARED_BYTES >> 10} on chip"
        )
    return None
