"""What is decided before a fused kernel for TPUs is lowered: streams of time, tiles, vector memory.

A vector register has 8 sublanes of 128 lanes. The recurrence fills it if every sublane holds one
step of another *stream*. A program takes a tile of consecutive steps of 1, 2, 4 or 8 rows and
splits it into 8 streams of equal length: those of 8 rows, or 8, 4 or 2 consecutive *parts* of fewer
rows. Side by side, rows and steps of a tile are one axis, and streams are consecutive pieces of it.
So tensor products see a matrix, and step k of all streams is one register that is loaded with a
stride.
"""

import math
from typing import NamedTuple

from .._sizes import round_up
from .._target import Target
from ._spec import SSMSpec

LANES = 128
STREAMS = 8

TILE = 64
"""Tiles have a multiple of this many steps, so that streams have a multiple of 8."""

UNROLL = 8
"""Steps that a turn of the loop over time takes."""

# Blocks of states that one loop over time takes together: enough independent operations to hide
# the latency of a step, few enough for their carries to stay in registers.
_BLOCKS_AT_ONCE = 4

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
    - `tile`: steps in a tile, which is also a chunk: between tiles the operation keeps the state.
    - `descending`: tiles and steps are taken from the last to the first.
    - `vmem`: vector memory that a kernel may take, in bytes.
    - `interpret`: the kernel runs in the interpreter.
    """

    rows: int
    steps: int
    states: int
    planes: int
    cores: int
    group: int
    tile: int
    descending: bool
    vmem: int
    interpret: bool

    @classmethod
    def of(cls, spec: SSMSpec, target: Target) -> "Plan":
        """The plan for a call with these properties."""
        # Rows that fill a group, so that no product is computed for nothing.
        group = math.gcd(spec.batch, STREAMS)
        return cls(
            rows=spec.batch,
            steps=spec.time,
            states=round_up(spec.state, LANES),
            planes=1 + spec.planar,
            cores=math.gcd(spec.batch // group, target.cores or 1),
            group=group,
            tile=round_up(min(spec.chunk, spec.time), TILE),
            descending=False,
            vmem=vmem_capacity(target),
            interpret=target.interpret,
        )

    @property
    def parts(self) -> int:
        return STREAMS // self.group

    @property
    def length(self) -> int:
        """Steps of a stream."""
        return self.tile // self.parts

    @property
    def pitch(self) -> int:
        """Registers' rows from one stream to the next: one more than its steps, for the state that
        enters it. It is odd, so that loads with this stride meet no bank of memory twice."""
        return self.length + 1

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
    def blocks_at_once(self) -> int:
        return math.gcd(self.blocks, _BLOCKS_AT_ONCE)

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
    needed, limit = _vmem_bytes(spec, Plan.of(spec, target)), vmem_capacity(target)
    if needed > limit:
        return f"B, C, their gradients and a tile take {needed >> 20} of {limit >> 20} MiB on chip"
    return None


def _vmem_bytes(spec: SSMSpec, plan: Plan) -> int:
    """Vector memory of the backward kernel, which takes more than the forward kernel."""
    inputs, outputs = round_up(spec.idim, LANES), round_up(spec.odim, LANES)
    item = 2 if spec.dtype == "bfloat16" else 4
    steps = plan.group * plan.tile
    maps = (inputs + outputs) * plan.width
    sequences = (2 * inputs + outputs) * steps
    lines = plan.blocks_at_once * plan.planes * STREAMS * plan.pitch * LANES
    needed = {
        "maps": maps * item,
        "their gradients": maps * 4,
        "two tiles of u, g and du": 2 * sequences * item,
        "tiles with time last": (inputs + outputs) * steps * item,
        "states and cotangents in float32": 2 * lines * 4,
        "the same for products": 2 * steps * plan.width * item,
    }
    # A sixth for what the compiler adds, such as products on their way.
    return sum(needed.values()) * 7 // 6
