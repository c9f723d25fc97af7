"""The recurrence on TPUs, in Pallas Mosaic TPU.

As they lie in memory, 8 steps of 128 channels make a vector register, one step a sublane. The
recurrence fills its registers if it has one step of 8 streams there instead, where a stream is 128
channels of a row. So a program takes 8 streams, of one row or of several, and transposes steps and
streams in registers, which takes less time than the memory does. The recurrence itself stays
sequential: the products of a scan within registers would overflow where its states do not.

Tiles of time follow one another on the last axis of the grid, and the state waits for the next one
in VMEM. All four kernels are one sweep, with different steps.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._planar import add, as_number, as_planes, cast, multiply, multiply_conjugate, where

_LANES = 128
_STREAMS = 8

# Steps transposed at once, a register of bfloat16.
_WINDOW = 16

# Two tiles of each array that a program streams have at most so many bytes: half of what a kernel
# gets by default. A tile takes some microseconds, much more than its start.
_VMEM_BYTES = 8 * 1024 * 1024


DTYPES = ("float32", "bfloat16")


def unavailable(target) -> str | None:
    """Why it cannot run there, or `None`."""
    if target.platform != "tpu":
        return "it is for TPUs"
    if target.device_kind in ("TPU v2", "TPU v3"):
        return f"needs a TPU v4 or newer, this is a {target.device_kind}"
    return None


def unsuited(target, spec) -> str | None:
    """Why another would be faster, or `None`."""
    return None


def chunk_steps(target, spec) -> int:
    """Steps of a chunk: all of them.

    A chip has one core or two, and on a core one program follows another: chunks would fill no more
    of it. Only a single program leaves a second core idle, and there chunks would save at most a
    sixth of the time (backward a third), since their totals take one more pass over the inputs.
    """
    return spec.time


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

    def step(carry, t, cut, a, g, h_before, h0):
        c, total = carry
        s = add(g, c)
        da = _keep(cut, multiply_conjugate(where(t == first, h0, h_before), s))
        c = _keep(cut, multiply_conjugate(a, s))
        return ((c, None), [s, da]) if varying else ((c, add(total, da)), [s])

    outputs, (c_out, total) = _sweep(
        step, a, [g], (as_number(c), None if varying else _filled(0.0, c)), cut, before=(h, h0),
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


def _totals(advance: Callable, a, x, cut, *, chunk, **run):
    varying = a[0].shape[1] > 1
    rows, steps, channels = x[0].shape
    state = [jax.ShapeDtypeStruct((rows, -(-steps // chunk), channels), jnp.float32)] * len(x)

    def step(carry, t, cut, a, x):
        product, end = carry
        return (multiply(a, product) if varying else None, advance(end, cut, a, x)), []

    one = _filled(1.0, state) if varying else None
    _, (product, end) = _sweep(step, a, [x], (one, _filled(0.0, state)), cut, chunk=chunk, **run)
    return as_planes(product) if varying else None, as_planes(end)


def _sweep(
    step: Callable, a, inputs, entering, cut,
    *, outputs=(), before=None, name, chunk, inner, descending, target,
):  # fmt: skip
    """carry, results = step(carry, t, cut_t, a_t, *inputs_t), over every chunk.

    - `inputs`: planes "B L D".
    - `entering`: the tree of carries into the chunks, "B S D".
    - `outputs`: the dtypes of the results.
    - `before`: planes (x, x0), "B L D" and "B D". The step then also gets x at the step that this
        sweep takes after t, which is anything at the last one, and x0.

    Returns the results, "B L D", and the carries out of the chunks, "B S D".
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    a, inputs = as_number(a), [*map(as_number, inputs)]
    x, x0 = (None, None) if before is None else map(as_number, before)
    (rows, steps, channels), (decays, decay_steps, _) = inputs[0].shape, a.shape
    varying = decay_steps > 1

    def like(tree, shape, dtype):
        return jax.tree.map(lambda _: jax.ShapeDtypeStruct(shape, dtype), tree)

    results = [like(a, (rows, steps, channels), dtype) for dtype in outputs]
    streamed = jax.tree.leaves((a if varying else None, inputs, x, results))
    tile = _tile_steps(steps, chunk, sum(x.dtype.itemsize for x in streamed))
    tiles, windows = -(-min(chunk, steps) // tile), tile // _WINDOW
    group = _group(rows, channels, decays if varying else 1, inner)
    width = _LANES * _STREAMS // group
    shared = decays == 1 or inner % group == 0
    following = -1 if descending else 1
    edge = 0 if following > 0 else _WINDOW - 1  # the step of a window that this sweep takes first

    def tile_at(c, n):
        """The tile that is number `n` of chunk `c` in this sweep. The last chunk may have fewer."""
        return c * tiles + (tiles - 1 - n if descending else n)

    def kernel(a, inputs, cut, x, x_beyond, x0, entering, results, leaving):
        n = pl.program_id(3)
        start = tile_at(pl.program_id(2), n) * tile
        turns = lax.div(lax.clamp(0, steps - start, tile) + _WINDOW - 1, _WINDOW)
        row_bit = 1 << (lax.broadcasted_iota(jnp.int32, (_STREAMS, _LANES), 0) & (group - 1))

        def read(tree, window: Any = slice(None)):
            return jax.tree.map(lambda ref: _by_step(ref[:, window], group), tree)

        held_decay, held_x0 = _read((None if varying else a, x0))
        beyond = _at(read(x_beyond), edge)

        def turn(i, carry):
            first = pl.multiple_of((turns - 1 - i if descending else i) * _WINDOW, _WINDOW)
            window = pl.ds(first, _WINDOW)
            decay, values, xs = read((a if varying else None, inputs, x), window)
            if x is not None:
                wanted = first + following * _WINDOW
                inside = pl.multiple_of(lax.clamp(0, wanted, tile - _WINDOW), _WINDOW)
                next_x = _at(read(x, pl.ds(inside, _WINDOW)), edge)
                next_x = where(wanted == inside, next_x, beyond)
            made = {}
            for k in range(_WINDOW)[::following]:
                t = start + first + k
                is_cut = None if cut is None else (cut[0, first + k] & row_bit) != 0
                arguments = [_at(decay, k) if varying else held_decay, *_at(values, k)]
                if x is not None:
                    within = 0 <= k + following < _WINDOW
                    arguments += [_at(xs, k + following) if within else next_x, held_x0]
                new, made[k] = step(carry, t, is_cut, *arguments)
                if steps % tile:
                    new = jax.tree.map(partial(jnp.where, t < steps), new, carry)
                carry = new
            by_step = [jax.tree.leaves(made[k]) for k in range(_WINDOW)]
            for ref, *values in zip(jax.tree.leaves(results), *by_step, strict=True):
                ref[:, window] = _by_row([x.astype(ref.dtype) for x in values], group)
            return carry

        @pl.when(n == 0)
        def _():
            _write(leaving, _read(entering))

        _write(leaving, lax.fori_loop(0, turns, turn, _read(leaving)))

    def tile_or_last(c, n):
        return lax.min(tile_at(c, n), -(-steps // tile) - 1)

    def window_beyond(c, n):
        window = tile_or_last(c, n) * windows + (-1 if descending else windows)
        return lax.clamp(0, window, -(-steps // _WINDOW) - 1)

    def decay_block(i):
        if shared:
            return lax.rem(lax.div(i * group, inner), decays)
        return lax.rem(i, -(-decays // group))

    def specs(tree, block, at, **options):
        return jax.tree.map(lambda _: pl.BlockSpec(block, at, **options), tree)

    def sequences(tree, steps=tile, at=tile_or_last):
        return specs(tree, (group, steps, width), lambda i, j, c, n: (i, at(c, n), j))

    def registers(tree, of_chunk=True):
        block = (None, None, None, _STREAMS, _LANES)
        return specs(tree, block, lambda i, j, c, n: (c if of_chunk else 0, i, j, 0, 0))

    if varying:
        a_specs = specs(
            a, (1 if shared else group, tile, width),
            lambda i, j, c, n: (decay_block(i), tile_or_last(c, n), j),
        )  # fmt: skip
    else:
        a = jax.tree.map(lambda x: x[jnp.arange(rows) // inner % decays], cast(a, jnp.float32))
        a = _packed(a, group)
        a_specs = registers(a, of_chunk=False)
    cut_specs = specs(
        cut, (None, None, 1, tile), lambda i, j, c, n: (i, tile_or_last(c, n), 0, 0),
        memory_space=pltpu.SMEM,
    )  # fmt: skip
    if cut is not None:
        cut = _cut_words(cut, group, tile)
    x0 = _packed(jax.tree.map(lambda x: x[:, None], x0), group)
    entering = _packed(entering, group)
    # In a shard_map, Pallas asks over which axes of the mesh results vary: as the inputs do.
    varies = jax.typeof(jax.tree.leaves(inputs)[0]).manual_axis_type
    results, leaving = pl.pallas_call(
        kernel,
        out_shape=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varies),
            (results, entering),
        ),
        grid=(-(-rows // group), -(-channels // width), -(-steps // chunk), tiles),
        in_specs=[
            a_specs, sequences(inputs), cut_specs,
            sequences(x), sequences(x, _WINDOW, window_beyond), registers(x0, of_chunk=False),
            registers(entering),
        ],
        out_specs=(sequences(results), registers(entering)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=pltpu.InterpretParams() if target.interpret else False,
        name=f"linear_scan_{name}",
    )(a, inputs, cut, x, x, x0, entering)  # fmt: skip
    return results, _unpacked(leaving, group, rows, channels)


def _group(rows: int, channels: int, decays: int, inner: int) -> int:
    """Of how many rows the streams of a program are: as makes the fewest programs.

    The rows of a group have one decay in common, or each its own in the same order.
    """

    def fits(group):
        in_order = inner == 1 and (decays == rows or decays % group == 0)
        return decays == 1 or inner % group == 0 or in_order

    def programs(group):
        return -(-rows // group) * -(-channels * group // (_LANES * _STREAMS))

    return min(filter(fits, (1, 2, 4, 8)), key=programs)


def _tile_steps(steps: int, chunk: int, step_bytes: int) -> int:
    """Steps of a tile, where a channel has `step_bytes` a step: a multiple of a window that divides
    the chunk, if there is more than one, which has to be a multiple of a window as well."""
    most = _VMEM_BYTES // (2 * _STREAMS * _LANES * step_bytes)
    most = 1 << most.bit_length() >> 1
    if chunk < steps:
        return math.gcd(chunk, most)
    return min(most, -(-steps // _WINDOW) * _WINDOW)


def _by_step(x, group: int):
    """From "rows time channel" to "time 8 128". One row of a decay may stand for all."""
    x = jnp.broadcast_to(x, (group, *x.shape[1:]))
    x = jnp.concatenate([x[..., i : i + _LANES] for i in range(0, x.shape[-1], _LANES)])
    return jnp.swapaxes(x, 0, 1)


def _by_row(values, group: int):
    """The inverse, from a list over time."""
    x = jnp.swapaxes(jnp.stack(values), 0, 1)
    return jnp.concatenate([x[i : i + group] for i in range(0, _STREAMS, group)], axis=-1)


def _packed(tree, group: int):
    """States "B S D" as the registers of the programs, "S B/group D/width 8 128"."""
    groups = _STREAMS // group

    def pack(x):
        rows, chunks, channels = x.shape
        x = jnp.pad(x, [(0, -rows % group), (0, 0), (0, -channels % (groups * _LANES))])
        x = x.reshape(-(-rows // group), group, chunks, -1, groups, _LANES)
        return x.transpose(2, 0, 3, 4, 1, 5).reshape(chunks, x.shape[0], -1, _STREAMS, _LANES)

    return jax.tree.map(pack, tree)


def _unpacked(tree, group: int, rows: int, channels: int):
    """The inverse of `_packed`."""

    def unpack(x):
        chunks, blocks = x.shape[:2]
        x = x.reshape(chunks, blocks, -1, _STREAMS // group, group, _LANES)
        x = x.transpose(1, 4, 0, 2, 3, 5).reshape(blocks * group, chunks, -1)
        return x[:rows, :, :channels]

    return jax.tree.map(unpack, tree)


def _cut_words(cut, group: int, tile: int):
    """A word for each step of each group, with a bit for each row: "B/group L/tile 1 tile"."""
    rows, steps = cut.shape
    cut = jnp.pad(cut, [(0, -rows % group), (0, -steps % tile)])
    bits = cut.reshape(-(-rows // group), group, -1, 1, tile).astype(jnp.int32)
    return jnp.sum(bits << jnp.arange(group)[:, None, None, None], axis=1)


def _at(tree, k: int):
    return jax.tree.map(lambda x: x[k].astype(jnp.float32), tree)


def _read(refs):
    return jax.tree.map(lambda ref: ref[...], refs)


def _write(refs, values):
    for ref, value in zip(*map(jax.tree.leaves, (refs, values)), strict=True):
        ref[...] = value


def _keep(cut, x):
    return x if cut is None else where(cut, 0.0, x)


def _filled(value: float, planes):
    """A real number, as planes like the given ones."""
    zeros = [jnp.zeros(x.shape, x.dtype) for x in planes]
    return as_number([zeros[0] + value, *zeros[1:]])
