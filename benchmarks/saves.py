"""Memory of the host over many checkpoints, which are written in the background.

A state of eight arrays is updated, donated and saved, again and again. `host_mb` is the memory that
the process holds when the save is on disk. On CPUs that includes the state.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from rnnscale.training import Checkpointer

from ._benchmark import Benchmark, Figure, Row, Unavailable, columns

ARRAYS, ELEMENTS = 8, 2**22
SAVES = 40
QUICK = 4

_MEMORY = Path("/proc/self/statm")


def run(options: argparse.Namespace) -> Iterator[Row]:
    if not _MEMORY.exists():
        raise Unavailable("the memory of a process is read from /proc, which only Linux has")
    elements = ELEMENTS // 64 if options.quick else ELEMENTS
    saves = (QUICK if options.quick else SAVES) if options.saves is None else options.saves
    state = [jnp.full(elements, i, jnp.float32) for i in range(ARRAYS)]
    update = jax.jit(lambda state: [jnp.sin(x) + 1e-3 for x in state], donate_argnums=0)
    state_mb = sum(x.nbytes for x in state) / 1e6
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder, every=1) as checkpointer:
        for save in range(1, saves + 1):
            state = update(state)
            checkpointer.save(save, state)
            checkpointer.wait()
            yield {"save": save, "state_mb": state_mb, "host_mb": host_mb()}


def host_mb() -> float:
    """The memory that this process holds now, in MB."""
    return int(_MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--saves", type=int, metavar="N", help=f"default: {SAVES}; quick: {QUICK}")


def plot(rows: Sequence[Row], figure: Figure) -> None:
    figure.set_size_inches(5, 3)
    panel = figure.subplots()
    saves = [row["save"] for row in rows]
    panel.plot(saves, [row["host_mb"] for row in rows], marker="o", markersize=3, label="process")
    panel.plot(saves, [row["state_mb"] for row in rows], linestyle="--", label="state")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("saves")
    panel.set_ylabel("memory of the host, MB")
    panel.grid(color="0.9", linewidth=0.6)
    panel.legend()


BENCHMARK = Benchmark(
    run=run,
    table=columns("save", "state_mb", "host_mb"),
    plot=plot,
    add_options=add_options,
    rounds=None,
)
