"""What is decided before the fused kernel is lowered: segments of time, programs, shared memory."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax

from .._sizes import round_up
from .._target import Target
from ._spec import SSMSpec

TILE = 64
"""Steps in a tile: the rows of a tensor core's product."""

LANES = 128
"""Threads in a warpgroup, which hold one state each."""

WIDTH = 64
"""Numbers of 16 bits in one row of what tensor cores read from shared memory."""

SHARED_BYTES = 226 * 1024
"""Shared memory of a program: all 227 KB but for the barriers."""

# Tiles on their way, if there is room for them. If this number divided the segments of a program,
# each segment would have a slot of its own, and the compiler would keep all addresses in registers.
_STAGES = 3

# Float32 after each row of states. With 8, the threads of half a warp, which take 8 columns of 4
# rows of a product at a time, are in different banks.
_PAD = 8
# A program reads the matrices, which takes about as long as this number of tiles.
_START = 1
# The time of a sweep that has no output, as a fraction of that of one with an output.
_FIRST_SWEEP = 0.6


@runtime_checkable
class Segments(Protocol):
    """How time is split into segments, and the form of their states: see `Plan`."""

    @property
    def rows(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def segments(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def planes(self) -> int: ...
    @property
    def states(self) -> int: ...
    @property
    def descending(self) -> bool: ...


class Plan(NamedTuple):
    """How time and states are divided among programs.

    Time is split into segments. A program takes `group` consecutive segments at a time, side by
    side, and of each of them one block of the states, or one block after another. The last program
    may have fewer segments; in their places it works on zeros beyond the end of the last row.

    - `rows`, `steps`: of the sequence.
    - `segments`: segments of a row; `length`: steps in a segment.
    - `chunk`: steps from one border to the next, where the operation keeps the state.
    - `planes`: 2 for complex states; `states`: their number, padded.
    - `group`: segments of a program.
    - `descending`: the sweep goes from the last step to the first.
    - `interpret`: the kernel runs in the interpreter.
    """

    rows: int
    steps: int
    segments: int
    length: int
    chunk: int
    planes: int
    states: int
    group: int
    descending: bool
    interpret: bool

    @classmethod
    def of(cls, u, decay, chunk: int, target: Target) -> "Plan":
        """The plan for the input `u` and a decay of the operation."""
        *batch, steps, _ = u.shape
        rows, states = math.prod(batch), _padded_states(decay.shape[-1])
        chunk = chunk if chunk < steps else round_up(steps, TILE)
        if chunk % TILE:
            raise ValueError(f"chunks must have a multiple of {TILE} steps, got {chunk}")
        group, planes = LANES // min(states, LANES), len(jax.tree.leaves(decay))
        chunks = -(-steps // chunk)
        cores = target.multiprocessors
        segments, length = _fastest_split(rows, chunks, chunk // TILE, group, cores)
        return cls(
            rows=rows,
            steps=steps,
            segments=segments,
            length=length * chunk,
            chunk=chunk,
            planes=planes,
            states=states,
            group=group,
            descending=False,
            interpret=target.interpret,
        )

    @property
    def block(self) -> int:
        """States of each segment that a program takes at a time."""
        return LANES // self.group

    @property
    def blocks(self) -> int:
        return self.states // self.block

    @property
    def programs(self) -> int:
        return -(-self.rows * self.segments // self.group)

    @property
    def vacant(self) -> int:
        """Places for segments in the last program that have none."""
        return self.programs * self.group - self.rows * self.segments

    @property
    def tiles(self) -> int:
        """Tiles in a segment."""
        return self.length // TILE

    def tile(self, i):
        """The tile that a sweep takes as number `i` of a segment."""
        return self.tiles - 1 - i if self.descending else i


def _fastest_split(rows: int, chunks: int, tiles: int, group: int, cores: int) -> tuple[int, int]:
    """The number of segments of a row, and the chunks in a segment, for chunks of `tiles` tiles.

    A multiprocessor has room for one program, so programs run in waves, one program on each
    multiprocessor. A wave takes as long as a program: the start, and then the tiles of a segment.
    If there is more than one segment, a first sweep finds the states that enter them.
    """

    def time(length: int) -> float:
        segments = -(-chunks // length)
        waves = -(-rows * segments // (group * cores))
        sweeps = 1 if segments == 1 else 1 + _FIRST_SWEEP
        return sweeps * waves * (_START + length * tiles)

    length = min(range(chunks, 0, -1), key=time)
    return -(-chunks // length), length


def too_large(spec: SSMSpec) -> str | None:
    """Why the matrices and their tiles do not fit in shared memory, or `None`."""
    planes, states = 1 + spec.planar, _padded_states(spec.state)
    group = LANES // min(states, LANES)
    widths = round_up(spec.idim, WIDTH), round_up(spec.odim, WIDTH)
    needed = 0
    # The adjoint system, which the backward pass runs too, has inputs and outputs exchanged.
    for inputs, outputs in (widths, widths[::-1]):
        mapping = buffers(planes, states, group, inputs, outputs=outputs)
        summing = buffers(
            planes, states, weight_group(planes), inputs,
            others=columns_at_once(outputs), feedback=True,
        )  # fmt: skip
        needed = max(needed, _shared_bytes(mapping), _shared_bytes(summing))
    if needed > SHARED_BYTES:
        return f"B, C and their tiles take {needed >> 10} KB of {SHARED_BYTES >> 10} on chip"
    return None


def buffers(
    planes: int, states: int, group: int, inputs: int,
    *, outputs: int = 0, others: int = 0, feedback: bool = False, stages: int = 1,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """The shapes of a sweep's buffers in shared memory: `rows` in float32, all others in 16 bits.

    - `rows`: the drive of a tile, then its states; `narrow`: states in 16 bits.
    - `x`, `other`: rings of `stages` tiles of the sequences that are read.
    - `into`, `out`, `feedback`: matrices.
    - `y`: a tile of the output for each segment, or for `stages` of them. It and `narrow` share the
        memory of `rows`.
    """
    block = LANES // group
    blocks = states // block if outputs else 1
    shapes: dict[str, tuple[int, ...]] = {
        "rows": (planes, TILE, LANES + _PAD),
        "x": (stages, TILE, inputs),
        "into": (blocks, inputs, planes * block),
    }
    if outputs:
        shapes["out"] = (blocks, planes * block, outputs)
        shapes["narrow"] = (group, TILE, planes * block)
        shapes["y"] = (min(stages, group), TILE, outputs)
    if others:
        shapes["narrow"] = (1, TILE, planes * block)
        shapes["other"] = (stages, TILE, others)
    if feedback:
        shapes["feedback"] = (others, planes * block)
    return shapes


def buffers_with_stages(*sizes: int, **options) -> dict[str, tuple[int, ...]]:
    """`buffers` with as many stages as there is room for."""
    shapes = buffers(*sizes, stages=_STAGES, **options)
    return shapes if _shared_bytes(shapes) <= SHARED_BYTES else buffers(*sizes, **options)


def _shared_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    sizes = {
        name: round_up(math.prod(shape) * (4 if name == "rows" else 2), 1024)
        for name, shape in shapes.items()
    }
    if "y" in sizes:
        sizes["rows"] = max(sizes["rows"], sizes.pop("narrow") + sizes.pop("y"))
    return sum(sizes.values())


def columns_at_once(width: int) -> int:
    """Columns of a weight gradient, out of `width`, that a program has registers for."""
    return width if width <= LANES else math.gcd(width, LANES)


def weight_group(planes: int) -> int:
    """Segments of a program that sums the gradient of a matrix.

    More segments side by side leave fewer states of each, so that the sums fit in registers.
    """
    return planes * LANES // WIDTH


def padded_width(width: int) -> int:
    """The next width of rows that TMA can take in tiles."""
    return round_up(width, 8 if width <= WIDTH // 2 else WIDTH)


def padded_time(steps: int) -> int:
    """The next number of steps that TMA can take in tiles."""
    return steps if steps < 8 else round_up(steps, 8)


def _padded_states(states: int) -> int:
    return LANES // 2 if states <= LANES // 2 else round_up(states, LANES)
