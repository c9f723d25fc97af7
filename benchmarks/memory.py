"""Peak memory of the gradient of language models over the length of the sequence.

Each is two blocks of 64 features, on one row of tokens. The gradient of its cross-entropy is
compiled and not run: the figures are the temporaries that the compiler lays out. `whole` is the
plain loss, `chunks` the same in chunks of about the square root of the length.
"""

import argparse
import math
from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Group
from rich.table import Table

from rnnscale import LRU, S5, LongShortTermMemoryCell, RNNEncoder
from rnnscale.models import LanguageModel
from rnnscale.training import cross_entropy, in_chunks
from rnnscale_kernels.testing import compile_timed

from ._benchmark import Benchmark, Figure, Row
from ._plots import legend, lines, styles

DIM, DEPTH, VOCAB = 64, 2, 256
LENGTHS = (2**14, 2**16, 2**18, 2**20)
LAYERS = {
    "S5": lambda key: S5(DIM, 2 * DIM, key=key),
    "LRU": lambda key: LRU(DIM, DIM, key=key),
    "LSTM": lambda key: RNNEncoder(LongShortTermMemoryCell(DIM, DIM, key=key)),
}


def run(options: argparse.Namespace) -> Iterator[Row]:
    lengths, names = ((2**12,), ("LRU",)) if options.quick else (LENGTHS, tuple(LAYERS))
    for name in names:
        for length in lengths:
            for chunk in (None, chunk_of(length)):
                yield compiled_gradient(name, length, chunk)


def about(options: argparse.Namespace) -> Row:
    return {"shape": {"batch": 1, "features": DIM, "blocks": DEPTH, "vocab": VOCAB}}


def chunk_of(length: int) -> int:
    """The power of two at the square root of the length, or above."""
    return 2 ** math.ceil(math.log2(length) / 2)


def compiled_gradient(name: str, length: int, chunk: int | None) -> Row:
    """What the compiler says of the gradient, and how long it took."""
    loss = cross_entropy if chunk is None else in_chunks(cross_entropy, chunk)

    def build(key):
        return LanguageModel(VOCAB, make_layer=LAYERS[name], dim=DIM, depth=DEPTH, key=key)

    model = eqx.filter_eval_shape(build, jax.random.key(0))
    arrays, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def total(arrays, batch):
        _, totals = loss(eqx.combine(arrays, static), batch, None)
        return totals["loss"]

    batch = {"inputs": tokens, "labels": tokens}
    _, facts = compile_timed(jax.jit(jax.grad(total)), arrays, batch)
    return {"layer": name, "length": length, "chunk": chunk, **facts}


def form(row: Row) -> str:
    return f"{row['layer']}, {'whole' if row['chunk'] is None else 'chunks'}"


def table(rows: Sequence[Row]) -> Group:
    lengths = sorted({row["length"] for row in rows})
    found = Table("form", box=None)
    for length in lengths:
        found.add_column(f"{length:,}", justify="right")
    for name in dict.fromkeys(map(form, rows)):
        sizes = {row["length"]: row["temp_bytes"] / 1e6 for row in rows if form(row) == name}
        found.add_row(name, *(f"{sizes[length]:,.2f}" for length in lengths))
    return Group("temporaries of the gradient, MB, over the length", found)


def plot(rows: Sequence[Row], figure: Figure) -> None:
    panel = figure.subplots()
    named = [{**row, "form": form(row), "MB": row["temp_bytes"] / 1e6} for row in rows]
    lines(panel, named, "length", "MB", styles(map(form, rows)), by="form")
    panel.set_yscale("log")
    panel.set_ylabel("temporaries of the gradient, MB")
    legend(figure)


# Nothing is run, so nothing is repeated.
BENCHMARK = Benchmark(run=run, table=table, plot=plot, about=about, rounds=None)
