"""The operations that `rnnscale bench` times: their options, and the arguments of a call.

Everything is listed here, names of implementations too, since the tables of the operations need
jax, which takes seconds to import.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rnnscale_kernels.testing import CallArguments


@dataclass(frozen=True)
class Size:
    """An option for a size: its default, that of `--quick`, what it counts, and the largest."""

    default: int
    quick: int
    meaning: str
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One benchmark of `rnnscale bench`.

    - `name`: of the command; `summary`: a line of help; `description`: more of it.
    - `examples`: options of commands, for the end of the help.
    - `sizes`: the sizes besides rows and steps, by the name of their option.
    - `kinds`: what else distinguishes calls, by the name of the option; the first is the default.
    - `implementations`: all names, those of textbook forms too.
    - `make(batch, time, sizes, kinds)`: the arguments of a call.
    - `tokens`: the default of rows times steps on CPUs and elsewhere; `length`: of the steps.
    """

    name: str
    summary: str
    description: str
    examples: tuple[str, ...]
    sizes: Mapping[str, Size]
    kinds: Mapping[str, tuple[str, ...]]
    implementations: tuple[str, ...]
    make: Callable[[int, int, dict[str, int], dict[str, str]], "CallArguments"]
    tokens: tuple[int, int] = (1 << 15, 1 << 18)
    quick_tokens: int = 1 << 14
    length: int = 4096
    quick_length: int = 2048


def _scan(batch: int, time: int, sizes: dict[str, int], kinds: dict[str, str]) -> "CallArguments":
    from rnnscale_kernels.testing import ScanArguments

    return ScanArguments(
        (batch,), time, sizes["channels"],
        planar=kinds["numbers"] == "planar", varying=kinds["decay"] == "varying",
        dtype=kinds["dtype"],
    )  # fmt: skip


def _ssm(batch: int, time: int, sizes: dict[str, int], kinds: dict[str, str]) -> "CallArguments":
    from rnnscale_kernels.testing import SSMArguments

    features = sizes["features"]
    return SSMArguments(
        (batch,), time, features, sizes["states"], features,
        planar=kinds["numbers"] == "planar", dtype=kinds["dtype"],
    )  # fmt: skip


def _blocks(batch: int, time: int, sizes: dict[str, int], kinds: dict[str, str]) -> "CallArguments":
    from rnnscale_kernels.testing import BlockArguments

    return BlockArguments(
        (batch,), time, sizes["channels"], sizes["planes"],
        varying=kinds["decay"] == "varying", dtype=kinds["dtype"],
    )  # fmt: skip


def _cell(batch: int, time: int, sizes: dict[str, int], kinds: dict[str, str]) -> "CallArguments":
    from rnnscale.cli._cell_arguments import CellArguments

    return CellArguments(
        kinds["cell"], (batch,), time, sizes["features"], sizes["units"], dtype=kinds["dtype"]
    )


_DTYPES = ("float32", "bfloat16")
_NUMBERS, _DECAY = ("real", "planar"), ("varying", "invariant")
_TEXTBOOK = ("associative_scan", "lax_scan")

OPERATIONS = (
    Operation(
        name="scan",
        summary="linear_scan, the diagonal linear recurrence",
        description="Times every implementation of linear_scan that runs here, and autodiff "
        "through jax.lax.associative_scan and jax.lax.scan, in turns.",
        examples=("--quick", "--length 1024 16384 --mode gradient --json rows.json"),
        sizes={"channels": Size(256, 128, "channels of a step")},
        kinds={"dtype": _DTYPES, "numbers": _NUMBERS, "decay": _DECAY},
        implementations=(
            "chunked", "sequential", "associative", "mosaic_gpu", "triton", "mosaic_tpu",
            *_TEXTBOOK,
        ),
        make=_scan,
    ),
    Operation(
        name="ssm",
        summary="diagonal_ssm, the linear part of an LRU or S5 layer",
        description="Times every implementation of diagonal_ssm that runs here, the linear part of "
        "an LRU or S5 layer, and its textbook forms: the two matrix products with autodiff through "
        "jax.lax.associative_scan or jax.lax.scan between them.",
        examples=("--quick", "--features 128 --states 128 256 --dtype bfloat16 --json rows.json"),
        sizes={
            "features": Size(64, 32, "features of input and output"),
            "states": Size(256, 32, "states"),
        },
        kinds={"dtype": _DTYPES, "numbers": ("planar", "real")},
        implementations=(
            "chunked", "unfused", "mosaic_gpu", "mosaic_gpu_wide", "mosaic_tpu", *_TEXTBOOK,
        ),
        make=_ssm,
        length=2048,
    ),
    Operation(
        name="block-scan",
        summary="block_scan, the linear recurrence with small blocks",
        description="Times every implementation of block_scan that runs here, and autodiff through "
        "jax.lax.associative_scan and jax.lax.scan, in turns.",
        examples=("--quick", "--planes 2 3 --decay invariant --json rows.json"),
        sizes={
            "channels": Size(128, 32, "channels of a step"),
            "planes": Size(2, 2, "planes of a state, 1 to 4", most=4),
        },
        kinds={"dtype": _DTYPES, "decay": _DECAY},
        implementations=(
            "chunked", "sequential", "associative", "mosaic_gpu", "mosaic_tpu", *_TEXTBOOK,
        ),
        make=_blocks,
    ),
    Operation(
        name="cell",
        summary="a nonlinear cell over a sequence",
        description="Times a nonlinear cell over a sequence: the loop over time, the kernels that "
        "run its steps on this device, and a plain jax.lax.scan of the cell with autodiff; for an "
        "LSTM on an NVIDIA GPU also that of cuDNN, in float32.",
        examples=("--quick", "--cell lstm gru --units 128 256 --json rows.json"),
        sizes={
            "features": Size(64, 16, "features of the input"),
            "units": Size(256, 32, "units of the cell"),
        },
        kinds={
            "cell": (
                "lstm", "gru", "elman", "leaky-elman", "wilson-cowan", "indrnn", "gru-cho", "mgu",
                "antisymmetric", "antisymmetric-gated", "clockwork", "lipschitz",
                "lipschitz-gated", "urnn", "cornn", "cornn-heterogeneous", "unicornn", "exprnn",
                "nnrnn", "paragru", "paralstm", "lrcssm", "ron",
            ),
            "dtype": _DTYPES,
        },
        implementations=(
            "loop", "sequential", "mosaic_gpu", "mosaic_tpu", "lax_scan", "cudnn_lstm",
        ),
        make=_cell,
        tokens=(1 << 13, 1 << 16),
        quick_tokens=1 << 10,
        length=512,
        quick_length=128,
    ),
)  # fmt: skip
"""In the order of `rnnscale bench --help`."""
