"""What is decided before a fused kernel for TPUs is lowered: pieces, streams, vector memory.

A kernel takes a tile of consecutive steps of 1, 2, 4 or 8 rows, in one piece or two. A vector
register has 8 sublanes of 128 lanes, and the recurrence fills it if every sublane holds one step of
another *stream*. So a piece is split into 8 streams of equal length: those of 8 rows, or 8, 4 or 2
consecutive *parts* of fewer rows. Rows and steps of a piece form one axis, and streams are
consecutive sections of it. So a piece is a matrix to a product, and step k of all streams is one
register, which is loaded with a stride.
"""

import math
from typing import NamedTuple

from .._sizes import round_up
from .._target import Target
from ._spec import SSMSpec

LANES = 128
STREAMS = 8

PIECE = 64
"""Pieces have a multiple of this many steps, so that streams have a multiple of 8."""

# Vector memory of a core in MiB, by the kind of the device.
_VMEM_MIB = {
    "TPU v4": 16, "TPU v4 lite": 16, "TPU v5": 64, "TPU v5p": 64, "TPU v5 lite": 128,
    "TPU v6 lite": 128, "TPU7x": 64,
}  # fmt: skip


class Plan(NamedTuple):
    """How a call is divided among programs.

    - `rows`, `steps`: of the sequence; `states`: their number, padded; `planes`: 2 if complex.
    - `cores`: cores that share the rows.
    - `group`: rows of a program; `parts`: streams of each of these rows.
    - `piece`: steps in a piece, which is a chunk: between pieces the operation keeps the state.
    - `pieces`: pieces in a tile.
    - `descending`: tiles, pieces and steps are taken from the last to the first.
    - `vmem`: vector memory that a kernel may take, in bytes.
    - `interpret`: the kernel runs in the interpreter.
    """

    rows: int
    steps: int
    states: int
    planes: int
    cores: int
    group: int
    piece: int
    pieces: int
    descending: bool
    vmem: int
    interpret: bool

    @classmethod
    def of(cls, spec: SSMSpec, target: Target) -> "Plan":
        """The plan for a call with these properties."""
        # Rows that fill a group, so that no product is computed for nothing.
        group = math.gcd(spec.batch, STREAMS)
        chunks = -(-spec.time // spec.chunk)
        plan = cls(
            rows=spec.batch,
            steps=spec.time,
            states=round_up(spec.state, LANES),
            planes=1 + spec.planar,
            cores=math.gcd(spec.batch // group, target.cores or 1),
            group=group,
            piece=round_up(min(spec.chunk, spec.time), PIECE),
            # In the last of a few tiles, half of the work of two pieces could be for nothing.
            pieces=2 if chunks % 2 == 0 or chunks > 10 else 1,
            descending=False,
            vmem=vmem_capacity(target),
            interpret=target.interpret,
        )
        return plan if vmem_bytes(spec, plan) <= plan.vmem else plan._replace(pieces=1)

    @property
    def parts(self) -> int:
        return STREAMS // self.group

    @property
    def length(self) -> int:
        """Steps of a stream."""
        return self.piece // self.parts

    @property
    def pitch(self) -> int:
        """Lines from one stream to the next: one more than its steps, for the state that enters it.
        It is odd, so that loads with this stride meet no bank of memory twice."""
        return self.length + 1

    @property
    def tile(self) -> int:
        """Steps in a tile."""
        return self.piece * self.pieces

    @property
    def order(self) -> list[int]:
        """The pieces of a tile in the order in which they are taken."""
        return list(range(self.pieces))[:: -1 if self.descending else 1]

    @property
    def tiles(self) -> int:
        return -(-self.steps // self.tile)

    @property
    def groups(self) -> int:
        return self.rows // self.group

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cores, the groups of rows of a core, and tiles."""
        return self.cores, self.groups // self.cores, self.tiles

    @property
    def blocks(self) -> int:
        """Blocks of 128 states."""
        return self.states // LANES

    @property
    def lane_blocks(self) -> int:
        """Blocks of 128 columns of which each has one plane of 128 states."""
        return self.planes * self.blocks

    @property
    def width(self) -> int:
        """Columns of a matrix that maps to or from states: planes of a block side by side."""
        return self.planes * self.states

    @property
    def ragged(self) -> bool:
        """Whether the last tile goes beyond the sequence."""
        return self.steps % self.tile != 0

    def first_stream(self, row: int) -> int:
        """The stream of a row that is taken first."""
        return row * self.parts + (self.parts - 1 if self.descending else 0)

    def tile_at(self, n):
        """The tile that is taken as number `n`."""
        return self.tiles - 1 - n if self.descending else n

    def group_at(self, core, i):
        """The group of rows that a core takes as number `i`."""
        return core * (self.groups // self.cores) + i


def columns_at_once(count: int) -> int:
    """Columns of a matrix that a product takes at a time, out of `count`."""
    return next((width for width in (2 * LANES, LANES) if count % width == 0), count)


def vmem_capacity(target: Target) -> int:
    """Vector memory of a core in bytes; that of a TPU v4, the smallest, if it is not known."""
    return _VMEM_MIB.get(target.device_kind or "", 16) << 20


def too_large(spec: SSMSpec, target: Target) -> str | None:
    """Why the maps, their gradients and a tile do not fit in vector memory, or `None`."""
    plan = Plan.of(spec, target)
    needed = vmem_bytes(spec, plan)
    if needed > plan.vmem:
        return (
            f"B, C, their gradients and a tile take {needed >> 20} of {plan.vmem >> 20} MiB on chip"
        )
    return None


def vmem_bytes(spec: SSMSpec, plan: Plan) -> int:
    """Vector memory of the backward kernel, which takes more than the forward kernel."""
    inputs, outputs = round_up(spec.idim, LANES), round_up(spec.odim, LANES)
    item = 2 if spec.dtype == "bfloat16" else 4
    steps = plan.group * plan.tile
    maps = (inputs + outputs) * plan.width
    lines = plan.pieces * plan.lane_blocks * STREAMS * plan.pitch * LANES
    needed = {
        "maps": maps * item,
        "their gradients": maps * 4,
        "two tiles of u, g and du": 2 * (2 * inputs + outputs) * steps * item,
        "tiles with time last": (inputs + outputs) * steps * item,
        "states and cotangents in float32": 2 * lines * 4,
    }
    # A sixth for what the compiler adds, such as products on their way.
    return sum(needed.values()) * 7 // 6
