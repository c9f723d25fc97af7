"""Time and memory of LRU and S5 layers, beside the textbook form and other libraries.

    python benchmarks/ssm_layers.py [--peers] [--out FILE.json]

Every competitor runs in this process on the same input; `_measure.py` says how times are taken.

The textbook form has the same parameters and gives the same output: B as one complex product, the
decay repeated along time, `jax.lax.associative_scan` over complex64, C as another product, with
gradients by JAX's own differentiation. It is how the public S5 and LRU code in JAX is written.
"""

import argparse
import json
import platform
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _measure import best_ms, compiled
from rich.console import Console
from rich.table import Table

from rnnscale import LRU, S5
from rnnscale.ssm import DiagonalSSM


@dataclass(frozen=True)
class Shape:
    batch: int
    time: int
    features: int
    states: int  # complex

    def __str__(self) -> str:
        return f"B={self.batch} L={self.time:,} features={self.features} states={self.states}"


SHAPES = (
    Shape(8, 2048, 64, 256),
    Shape(1, 12_000, 64, 160),
    Shape(16, 1024, 128, 128),
)

PEERS = ("discretax", "rnn-jax")


def textbook(layer: DiagonalSSM, xs: jax.Array) -> jax.Array:
    decay, b, c = (jax.lax.complex(x.re, x.im) for x in layer.discretise())

    def combine(left, right):
        return right[0] * left[0], right[0] * left[1] + right[1]

    def one_sequence(u):
        drive = u.astype(jnp.complex64) @ b.T
        decays = jnp.repeat(decay[None], u.shape[0], axis=0)
        _, h = jax.lax.associative_scan(combine, (decays, drive))
        return (h @ c.T).real

    ys = jax.vmap(one_sequence)(xs)
    return ys if layer.d is None else ys + layer.d * xs


def ours(layer: DiagonalSSM, xs: jax.Array) -> jax.Array:
    return layer(xs)[1]


def competitors(name: str, shape: Shape, peers: Collection[str]) -> dict[str, tuple[Callable, Any]]:
    """For each: `run(layer, xs) -> ys` and its layer."""
    key = jax.random.key(0)
    if name == "LRU":
        layer = LRU(shape.features, shape.states, r_min=0.9, r_max=0.999, key=key)
    else:
        layer = S5(shape.features, 2 * shape.states, key=key)
    found = {"rnnscale": (ours, layer), "textbook": (textbook, layer)}
    return found | peer_layers(name, shape, peers, key)


def installed_peers() -> dict[str, str]:
    """The versions of the peers that are installed; prints a line for each that isn't."""
    versions = {}
    for peer in PEERS:
        try:
            versions[peer] = metadata.version(peer)
        except metadata.PackageNotFoundError:
            print(f"{peer} isn't installed and is left out")
    return versions


