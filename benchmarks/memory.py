"""Peak memory of the gradient of language models over the length of the sequence.

    python benchmarks/memory.py [--quick] [--out FILE]

Each is two blocks of 64 features, on one row of tokens. The gradient of its cross-entropy is
compiled and not run: the figures are the temporaries that the compiler lays out. `whole` is the
plain loss, `chunks` the same in chunks of about the square root of the length.
"""

import argparse
import json
import math
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from rnnscale import LRU, S5, LongShortTermMemoryCell, RNNEncoder
from rnnscale.models import LanguageModel
from rnnscale.training import cross_entropy, in_chunks

DIM, DEPTH, VOCAB = 64, 2, 256
LENGTHS = (2**14, 2**16, 2**18, 2**20)
LAYERS = {
    "S5": lambda key: S5(DIM, 2 * DIM, key=key),
    "LRU": lambda key: LRU(DIM, DIM, key=key),
    "LSTM": lambda key: RNNEncoder(LongShortTermMemoryCell(DIM, DIM, key=key)),
}


def chunk_of(length: int) -> int:
    """The power of two at the square root of the length, or above."""
    return 2 ** math.ceil(math.log2(length) / 2)


def measure(name: str, length: int, chunk: int | None) -> dict[str, Any]:
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

    start = time.perf_counter()
    program = jax.jit(jax.grad(total)).lower(arrays, {"inputs": tokens, "labels": tokens}).compile()
    memory: Any = program.memory_analysis()
    return {
        "layer": name,
        "length": length,
        "chunk": chunk,
        "temp_bytes": memory.temp_size_in_bytes,
        "compile_s": round(time.perf_counter() - start, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of the gradient over the length.")
    parser.add_argument("--quick", action="store_true", help="short sequences, one layer")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    lengths, names = ((2**10, 2**12), ["LRU"]) if options.quick else (LENGTHS, list(LAYERS))
    rows = [
        measure(name, length, chunk)
        for name in names
        for length in lengths
        for chunk in (None, chunk_of(length))
    ]
    device = jax.devices()[0].device_kind
    table = Table(title=f"temporaries of the gradient, MB; {device}, jax {jax.__version__}")
    for column in ("layer", "form", *(f"{length:,}" for length in lengths)):
        table.add_column(column)
    for name in names:
        for form in ("whole", "chunks"):
            figures = (
                f"{row['temp_bytes'] / 1e6:.2f}"
                for row in rows
                if row["layer"] == name and (row["chunk"] is None) == (form == "whole")
            )
            table.add_row(name, form, *figures)
    Console(width=120).print(table)
    if options.out:
        about = {
            "device": device,
            "machine": platform.machine(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "equinox")},
            "shape": {"batch": 1, "features": DIM, "blocks": DEPTH, "vocab": VOCAB},
        }
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
