"""What is decided before the kernel for wide layers is lowered: segments, slices, shared memory."""

import math
from typing import NamedTuple

import jax

from .._sizes import round_up
from .._target import Target
from ._mosaic_gpu_plan import LANES, SHARED_BYTES, TILE, WIDTH
from ._spec import SSMSpec

CLUSTER = 2
"""Programs that share the tiles of the input, which TMA sends to all of them at once."""

PAD = 8
"""float32 after each row of drives, so that a product is stored without bank conflicts."""

# Tiles in the ring, `TILE` steps of `WIDTH` inputs each. Six hide the latency of the memory.
_FEWEST_STAGES, _MOST_STAGES = 6, 16
_STAGE_BYTES = TILE * WIDTH * 2

# Time is split only if that takes less than `_PAYS` of the time without a split. Numbers of
# segments within `_NEARLY` of the fastest count as equal, and the smallest one is chosen.
_PAYS, _NEARLY = 0.75, 1.05

# Columns of the input map that a program may have, and the most states of its slice: more steps of
# a state than 32 would not fit in a thread's registers.
_COLUMNS = (32, 64, 128)
_MOST_STATES = 64


class WidePlan(NamedTuple):
    """How time and states are divided among programs.

    A program takes one segment of time of one row, and one slice of the states. A slice has fewer
    states than a warpgroup has threads, so a tile of time is divided into parts, which the threads
    take at the same time. With wide slices the input is read less often; narrow ones make more
    programs.

    - `rows`, `steps`: of the sequence.
    - `segments`: segments of a row; `length`: steps in a segment.
    - `chunk`: steps from one border to the next, where the operation keeps the state.
    - `planes`: 2 for complex states; `states`: their number, padded.
    - `columns`: columns of the input map in one program: all planes of its slice of the states.
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
    columns: int
    descending: bool
    sharing: int
    interpret: bool

    @classmethod
    def of(cls, primals, chunk: int, target: Target) -> "WidePlan":
        """The plan for these primals of the operation."""
        u, decay, _, c, *_ = primals
        *batch, steps, idim = u.shape
        rows, planes = math.prod(batch), len(jax.tree.leaves(decay))
        chunk = chunk if chunk < steps else round_up(steps, TILE)
        if chunk % TILE:
            raise ValueError(f"chunks must have a multiple of {TILE} steps, got {chunk}")
        chunks, cores = -(-steps // chunk), target.multiprocessors
        inputs = round_up(max(idim, c.shape[0]), WIDTH)

        def programs(columns: int) -> int:
            return rows * (_padded_states(decay.shape[-1], planes, columns) * planes // columns)

        def turns(columns: int, segments: int) -> int:
            """Chunks that a multiprocessor takes one after another. With several segments, each is
            swept twice: for its last state, and for all its states."""
            sweeps = 2 if segments > 1 else 1
            waves = -(-programs(columns) * segments // cores)
            return sweeps * waves * -(-chunks // segments)

        columns = min(
            possible_columns(planes, inputs),
            key=lambda columns: turns(columns, 1) * _tile_clocks(columns, planes, inputs),
        )
        # The second sweep reads the input again, so a split has to pay well. More segments than
        # fill the device are of no use.
        most = range(1, min(chunks, cores) + 1)
        fastest = min(turns(columns, segments) for segments in most)
        segments = next(x for x in most if turns(columns, x) <= _NEARLY * fastest)
        if turns(columns, segments) > _PAYS * turns(columns, 1):
            segments = 1
        length = -(-chunks // segments)
        return cls(
            rows=rows,
            steps=steps,
            segments=-(-chunks // length),
            length=length * chunk,
            chunk=chunk,
            planes=planes,
            states=_padded_states(decay.shape[-1], planes, columns),
            columns=columns,
            descending=False,
            sharing=2 if programs(columns) * segments > cores else 1,
            interpret=target.interpret,
        )

    @property
    def block(self) -> int:
        """States of a slice."""
        return self.columns // self.planes

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
        fixed = _fixed_bytes(self.columns, self.planes, inputs, other=other)
        shared, alone = ((SHARED_BYTES // n - fixed) // _STAGE_BYTES for n in (2, 1))
        fitting = shared if self.sharing == 2 and shared >= _FEWEST_STAGES else alone
        return min(fitting, _MOST_STAGES, self.tiles * (inputs // WIDTH))


def too_wide(spec: SSMSpec) -> str | None:
    """Why a slice of the matrices does not fit in shared memory, or `None`."""
    planes, inputs = 1 + spec.planar, round_up(max(spec.idim, spec.odim), WIDTH)
    if possible_columns(planes, inputs):
        return None
    needed = _needed_bytes(_COLUMNS[0], planes, inputs) >> 10
    return (
        f"{_COLUMNS[0]} columns of B or C and their tiles take {needed} KB of "
        f"{SHARED_BYTES >> 10} on chip"
    )


def possible_columns(planes: int, inputs: int) -> list[int]:
    """The numbers of columns that fit, in the backward pass too: it maps the outputs to cotangents
    of the states, and reads these again."""
    return [
        columns
        for columns in _COLUMNS
        if columns <= planes * _MOST_STATES
        and _needed_bytes(columns, planes, inputs) <= SHARED_BYTES
    ]


def _needed_bytes(columns: int, planes: int, inputs: int) -> int:
    return _fixed_bytes(columns, planes, inputs, other=True) + _FEWEST_STAGES * _STAGE_BYTES


def _fixed_bytes(columns: int, planes: int, inputs: int, *, other: bool) -> int:
    """Bytes of shared memory for everything but the ring."""
    states = columns * TILE * 2
    drives = (columns + planes * PAD) * TILE * 4
    ends = planes * LANES * (LANES * planes // columns + 1) * 4
    return inputs * columns * 2 + drives + ends + states * (3 if other else 1)


def _tile_clocks(columns: int, planes: int, inputs: int) -> int:
    """About how many clocks a multiprocessor needs for a tile.

    A product of 64 steps and one column takes a clock for 32 inputs. Shared memory moves 128 bytes
    a clock: a piece of the input comes in, and tensor cores read it and a piece of the input map;
    drives and states move 12 bytes for each number. Threads take two passes over their steps.
    """
    products = columns * inputs // 32
    moved = inputs // WIDTH * (2 * _STAGE_BYTES + 2 * WIDTH * columns) + 12 * TILE * columns
    steps = TILE * columns // (planes * LANES)
    return max(products, moved // 128, 400 + 24 * steps)


def _padded_states(states: int, planes: int, columns: int) -> int:
    return round_up(states, CLUSTER * columns // planes)