def peer_layers(
    name: str, shape: Shape, peers: Collection[str], key: jax.Array
) -> dict[str, tuple[Callable, Any]]:
    """The layers of `peers`, each with `states` complex states, without the norm and GLU around it.

    Their parametrisation is their own, so that only time and memory are compared, not outputs;
    their decays start in the range of ours. The S5 of discretax keeps one state of each conjugate
    pair, as ours does; that of rnn-jax keeps both, so that as many states make a system of half
    the order there. The layers of rnn-jax do some more work, which they can't be asked to leave
    out: their skip is a matrix, one more product of `features` by `features` at every step, where
    that of the others is a vector.
    """
    found = {}
    if "discretax" in peers:
        from discretax.sequence_mixers import (  # pyright: ignore[reportMissingImports]
            LRUSequenceMixer,
            S5SequenceMixer,
        )

        if name == "LRU":
            layer = LRUSequenceMixer(
                shape.features, key, state_dim=shape.states, r_min=0.9, r_max=0.999
            )
        else:
            layer = S5SequenceMixer(shape.features, key, state_dim=2 * shape.states, dt_max=0.1)
        found["discretax"] = (lambda layer, xs: jax.vmap(lambda x: layer(x, key))(xs), layer)
    if "rnn-jax" in peers:
        # Parts of rnn-jax (`rnn_jax.layers` in 0.0.2) turn `jax_debug_nans` on for the process when
        # they are imported, which would make JAX look through every result of every competitor.
        debug_nans = jax.config.jax_debug_nans
        from rnn_jax.ssm import (  # pyright: ignore[reportMissingImports]
            LinearRecurrentUnit,
            SimplifiedStateSpaceLayer,
        )

        jax.config.update("jax_debug_nans", debug_nans)
        sizes = (shape.features, shape.states, shape.features)
        if name == "LRU":
            layer = LinearRecurrentUnit(
                *sizes, rho_min=0.9, rho_max=0.999, nonlinearity=identity, key=key
            )
        else:
            layer = SimplifiedStateSpaceLayer(*sizes, nonlinearity=identity, key=key)
        # Its LRU holds the decay in NumPy arrays, which would be constants and have no gradient.
        layer = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, layer)
        found["rnn-jax"] = (lambda layer, xs: jax.vmap(layer)(xs), layer)
    return found


def identity(xs: jax.Array) -> jax.Array:
    return xs


def measure(competitors: dict[str, tuple[Callable, Any]], xs: jax.Array, runs: int) -> dict:
    """Milliseconds and temporary bytes of forward pass and gradient, for every competitor."""
    thunks, figures = {}, {}
    for name, (run, layer) in competitors.items():
        modes, figures[name] = compiled(run, layer, xs)
        thunks |= {(name, mode): thunk for mode, thunk in modes.items()}
    for (name, mode), ms in best_ms(thunks, runs).items():
        figures[name][f"{mode}_ms"] = ms
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="LRU and S5 layers beside the textbook form.")
    parser.add_argument("--peers", action="store_true", help="add libraries that are installed")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    peers = installed_peers() if options.peers else {}
    device = jax.devices()[0].device_kind
    table = Table(title=f"{device}, jax {jax.__version__}; ratios are textbook / this")
    for column in ("layer", "shape", "form"):
        table.add_column(column)
    for column in ("forward ms", "ratio", "gradient ms", "ratio", "gradient temporaries MB"):
        table.add_column(column, justify="right")
    rows = []
    for name in ("LRU", "S5"):
        for shape in SHAPES:
            xs = jax.random.normal(jax.random.key(1), (shape.batch, shape.time, shape.features))
            entrants = competitors(name, shape, peers)
            check_equal(entrants, xs)
            figures = measure(entrants, xs, options.runs)
            base = figures["textbook"]
            for form, got in figures.items():
                rows.append({"layer": name, **vars(shape), "form": form, **got})
                table.add_row(
                    name,
                    str(shape),
                    form,
                    f"{got['forward_ms']:.1f}",
                    f"{base['forward_ms'] / got['forward_ms']:.2f}",
                    f"{got['gradient_ms']:.1f}",
                    f"{base['gradient_ms'] / got['gradient_ms']:.2f}",
                    f"{got['gradient_temp_bytes'] / 1e6:.1f}",
                )
    Console(width=150).print(table)
    if options.out:
        about = {"device": device, "machine": platform.machine(), "jax": jax.__version__, **peers}
        options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def check_equal(entrants: dict[str, tuple[Callable, Any]], xs: jax.Array) -> None:
    """Our form and the textbook's compute the same, or there is nothing to compare."""
    (run, layer), (other, same_layer) = entrants["rnnscale"], entrants["textbook"]
    got, expected = run(layer, xs), other(same_layer, xs)
    error = float(jnp.max(jnp.abs(got - expected)) / jnp.max(jnp.abs(expected)))
    if not error < 1e-4:
        raise SystemExit(f"the two forms differ by {error:.1e}, relative to the largest output")


if __name__ == "__main__":
    main()
