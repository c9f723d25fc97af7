"""Finds the fastest configurations of the kernels on this machine's accelerator.

Some constants of a kernel can only be chosen on its device: the bytes of a tile, the stages of a
ring, how time is split. Every candidate is compiled and timed on the cases that it affects. Each
kind of kernel runs in a process of its own, as in `gpu`. Rows are written one by one; `best` marks
the fastest candidate of a case, and `now_ms` is the time with the present constants.

For Triton the best configurations are written to `_triton_configs.json` in the folder of the
kernels, under the kind of this device. The constants of the other kernels stand in their modules,
and are changed by hand. `--quick` measures few candidates and writes nothing. `--rehearse` runs the
same on a CPU, with interpreted kernels at tiny sizes.
"""

import abc
import argparse
import contextlib
import importlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from rnnscale_kernels._target import H100, Target, local_platform
from rnnscale_kernels.linear_scan._triton_config import (
    CONFIGS,
    Config,
    narrowest_block,
    tuned_configs,
)
from rnnscale_kernels.testing import (
    CallArguments,
    ScanArguments,
    SSMArguments,
    environment,
    failure,
    measure_call,
)

from ._benchmark import Benchmark, Row, Unavailable, case_name, columns
from ._parts import DEVICE, FAULTS, REHEARSAL, Part, run_part, write_rows

MODULE = "benchmarks.tune"
LONGEST = 1200.0
# Shared memory that every GPU since Ampere gives a program.
SHARED_MEMORY = 96 * 1024
BFLOAT16 = "bfloat16"


@dataclass(frozen=True)
class Case:
    """What a candidate is timed on. `kernel` is the one that it is for, if there are several."""

    arguments: CallArguments
    mode: str
    kernel: str = ""


@dataclass(frozen=True)
class Tunable(abc.ABC):
    """The kernels of one implementation, and the candidates for their configuration.

    A candidate is a dictionary. The empty one stands for what runs now.
    """

    implementation: str
    platform: str

    @abc.abstractmethod
    def cases(self, *, tiny: bool) -> Iterator[Case]: ...

    @abc.abstractmethod
    def candidates(self, case: Case) -> Iterator[dict[str, Any]]: ...

    @abc.abstractmethod
    def applied(self, case: Case, candidate: Mapping[str, Any]) -> Any:
        """A context in which kernels are lowered with the candidate."""


