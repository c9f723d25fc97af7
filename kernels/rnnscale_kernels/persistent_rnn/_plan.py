"""What is decided before the kernels are lowered: which program holds which units and rows."""

from typing import NamedTuple

from .._sizes import round_up
from .._target import H100
from ._spec import PersistentSpec

UNITS = 64
"""Units are padded to a multiple of this, the rows of a tensor core's product."""

ROWS = 16
"""Rows of the batch are padded to a multiple of this, the narrowest operand with a swizzle."""

SHARED_BYTES = 226 * 1024
"""Shared memory of a program: all 227 KB but for the barriers."""

_PORTABLE = 8  # the most programs in a cluster that every GPU with clusters can run
_REGISTERS = 64  # registers of a thread for the accumulator of a product


class Plan(NamedTuple):
    """How units and rows are divided among programs.

    The programs of a cluster have all units of some rows: `units` of them each.

    - `states`, `gates`, `extras`: arrays of a unit.
    - `cluster`: programs in a cluster; `units`: units of each; `missing`: those of all that pad
        the network.
    - `slices`: clusters; `columns`: rows of the batch that each takes.
    - `gather_slots`, `scatter_slots`: buffers for what arrives in a step of the forward and of the
        backward pass. Two are filled in turns; a single one must be read before it is filled again.
    """

    states: int
    gates: int
    extras: int
    cluster: int
    units: int
    missing: int
    slices: int
    columns: int
    gather_slots: int
    scatter_slots: int

    @classmethod
    def of(cls, spec: PersistentSpec, cores: int = H100.multiprocessors) -> "Plan | None":
        """The plan for a GPU with `cores` multiprocessors; `None` if the matrix does not fit."""
        rows = round_up(spec.batch, ROWS)
        plans = [
            cls._with(spec, cluster, columns, rows // columns)
            for cluster in _clusters(round_up(spec.hdim, UNITS) // UNITS)
            for columns in (16, 32, 64)
            if rows % columns == 0
        ]
        plans = [plan for plan in plans if plan is not None]
        # As few programs in a cluster as hold the matrix, since an exchange takes longer than a
        # product. Of the divisions of rows, the finest that runs at once, or else the coarsest.
        smallest = [plan for plan in plans if plan.cluster == plans[0].cluster]
        at_once = [plan for plan in smallest if plan.cluster * plan.slices <= cores]
        return next(iter([*at_once, *smallest[::-1]]), None)

    @classmethod
    def _with(cls, spec: PersistentSpec, cluster: int, columns: int, slices: int) -> "Plan | None":
        padded = round_up(spec.hdim, UNITS)
        units, missing = padded // cluster, padded - spec.hdim
        if spec.gates * units * columns > 128 * _REGISTERS:
            return None
        plan = cls(
            spec.states, spec.gates, spec.extras, cluster, units, missing, slices, columns, 1, 1
        )  # fmt: skip
        if cluster > 1:
            two = plan._replace(gather_slots=2)
            plan = two if two.gather_bytes <= SHARED_BYTES else plan
            two = plan._replace(scatter_slots=2)
            plan = two if two.scatter_bytes <= SHARED_BYTES else plan
        return plan if max(plan.gather_bytes, plan.scatter_bytes) <= SHARED_BYTES else None

    @property
    def hdim(self) -> int:
        """All units, padded."""
        return self.cluster * self.units

    @property
    def rows(self) -> int:
        """All rows, padded."""
        return self.slices * self.columns

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the rows of the matrix that a program holds."""
        return 2 * self.gates * self.units * self.hdim

    @property
    def gather_bytes(self) -> int:
        """Shared memory of a program in the forward pass: also the states of all units."""
        return self.matrix_bytes + self.gather_slots * 2 * self.hdim * self.columns

    @property
    def scatter_bytes(self) -> int:
        """Shared memory in the backward pass: also cotangents of the program's gates, and from
        each program of the cluster those of its units."""
        gates = 2 * self.gates * self.units * self.columns
        return self.matrix_bytes + gates + self.scatter_slots * 4 * self.hdim * self.columns

    @property
    def peers_at_once(self) -> int:
        """Programs for which the backward pass multiplies at a time, as registers allow."""
        return max(1, min(self.cluster, 128 * _REGISTERS // (self.units * self.columns)))


def _clusters(blocks: int) -> list[int]:
    """The sizes of clusters whose programs hold equal numbers of blocks of units."""
    return [n for n in range(1, _PORTABLE + 1) if blocks % n == 0]
