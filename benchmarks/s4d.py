"""Ways to compute S4D: time and memory of the gradient, and which of them know resets.

`chunks` is ours. `pieces` expands inputs to the states of all modes and runs `linear_scan` over
pieces of 64 steps, `loop` takes the steps one after another in such pieces; both compute a piece
again in the backward pass. `fft` convolves with the kernel of the full length, as the authors' code
does: from the zero state, without resets. Seconds are those of the processor, the least of all
rounds; memory is what the compiler plans beyond arguments and results.
"""

import argparse
from collections.abc import Callable, Iterator
from time import process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from rnnscale._over_time import over_equal_pieces
from rnnscale.ssm import S4D
from rnnscale_kernels import Planar, linear_scan

from ._benchmark import OURS, Benchmark, Row, columns

STEPS = 64


class Shape(NamedTuple):
    batch: int
    time: int
    features: int
    state_dim: int


SHAPES = (Shape(16, 2048, 128, 64), Shape(16, 2048, 128, 16), Shape(2, 16384, 64, 64))
QUICK = Shape(2, 128, 4, 8)

type Way = Callable[[S4D, Array, Array | None], Array]


def chunks(layer: S4D, xs: Array, reset: Array | None) -> Array:
    return layer(xs, reset=reset)[1]


def pieces(layer: S4D, xs: Array, reset: Array | None) -> Array:
    decay, b, c = layer.discretise()
    flat = Planar(*(x.reshape(-1) for x in decay))

    def body(h: Planar, piece: tuple[Array, Array | None]) -> tuple[Any, Array]:
        u, reset = piece
        drive = Planar(*((u[..., None] * x).reshape(*u.shape[:-1], -1) for x in b))
        hs, last = linear_scan(flat, drive, h, reset=reset)
        hs = Planar(*(x.reshape(*u.shape, -1) for x in hs))
        return last, jnp.sum(hs.re * c.re - hs.im * c.im, axis=-1)

    h = Planar(*(jnp.zeros((len(xs), flat.shape[0])) for _ in range(2)))
    return layer.add_skip(xs, over_equal_pieces(body, h, (xs, reset), steps=STEPS, axis=1)[1])


def loop(layer: S4D, xs: Array, reset: Array | None) -> Array:
    decay, b, c = layer.discretise()

    def step(h: Planar, now: tuple[Array, Array | None]) -> tuple[Planar, Array]:
        u, reset = now
        if reset is not None:
            h = Planar(*(jnp.where(reset[:, None, None], 0, x) for x in h))
        h = Planar(
            decay.re * h.re - decay.im * h.im + u[..., None] * b.re,
            decay.re * h.im + decay.im * h.re + u[..., None] * b.im,
        )
        return h, jnp.sum(h.re * c.re - h.im * c.im, axis=-1)

    def body(h: Planar, piece: tuple[Array, Array | None]) -> tuple[Planar, Array]:
        h, ys = lax.scan(step, h, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), piece))
        return h, jnp.swapaxes(ys, 0, 1)

    h = layer.init_state((len(xs),))
    return layer.add_skip(xs, over_equal_pieces(body, h, (xs, reset), steps=STEPS, axis=1)[1])


def fft(layer: S4D, xs: Array, reset: Array | None) -> Array:
    decay, b, c = layer.discretise()
    time = xs.shape[1]
    rate = jnp.log(lax.complex(decay.re, decay.im))
    gain = lax.complex(b.re, b.im) * lax.complex(c.re, c.im)
    kernel = jnp.einsum("hn,lhn->lh", gain, jnp.exp(jnp.arange(time)[:, None, None] * rate)).real
    product = jnp.fft.rfft(kernel, 2 * time, axis=0) * jnp.fft.rfft(xs, 2 * time, axis=1)
    return layer.add_skip(xs, jnp.fft.irfft(product, 2 * time, axis=1)[:, :time])


WAYS: dict[str, Way] = {"chunks": chunks, "pieces": pieces, "loop": loop, "fft": fft}


def run(options: argparse.Namespace) -> Iterator[Row]:
    for shape in (QUICK,) if options.quick else SHAPES:
        keys = jax.random.split(jax.random.key(0), 4)
        layer = S4D(shape.features, shape.state_dim, key=keys[0])
        size = (shape.batch, shape.time, shape.features)
        xs, weights = jax.random.normal(keys[1], (2, *size))
        resets = jax.random.bernoulli(keys[2], 0.01, size[:2])
        for reset in (None, resets):
            expected: Array | None = None
            for name, way in WAYS.items():
                if name == "fft" and reset is not None:
                    continue
                row, ys = measured(way, layer, xs, reset, weights, options.rounds)
                if expected is None:
                    expected = ys
                # The FFT rounds errors of the largest outputs into all others.
                error = float(jnp.max(jnp.abs(ys - expected)) / jnp.max(jnp.abs(expected)))
                if error > 1e-3:
                    raise AssertionError(f"{name} differs from chunks by {error}")
                yield {
                    **shape._asdict(),
                    "resets": reset is not None,
                    "contender": OURS if name == "chunks" else name,
                    **row,
                }


def measured(
    way: Way, layer: S4D, xs: Array, reset: Array | None, weights: Array, rounds: int
) -> tuple[Row, Array]:
    def total(layer: S4D, xs: Array, reset: Array | None, weights: Array) -> tuple[Array, Array]:
        ys = way(layer, xs, reset)
        return jnp.sum(weights * ys), ys

    gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    compiled = gradient.lower(layer, xs, reset, weights).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    _, ys = jax.block_until_ready(compiled(layer, xs, reset, weights))
    seconds = []
    for _ in range(rounds):
        start = process_time()
        jax.block_until_ready(compiled(layer, xs, reset, weights))
        seconds.append(process_time() - start)
    row = {
        "processor_seconds": round(min(seconds), 4),
        "temporary_bytes": memory.temp_size_in_bytes,
    }
    return row, ys


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        "batch", "time", "features", "state_dim", "resets", "contender", "processor_seconds",
        "temporary_bytes",
    ),
    rounds=3,
)  # fmt: skip