@dataclass(frozen=True)
class Constants(Tunable):
    """Constants of a module, with the values to try."""

    module: str
    values: Mapping[str, tuple[Any, ...]]
    large: tuple[CallArguments, ...]
    small: CallArguments

    def cases(self, *, tiny: bool) -> Iterator[Case]:
        for arguments in (self.small,) if tiny else self.large:
            for mode in ("forward", "gradient"):
                yield Case(arguments, mode)

    def candidates(self, case: Case) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*self.values.values()):
            yield dict(zip(self.values, values, strict=True))

    @contextlib.contextmanager
    def applied(self, case: Case, candidate: Mapping[str, Any]) -> Iterator[None]:
        module = importlib.import_module(self.module)
        before = {name: getattr(module, name) for name in candidate}
        for name, value in candidate.items():
            setattr(module, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(module, name, value)


class _OneKernel(dict[str, Config]):
    """Configurations in which every case of one kernel has the same. It keeps their names."""

    def __init__(self, others: Mapping[str, Config], kernel: str, config: Config):
        super().__init__(others)
        self.kernel, self.config = kernel, config
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        if name.startswith(f"{self.kernel} "):
            self.asked.add(name)
            return self.config
        return super().get(name, default)


@dataclass(frozen=True)
class Triton(Tunable):
    """The launch configurations of the Triton kernels.

    The forward kernel is timed by the forward pass; with few channels, where time is split, so is
    the one for the totals. The backward kernel is timed by the gradient.
    """

    def cases(self, *, tiny: bool) -> Iterator[Case]:
        shapes = {
            "forward": (((8,), 4096, 1024), ((4,), 8192, 1024)),
            "totals": (((1,), 65536, 256),),
            "backward": (((8,), 4096, 1024), ((4,), 8192, 1024)),
        }
        if tiny:
            shapes = {"forward": (((2,), 8, 8),), "backward": (((2,), 8, 8),)}
        kinds = itertools.product((True, False), (False, True), ("float32", BFLOAT16))
        for varying, planar, dtype in itertools.islice(kinds, 1 if tiny else None):
            for kernel, sizes in shapes.items():
                for batch, length, channels in sizes:
                    spec = ScanArguments(
                        batch, length, channels, planar=planar, varying=varying, dtype=dtype
                    )
                    mode = "gradient" if kernel == "backward" else "forward"
                    yield Case(spec, mode, kernel)

    def candidates(self, case: Case) -> Iterator[dict[str, Any]]:
        """Configurations whose pipeline fits into the shared memory of a program."""
        spec: Any = case.arguments
        itemsize = {"float32": 4, BFLOAT16: 2}[spec.dtype]
        arrays = (1 + spec.planar) * (spec.varying + (2 if case.kernel == "backward" else 1))
        for block, rows, stages, warps in itertools.product(
            (32, 64, 128), (4, 8), (4, 6, 8), (1, 2)
        ):
            # From 4 bytes a thread, which asynchronous copies need, to 4 channels a thread.
            fits = narrowest_block(spec.dtype) * warps <= block <= 4 * 32 * warps
            if fits and (stages - 1) * rows * arrays * block * itemsize <= SHARED_MEMORY:
                yield Config(block, rows, stages, warps)._asdict()

    @contextlib.contextmanager
    def applied(self, case: Case, candidate: Mapping[str, Any]) -> Iterator[_OneKernel | None]:
        if not candidate:
            yield None
            return
        kind = self.device_kind()
        before = tuned_configs().get(kind, {})
        override = _OneKernel(before, case.kernel, Config(**candidate))
        tuned_configs()[kind] = override
        try:
            yield override
        finally:
            tuned_configs()[kind] = before

    @staticmethod
    def device_kind() -> str | None:
        here = local_platform()
        return (H100 if here == "cpu" else Target.of(here)).device_kind


SCAN = ScanArguments((8,), 4096, 1024)
SCANS = (SCAN, replace(SCAN, dtype=BFLOAT16), ScanArguments((1,), 65536, 256))
TINY_SCAN = ScanArguments((1,), 16, 8)
TUNABLES: dict[str, Tunable] = {
    "triton": Triton("triton", "cuda"),
    "scan-tiles": Constants(
        "mosaic_gpu",
        "cuda",
        "rnnscale_kernels.linear_scan._mosaic_gpu_plan",
        {
            "_TILE_BYTES": tuple(n << 10 for n in (12, 24, 48)),
            "_RING_BYTES": tuple(n << 10 for n in (48, 64, 96)),
        },
        SCANS,
        TINY_SCAN,
    ),
    "scan-split-time": Constants(
        "mosaic_gpu",
        "cuda",
        "rnnscale_kernels.linear_scan._mosaic_gpu_plan",
        {
            "_SPLIT_TILE_BYTES": tuple(n << 10 for n in (32, 64, 96)),
            "_WARPGROUPS": (1, 2, 4),
        },
        (ScanArguments((1,), 65536, 256), ScanArguments((1,), 4096, 1024)),
        TINY_SCAN,
    ),
    "layer-padding": Constants(
        "mosaic_gpu",
        "cuda",
        "rnnscale_kernels.diagonal_ssm._mosaic_gpu_plan",
        {"_PAD": (4, 8), "_STAGES": (2, 3)},
        (
            SSMArguments((8,), 16384, 64, 64, 64, dtype=BFLOAT16),
            SSMArguments((8,), 16384, 128, 128, 128, dtype=BFLOAT16),
        ),
        SSMArguments((1,), 64, 8, 16, 8, dtype=BFLOAT16),
    ),
    "wide-layer-segments": Constants(
        "mosaic_gpu_wide",
        "cuda",
        "rnnscale_kernels.diagonal_ssm._mosaic_gpu_wide_plan",
        {"_PAYS": (0.5, 0.75, 1.0)},
        (
            SSMArguments((8,), 16384, 256, 256, 256, dtype=BFLOAT16),
            SSMArguments((2,), 16384, 512, 512, 512, dtype=BFLOAT16),
        ),
        SSMArguments((1,), 8, 8, 16, 8, dtype=BFLOAT16),
    ),
    "tpu-layer-walk": Constants(
        "mosaic_tpu",
        "tpu",
        "rnnscale_kernels.diagonal_ssm._mosaic_tpu_kernel",
        {"_BLOCKS": (2, 4, 8), "_UNROLL": (4, 8, 16)},
        (
            SSMArguments((8,), 16384, 256, 256, 256, dtype=BFLOAT16),
            SSMArguments((8,), 16384, 512, 512, 512, dtype=BFLOAT16),
        ),
        SSMArguments((1,), 8, 8, 16, 8, dtype=BFLOAT16),
    ),
    "scan-vmem": Constants(
        "mosaic_tpu",
        "tpu",
        "rnnscale_kernels.linear_scan._mosaic_tpu_plan",
        {"_VMEM_BYTES": tuple(n << 20 for n in (2, 4, 8))},
        SCANS,
        TINY_SCAN,
    ),
}
"""By the name of the part. A constant that a device should choose needs an entry here."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", nargs="+", choices=TUNABLES, metavar="PART",
        help=f"of {', '.join(TUNABLES)}; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU, with interpreted kernels at tiny sizes"
    )


def run(options: argparse.Namespace) -> Iterator[Row]:
    given = ["--rounds", "1" if options.rehearse else str(options.rounds)]
    given += [f"--{name}" for name in ("quick", "rehearse") if getattr(options, name)]

    def part(name: str) -> Iterator[Row]:
        environment = REHEARSAL if options.rehearse else DEVICE
        yield from run_part(Part((name,), {"part": name}), MODULE, given, LONGEST, environment)

    rows = list(part("machine"))
    options.machine = {key: value for key, value in rows[0].items() if key != "part"}
    here = options.machine.get("platform")
    if here == "cpu" and not options.rehearse:
        raise Unavailable("it needs an accelerator; --rehearse runs everything on a CPU")
    yield from rows
    if here is None:
        return
    for name in options.only or TUNABLES:
        if not options.rehearse and TUNABLES[name].platform != here:
            continue
        rows = []
        for row in part(name):
            rows.append(row)
            yield row
        if name == "triton" and not (options.quick or options.rehearse):
            write_triton(rows, options.machine["device"])


def main() -> None:
    """Runs one part, in its own process."""
    parser = argparse.ArgumentParser(description="One part of `python -m benchmarks tune`.")
    parser.add_argument("part")
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--fault", choices=FAULTS)
    options = parser.parse_args()
    rows = iter([environment()])
    if options.part != "machine":
        rows = tuned(TUNABLES[options.part], options, time.monotonic() + options.seconds)
    write_rows(rows, options.lines, options.fault)


def tuned(tunable: Tunable, options: argparse.Namespace, deadline: float) -> Iterator[Row]:
    """A row for every candidate of every case; after those of a case, one that is `best`."""
    most = 1 if options.rehearse else 2 if options.quick else None
    for case in itertools.islice(tunable.cases(tiny=options.rehearse), most):
        about: Row = {"kernel": case.kernel, "mode": case.mode, **case.arguments.sizes()}
        if time.monotonic() > deadline:
            yield {**about, "dropped": f"{case.kernel} {case.mode} {case.arguments}"}
            continue
        found = []
        candidates = itertools.islice(tunable.candidates(case), most)
        for candidate in ({}, *candidates):
            row = {**about, "config": candidate, **timed(tunable, case, candidate, options)}
            found.append(row)
            yield row
        working = [row for row in found if "time_ms" in row]
        if working:
            best = min(working, key=lambda row: row["time_ms"])
            yield {**best, "best": True, "now_ms": found[0].get("time_ms")}


def timed(
    tunable: Tunable, case: Case, candidate: Mapping[str, Any], options: argparse.Namespace
) -> Row:
    """The time of a candidate, and for Triton the names of the configurations that it is for."""
    name = tunable.implementation + ("_interpreted" if options.rehearse else "")
    jax.clear_caches()  # what was lowered with another candidate
    try:
        with tunable.applied(case, candidate) as override:
            (row,) = measure_call(
                case.arguments, case.mode, [name], rounds=options.rounds, seconds=0.5
            )
    except Exception as error:  # Reported in the row; the other candidates go on.
        return failure(error)
    kept = ("time_ms", "best_ms", "spread", "compile_s", "error", "unsupported")
    names = {"configs": sorted(override.asked)} if isinstance(override, _OneKernel) else {}
    return {**{key: row[key] for key in kept if key in row}, **names}


def write_triton(rows: Sequence[Row], device_kind: str) -> None:
    """Writes the best configurations of this kind of device into the file that the kernels read."""
    devices = {
        kind: {name: config._asdict() for name, config in cases.items()}
        for kind, cases in tuned_configs().items()
    }
    found = devices.setdefault(device_kind, {})
    for row in rows:
        if row.get("best") and row["config"]:
            found |= {name: row["config"] for name in row["configs"]}
    CONFIGS.write_text(json.dumps(devices, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> Any:
    """The best of each case, beside what runs now, and what failed."""
    shown = [row for row in rows if row.get("best") or "error" in row or "dropped" in row]
    return COLUMNS([{**row, "case": case_name(row)} if "dtype" in row else row for row in shown])


COLUMNS = columns("part", "kernel", "case", "mode", "now_ms", "time_ms", "config", "dropped")


def device(options: argparse.Namespace) -> Row:
    """The device and the versions, which a part has asked for."""
    return options.machine


BENCHMARK = Benchmark(run=run, table=table, add_options=add_options, environment=device, rounds=5)


if __name__ == "__main__":
    main()
