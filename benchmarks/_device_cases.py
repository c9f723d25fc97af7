"""What is checked and timed of each operation on an accelerator, most important first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rnnscale.cli._cell_arguments import CellArguments
from rnnscale_kernels.testing import (
    BLOCK_ARGUMENTS,
    SCAN_ARGUMENTS,
    BlockArguments,
    CallArguments,
    ScanArguments,
    SSMArguments,
)


@dataclass(frozen=True)
class Job:
    """What is done with an operation, by each of its implementations.

    - `checks`: compared with the reference, values and gradients; the riskiest first.
    - `times`: timed, forward and gradient; the most important first.
    - `tiny_checks`, `tiny_times`: with `--quick`, and in a rehearsal, where kernels are
        interpreted.
    """

    checks: Sequence[CallArguments]
    times: Sequence[CallArguments]
    tiny_checks: Sequence[CallArguments]
    tiny_times: Sequence[CallArguments]

    @property
    def example(self) -> CallArguments:
        """One of the arguments: what does not depend on sizes can be asked of it."""
        return self.tiny_checks[0]


BFLOAT16 = "bfloat16"


def scan_checks() -> Iterator[ScanArguments]:
    # Full blocks of channels whose tiles do not divide the length: only there results leave as
    # flat copies.
    yield ScanArguments(channels=128, time=100)
    yield ScanArguments(channels=128, time=100, dtype=BFLOAT16, planar=True, varying=False)
    yield from SCAN_ARGUMENTS
    for varying, planar in ((True, False), (False, True)):
        yield ScanArguments((1,), 65536, 64, varying=varying, planar=planar, slow=True)


def scan_times() -> Iterator[ScanArguments]:
    large = ScanArguments((8,), 4096, 1024)
    yield large
    yield replace(large, dtype=BFLOAT16)
    yield ScanArguments((1,), 65536, 256)
    yield replace(large, planar=True)
    yield replace(large, batch=(5,), dtype=BFLOAT16)
    yield replace(large, batch=(1,))
    yield replace(large, varying=False)
    yield replace(large, planar=True, varying=False)
    yield replace(large, dtype=BFLOAT16, planar=True)
    yield ScanArguments((64,), 1024, 512)


def ssm_checks() -> Iterator[SSMArguments]:
    # The largest matrices that fit on chip; more than do; several blocks of states; odd sizes.
    for widths in ((128, 128, 128), (256, 256, 256), (96, 200, 72), (24, 40, 16), (512, 512, 512)):
        yield SSMArguments((3,), 300, *widths, dtype=BFLOAT16, ragged=True, reverse=True)
    yield SSMArguments((2,), 2000, 64, 64, 64, dtype=BFLOAT16)
    yield SSMArguments((2,), 100, 40, 130, 24, dtype=BFLOAT16, planar=False)
    yield SSMArguments((3,), 700, 24, 40, 16, ragged=True, reverse=True)
    yield SSMArguments((3,), 1, 24, 40, 16)


def ssm_times() -> Iterator[SSMArguments]:
    for width in (128, 256, 512, 1024):
        yield SSMArguments((8,), 16384, width, width, width, dtype=BFLOAT16)
    yield SSMArguments((1,), 65536, 128, 128, 128, dtype=BFLOAT16)
    yield SSMArguments((64,), 1024, 128, 128, 128, dtype=BFLOAT16)
    yield SSMArguments((8,), 4096, 256, 256, 256)


def elementwise_checks() -> Iterator[CellArguments]:
    for cell in ("indrnn", "paragru", "paralstm", "lrcssm", "unicornn"):
        yield CellArguments(cell, (3,), 100, 24, 128)
        if cell != "indrnn":  # where rounding may flip the sign of a pre-activation
            yield CellArguments(cell, (3,), 100, 24, 136, dtype=BFLOAT16)


def elementwise_times() -> Iterator[CellArguments]:
    for cell in ("indrnn", "paragru", "paralstm", "lrcssm", "unicornn"):
        yield CellArguments(cell, (8,), 4096, 256, 1024, dtype=BFLOAT16)


def persistent_checks() -> Iterator[CellArguments]:
    # The largest that fit on chip; one program of all units; rows that do not fill a cluster.
    for cell, width in (("lstm", 384), ("gru", 448), ("elman", 640), ("gru", 100), ("lstm", 128)):
        yield CellArguments(cell, (17,), 40, 32, width, dtype=BFLOAT16)


def persistent_times() -> Iterator[CellArguments]:
    for cell, width in (("lstm", 384), ("gru", 448), ("elman", 640), ("lstm", 256), ("lstm", 128)):
        yield CellArguments(cell, (64,), 1024, 256, width, dtype=BFLOAT16)


JOBS: dict[str, Job] = {
    "linear_scan": Job(
        tuple(scan_checks()),
        tuple(scan_times()),
        (ScanArguments(channels=4, time=9, planar=True, reset=True),),
        (ScanArguments((1,), 16, 8, dtype=BFLOAT16),),
    ),
    "diagonal_ssm": Job(
        tuple(ssm_checks()),
        tuple(ssm_times()),
        (SSMArguments((1,), 5, 8, 20, 16, dtype=BFLOAT16, ragged=True, reverse=True),),
        (SSMArguments((1,), 8, 8, 16, 8, dtype=BFLOAT16),),
    ),
    "elementwise": Job(
        tuple(elementwise_checks()),
        tuple(elementwise_times()),
        (CellArguments("indrnn", (1,), 9, 3, 8),),
        (CellArguments("indrnn", (1,), 8, 4, 8, dtype=BFLOAT16),),
    ),
    "persistent": Job(
        tuple(persistent_checks()),
        tuple(persistent_times()),
        (CellArguments("lstm", (2,), 6, 4, 8, dtype=BFLOAT16),),
        (CellArguments("gru", (2,), 6, 4, 8, dtype=BFLOAT16),),
    ),
    "block_scan": Job(
        tuple(BLOCK_ARGUMENTS),
        (
            BlockArguments((8,), 4096, 512),
            BlockArguments((8,), 4096, 512, varying=False),
            BlockArguments((8,), 4096, 512, dtype=BFLOAT16),
        ),
        (BlockArguments(time=12, channels=4, reset=True),),
        (BlockArguments((1,), 12, 4),),
    ),
}
"""By the name of the job. A new kernel's arguments go here, the riskiest first."""
