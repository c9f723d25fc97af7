"""The recurrence on NVIDIA GPUs that have TMA, in Pallas Mosaic GPU.

A program takes one row, one chunk of time and 128 channels. Each of its threads keeps the state of
one channel in a register, in float32, while TMA streams tiles of time through shared memory
(`rnnscale_kernels._mosaic_gpu`). All four kernels are one sweep, with different steps.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from .._planar import add, as_number, as_planes, multiply, multiply_conjugate, where

_CHANNELS = 128

# The tiles of all inputs have at most so many bytes together, and the ring of them at least so
# many: with the outputs about 110 KB or less, so that two programs fit on an SM. Together they have
# the 30 to 50 KB on their way, twice over, that hide the latency of the memory; a program with an
# SM to itself gets a ring of twice the size.
_TILE_BYTES = 24 * 1024
_RING_BYTES = 64 * 1024
_MAX_ROWS = 64

# Shorter chunks save less than it takes to launch the pass for their totals.
_MIN_CHUNK = 512


DTYPES = ("float32", "bfloat16", "float16")


def unavailable(target) -> str | None:
    """Why it cannot run there, or `None`."""
    if target.platform != "cuda":
        return "it is for NVIDIA GPUs"
    if target.capability is None:
        return "the compute capability of the GPU is not known"
    if target.capability[0] not in (9, 10):
        return "needs a GPU of compute capability 9.0 or 10.0, this is {}.{}".format(
            *target.capability
        )
    return None


def unsuited(target, spec) -> str | None:
    """Why another would be faster, or `None`."""
    streamed = [spec.dtype, spec.decay_dtype] if spec.varying else [spec.dtype]
    itemsize = min(jnp.dtype(x).itemsize for x in streamed)
    if spec.channels * itemsize % 16:
        return f"TMA needs {spec.channels} channels padded to a multiple of {16 // itemsize}"
    return None


def chunk_steps(target, spec) -> int:
    """Steps of a chunk.

    By Little's law about half the SMs, with one program each, have enough bytes on their way for
    the whole bandwidth of the memory. Chunks reach it with fewer rows and channels, but the pass
    for their totals reads the inputs once more: 5 arrays the size of the sequence go through memory
    instead of 3 (backward 7 instead of 5). So they pay where programs are fewer than 3/5 of half
    the SMs, which leaves about 4 chunks or more for each.
    """
    programs = spec.batch * -(-spec.channels // _CHANNELS)
    chunks = min(_cores(target) // programs, spec.time // _MIN_CHUNK)
    return _round_up(-(-spec.time // chunks), _MAX_ROWS) if chunks >= 4 else spec.time


def forward(a, b, h0, cut, *, chunk, inner, reverse, target):
    """(h, last), see `Kernels`."""

    def step(h, t, cut, a, b):
        h = add(_keep(cut, multiply(a, h)), b)
        return h, [h]

    (h,), last = _sweep(
        step, a, [b], as_number(h0), cut, outputs=[b[0].dtype], name="forward",
        chunk=chunk, inner=inner, descending=reverse, target=target,
    )  # fmt: skip
    return as_planes(h), as_planes(last)


def forward_totals(a, b, cut, *, chunk, inner, reverse, target):
    """(product, end), see `Kernels`."""

    def advance(h, cut, a, b):
        return add(_keep(cut, multiply(a, h)), b)

    return _totals(
        advance, a, b, cut, name="forward_totals",
        chunk=chunk, inner=inner, descending=reverse, target=target,
    )  # fmt: skip


def backward(a, h, h0, cut, g, c, *, chunk, inner, reverse, da_dtype, target):
    """(da, db, c_out), see `Kernels`."""
    varying, time = a[0].shape[1] > 1, g[0].shape[1]
    first = time - 1 if reverse else 0

    def step(carry, t, cut, a, h_before, g, h0):
        c, total = carry
        s = add(g, c)
        da = _keep(cut, multiply_conjugate(where(t == first, h0, h_before), s))
        c = _keep(cut, multiply_conjugate(a, s))
        return ((c, None), [s, da]) if varying else ((c, add(total, da)), [s])

    # The state before a step is read as `h` one step earlier, across the borders of chunks too.
    outputs, (c_out, total) = _sweep(
        step, a, [h, g], (as_number(c), None if varying else _filled(0.0, a)), cut,
        ahead=(1 if reverse else -1, 0), constants=[h0],
        outputs=[g[0].dtype, da_dtype][: 1 + varying], name="backward",
        chunk=chunk, inner=inner, descending=not reverse, target=target,
    )  # fmt: skip
    db, da = outputs if varying else (*outputs, total)
    return as_planes(da), as_planes(db), as_planes(c_out)


def backward_totals(a, g, cut, *, chunk, inner, reverse, target):
    """(product, end), see `Kernels`."""

    def advance(c, cut, a, g):
        return _keep(cut, multiply_conjugate(a, add(g, c)))

    return _totals(
        advance, a, g, cut, name="backward_totals",
        chunk=chunk, inner=inner, descending=not reverse, target=target,
    )  # fmt: skip


def _totals(advance: Callable, a, x, cut, **run):
    varying = a[0].shape[1] > 1

    def step(carry, t, cut, a, x):
        product, end = carry
        return (multiply(a, product) if varying else None, advance(end, cut, a, x)), []

    zero, one = _filled(0.0, a), _filled(1.0, a)
    _, (product, end) = _sweep(step, a, [x], (one if varying else None, zero), cut, **run)
    return as_planes(product) if varying else None, as_planes(end)


def _sweep(
    step: Callable, a, inputs, entering, cut,
    *, outputs=(), ahead=(0,), constants=(), name, chunk, inner, descending, target,
):  # fmt: skip
    """carry, results = step(carry, t, cut_t, a_t, *inputs_t, *constants), over every chunk.

    - `inputs`: planes "B L D", read at t + `ahead`; anything where that is no time.
    - `entering`: the tree of carries into the chunks, "B S D", or numbers.
    - `outputs`: the dtypes of the results.
    - `constants`: planes "B D".

    Returns the results, "B L D", and the carries out of the chunks, "B S D".
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu

    from .. import _mosaic_gpu as mosaic

    a, inputs, constants = as_number(a), [*map(as_number, inputs)], [*map(as_number, constants)]
    (rows, steps, channels), (decays, decay_steps, _) = inputs[0].shape, a.shape
    varying = decay_steps > 1
    chunks, blocks = -(-steps // chunk), -(-channels // _CHANNELS)

    # TMA takes rows of a multiple of 16 bytes. What a chunk reads only once gets whole blocks.
    streamed = [a, *inputs] if varying else inputs
    width = _round_up(channels, 16 // min(x.dtype.itemsize for x in streamed))
    whole = blocks * _CHANNELS
    a = _padded(a, width if varying else whole)
    inputs, constants = _padded(inputs, width), _padded(constants, whole)
    initial, carry_tree = jax.tree.flatten(entering)
    states = [_padded(x, whole) for x in initial if not isinstance(x, float)]
    if cut is not None:
        cut = jnp.pad(cut.astype(jnp.int32), [(0, 0), (0, -steps % 4)])

    row_bytes = sum(_CHANNELS * x.dtype.itemsize for x in jax.tree.leaves(streamed))
    tile_rows = min(_MAX_ROWS, max(8, _power_of_two_within(_TILE_BYTES // row_bytes)))
    ring_bytes = _RING_BYTES * (2 if rows * chunks * blocks <= _cores(target) else 1)
    stages = -(-ring_bytes // (tile_rows * row_bytes))

    def kernel(a, inputs, cut, constants, states, results, leaving):
        block, c, row = (lax.axis_index(axis) for axis in ("block", "chunk", "row"))
        decay_row = lax.rem(lax.div(row, inner), decays)
        lanes = pl.ds(block * _CHANNELS, _CHANNELS)
        tiles = mosaic.Tiles(steps, chunk, c, tile_rows, descending)

        def windows(x, row, ahead=0):
            def window(ref, i):
                # One that would begin before time zero begins there, see `load`.
                return ref.at[row, pl.ds(lax.max(tiles.begin(i) + ahead, 0), tile_rows), lanes]

            return jax.tree.map(lambda ref: partial(window, ref), x)

        def read(x, *index):
            return jax.tree.map(lambda ref: mosaic.one_a_thread(ref[index]), x)

        def cut_window(i):
            # TMA writes to multiples of 128 bytes.
            return cut.at[row, pl.ds(tiles.begin(i), max(tile_rows, 32))]

        reads = (
            windows(a, decay_row) if varying else None,
            [windows(x, row, n) for x, n in zip(inputs, ahead, strict=True)],
            None if cut is None else cut_window,
        )
        held = read(constants, row, lanes)
        held_decay = None if varying else read(a, decay_row, 0, lanes)
        given = iter(states)
        carry = carry_tree.unflatten(
            mosaic.full(x) if isinstance(x, float) else read(next(given), row, c, lanes)
            for x in initial
        )

        def body(i, tile, results, carry):
            a, inputs, cut = tile

            def load(r):
                missing = [lax.min(tiles.begin(i) + n, 0) if n < 0 else 0 for n in ahead]
                return (
                    None if cut is None else jnp.broadcast_to(cut[r], _CHANNELS) != 0,
                    read(a, r) if varying else held_decay,
                    *(read(x, lax.max(r + n, 0)) for x, n in zip(inputs, missing, strict=True)),
                )

            def advance(carry, t, loaded):
                return step(carry, jnp.broadcast_to(t, _CHANNELS), *loaded, *held)

            def store(r, values):
                for ref, x in zip(*map(jax.tree.leaves, (results, values)), strict=True):
                    ref[r] = x.astype(ref.dtype)

            return tiles.walk(i, load, advance, store, carry)

        writes = [windows(x, row) for x in results]
        carry = mosaic.pipeline(body, carry, reads, writes, tiles=tiles, stages=stages)
        for ref, x in zip(*map(jax.tree.leaves, (leaving, carry)), strict=True):
            ref[row, c, lanes] = x

    def like(shape, dtype, tree):
        return jax.tree.map(lambda _: jax.ShapeDtypeStruct(shape, dtype), tree)

    results, leaving = plgpu.kernel(
        kernel,
        out_type=(
            [like((rows, steps, width), dtype, a) for dtype in outputs],
            like((rows, chunks, whole), jnp.float32, entering),
        ),
        # Rows run side by side: those that share a decay find it in the cache.
        grid=(blocks, chunks, rows),
        grid_names=("block", "chunk", "row"),
        # No thread reads what another one writes but through TMA.
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
        interpret=plgpu.InterpretGPUParams() if target.interpret else None,
        kernel_name=f"linear_scan_{name}",
    )(a, inputs, cut, constants, states)
    return jax.tree.map(lambda x: x[..., :channels], (results, leaving))


def _cores(target) -> int:
    return target.cores or 132


def _keep(cut, x):
    return x if cut is None else where(cut, 0.0, x)


def _filled(value: float, planes):
    return as_number((value, 0.0)[: len(planes)])


def _padded(tree, width: int):
    """Zeros added to the channels."""

    def pad(x):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])

    return jax.tree.map(pad, tree)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _power_of_two_within(n: int) -> int:
    return 1 << n.bit_length() >> 1
