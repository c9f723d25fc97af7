"""The contract of hand-written kernels: what a toolchain has to provide for `linear_scan`.

`_split_time` builds the passes of the operation on it; `_steps` fulfils most of it for a toolchain
that provides one function, a sweep.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from jax import Array

from .._target import Target
from ._spec import ScanSpec


class SideBySide(NamedTuple):
    """A complex sequence as one array, "*batch time 2*channel": the real planes of a step, then its
    imaginary ones. A matrix product makes it, or reads it, in one piece.

    Some kernels take it in place of a `Planar` sequence: see `Kernels.takes_side_by_side`.
    """

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each plane."""
        *steps, channels = self.array.shape
        return *steps, channels // 2

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self):
        return self.array.dtype


def is_side_by_side(x: Any) -> bool:
    """Whether `x` is `SideBySide`: a leaf where each sequence is to be one."""
    return isinstance(x, SideBySide)


class Launch(NamedTuple):
    """How a kernel walks over the rows.

    - `chunk`: steps in a chunk. Chunk `c` of the S chunks holds the steps from `c * chunk` on; the
        last chunk may be shorter. Each chunk of each row is one program or more.
    - `inner`: row r of the batch uses row `(r // inner) % R` of the R rows of the decay.
    - `descending`: this kernel walks from the last step to the first.
    - `target`: the device compiled for.
    """

    chunk: int
    inner: int
    descending: bool
    target: Target


class Kernels(ABC):
    """The four kernels of one toolchain, on `B` rows of `L` steps of `D` channels.

    Numbers are arrays, or `Planar` pairs if complex. The decay `a` is "R L D" or, if
    time-invariant, "R 1 D"; `cut` is "B L" booleans, or `None`. What enters and leaves chunks is
    "B S D" in float32. Everything of the size of the sequence, "B L D", has the dtype given.
    """

    dtypes: ClassVar[tuple[str, ...]]
    """The dtypes that `a` and `b` may have."""

    @abstractmethod
    def unavailable(self, target: Target) -> str | None:
        """Why the kernels cannot run on the target, or `None`."""

    def unsuited(self, target: Target, spec: ScanSpec) -> str | None:
        """Why another implementation would be faster, or `None`."""
        return None

    def takes_side_by_side(self, spec: ScanSpec) -> bool:
        """Whether all sequences of a call may be `SideBySide`."""
        return False

    @abstractmethod
    def chunk_steps(self, target: Target, spec: ScanSpec) -> int:
        """Steps in a chunk: all of them if rows and channels fill the device, or if the kernels
        split time by themselves."""

    @abstractmethod
    def forward(self, a, b, h0, cut: Array | None, launch: Launch) -> tuple[Any, Any]:
        """`(h, last)`: all states, and those that leave the chunks, when `h0` enters the chunks."""

    @abstractmethod
    def forward_totals(self, a, b, cut: Array | None, launch: Launch) -> tuple[Any, Any]:
        """`(product, end)` of each chunk: the product of its decays, wherever it is cut, and the
        state that leaves it when zero enters it. The product of a time-invariant decay is `None`.
        """

    @abstractmethod
    def backward(
        self, a, h, h0, cut: Array | None, g, c, launch: Launch, *, da_dtype: Any
    ) -> tuple[Any, Any, Any]:
        """`(da, db, c_out)`, in one pass from the step processed last to the first.

        `c` is the cotangent that the steps processed after t pass on to the state h_t, and h_p is
        the state before t. Then s_t = g_t + c, db_t = s_t, da_t = s_t conj(h_p), and
        c = conj(a_t) s_t is passed on to h_p; the last two are zero where t is cut. The argument
        `c` enters the chunks and `c_out` leaves them; `h0`, "B D", is the state before the row.
        The gradient of a time-invariant decay is summed over each chunk, "B S D" in float32.
        """

    @abstractmethod
    def backward_totals(self, a, g, cut: Array | None, launch: Launch) -> tuple[Any, Any]:
        """`(product, end)`: the same product, and the `c` that leaves a chunk that zero enters."""

    def unsupported(self, spec: ScanSpec) -> str | None:
        """Why the kernels cannot take these arguments, or `None`."""
        for dtype in (spec.dtype, spec.decay_dtype):
            if dtype not in self.dtypes:
                return f"takes {', '.join(self.dtypes)}, not {dtype}"
        if spec.state_dtype != "float32":
            return f"carries states in float32, not {spec.state_dtype}"
        if spec.batch * spec.channels == 0:
            return "a kernel needs something to compute"
        return None
