"""The recurrence on TPUs, in Pallas Mosaic TPU.

In memory a vector register holds 8 steps of 128 channels, one step a sublane. A step of the
recurrence fills a register if it has one step of 8 streams instead, where a stream is 128 channels
of a row. So a program takes 8 streams, of one row or of several, and transposes steps and streams
in registers, which keeps the recurrence sequential and exact and costs less time than the memory
takes. Tiles of time follow one another in the last axis of the grid, and the state stays in VMEM.
All four kernels are one sweep, with different steps.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from .._planar import Planar, add, multiply, multiply_conjugate, where

_LANES = 128
_STREAMS = 8

# Steps that the compiler has at once to hide latencies with.
_UNROLL = 32

# What a program streams through VMEM, two tiles of each array, has at most so many bytes: half of
# what a kernel is given by default. A tile takes some microseconds then, much longer than its start.
_VMEM_BYTES = 8 * 1024 * 1024


def unavailable(target) -> str | None:
    """Why it cannot run there, or `None`."""
    if target.platform != "tpu":
        return "it is for TPUs"
    if target.device_kind in ("TPU v2", "TPU v3"):
        return f"needs a TPU v4 or newer, this is a {target.device_kind}"
    return None


def unsupported(spec) -> str | None:
    """Why it cannot take these arguments, or `None`."""
    for dtype in (spec.dtype, spec.decay_dtype):
        if dtype not in ("float32", "bfloat16"):
            return f"takes float32 and bfloat16, not {dtype}"
    return None


def unsuited(target, spec) -> str | None:
    """Why another would be faster, or `None`."""
    return None


def chunk_steps(target, spec) -> int:
    """Steps of a chunk: all of them.

    One register of streams keeps a core as busy as its memory, and chips have one core or two. To
    split time for a second core, 5 arrays the size of the sequence would go through memory instead
    of 3.
    """
    return spec.time


def forward(a, b, h0, cut, *, chunk, inner, reverse, target):
    """(h, last), see `Kernels`."""

    def step(h, t, cut, a, b):
        h = add(_keep(cut, multiply(a, h)), b)
        return h, [h]

    (h,), last = _sweep(
        step, a, [b], _number(h0), cut, outputs=[b[0].dtype], name="forward",
        chunk=chunk, inner=inner, descending=reverse, target=target,
    )  # fmt: skip
    return _planes(h), _planes(last)


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
        step, a, [g], (_number(c), None if varying else _filled(0.0, c)), cut, before=(h, h0),
        outputs=[g[0].dtype, da_dtype][: 1 + varying], name="backward",
        chunk=chunk, inner=inner, descending=not reverse, target=target,
    )  # fmt: skip
    db, da = outputs if varying else (*outputs, total)
    return _planes(da), _planes(db), _planes(c_out)


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
    return _planes(product) if varying else None, _planes(end)


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

    a, inputs = _number(a), [*map(_number, inputs)]
    x, x0 = (None, None) if before is None else map(_number, before)
    (rows, steps, channels), (decays, decay_steps, _) = inputs[0].shape, a.shape
    varying, chunks = decay_steps > 1, -(-steps // chunk)

    def like(shape, dtype, tree):
        return jax.tree.map(lambda _: jax.ShapeDtypeStruct(shape, dtype), tree)

    results = [like((rows, steps, channels), dtype, a) for dtype in outputs]
    streamed = jax.tree.leaves((a if varying else None, inputs, x, results))
    tile = _tile_steps(steps, chunk, sum(x.dtype.itemsize for x in streamed))
    tiles, all_tiles = -(-min(chunk, steps) // tile), -(-steps // tile)
    group = _group(rows, channels, decays, inner)
    shared = inner % group == 0 or decays == 1
    ahead = -1 if descending else 1

    def tile_at(c, n):
        """Which tile is number `n` of chunk `c` in this sweep. The last chunk may have fewer."""
        return lax.min(c * tiles + (tiles - 1 - n if descending else n), all_tiles - 1)

    def kernel(a, inputs, cut, x, x_beyond, x0, entering, results, leaving):
        c, n = pl.program_id(2), pl.program_id(3)
        start = (c * tiles + (tiles - 1 - n if descending else n)) * tile
        turns = lax.div(lax.clamp(0, steps - start, tile) + _UNROLL - 1, _UNROLL)

        @pl.when(n == 0)
        def _():
            for ref, value in zip(*map(jax.tree.leaves, (leaving, entering)), strict=True):
                ref[...] = value[...]

        def read(tree, window):
            return jax.tree.map(lambda ref: _by_step(ref[:, window], group), tree)

        def read_one(tree, window=slice(None), k=0):
            def one(ref):
                return _by_step(ref[:, window][:, k : k + 1].astype(jnp.float32), group)[0]

            return jax.tree.map(one, tree)

        held_decay = None if varying else read_one(a)
        last = 0 if ahead > 0 else _UNROLL - 1  # of the next window, the step that comes first
        x_beyond, x0 = read_one(x_beyond, k=last), read_one(x0)
        row_bit = 1 << (lax.broadcasted_iota(jnp.int32, (_STREAMS, _LANES), 0) & (group - 1))

        def advance(i, carry):
            base = pl.multiple_of((turns - 1 - i if descending else i) * _UNROLL, _UNROLL)
            window = pl.ds(base, _UNROLL)
            loaded = read((a if varying else None, inputs), window)
            if x is not None:
                xs = read(x, window)
                following = base + ahead * _UNROLL
                inside = pl.multiple_of(lax.clamp(0, following, tile - _UNROLL), _UNROLL)
                edge = read_one(x, pl.ds(inside, _UNROLL), last)
                edge = where(following == inside, edge, x_beyond)
            values = {}
            for k in range(_UNROLL)[::ahead]:
                t = start + base + k
                decay, arguments = _at(loaded, k)
                if x is not None:
                    arguments += [_at(xs, k + ahead) if 0 <= k + ahead < _UNROLL else edge, x0]
                is_cut = None if cut is None else (cut[0, base + k] & row_bit) != 0
                new, values[k] = step(
                    carry, t, is_cut, decay if varying else held_decay, *arguments
                )
                if steps % tile:
                    new = jax.tree.map(partial(jnp.where, t < steps), new, carry)
                carry = new
            for ref, *each in zip(
                jax.tree.leaves(results), *(jax.tree.leaves(values[k]) for k in range(_UNROLL))
            ):
                stacked = jnp.stack([value.astype(ref.dtype) for value in each])
                ref[:, window] = _by_stream(stacked, group)
            return carry

        carry = lax.fori_loop(0, turns, advance, read_one(leaving))
        for ref, value in zip(*map(jax.tree.leaves, (leaving, carry)), strict=True):
            ref[...] = _by_stream(value[None], group)

    width = _LANES * _STREAMS // group

    def decay_rows(i):
        if shared:
            return lax.rem(lax.div(i * group, inner), decays)
        return lax.rem(i, -(-decays // group))

    decay_spec = pl.BlockSpec(
        (1 if shared else group, tile if varying else 1, width),
        lambda i, j, c, n: (decay_rows(i), tile_at(c, n) if varying else 0, j),
    )
    sequence_spec = pl.BlockSpec(
        (group, tile, width), lambda i, j, c, n: (i, tile_at(c, n), j)
    )
    beyond_spec = pl.BlockSpec(
        (group, _UNROLL, width),
        lambda i, j, c, n: (i, beyond_at(tile_at(c, n)), j),
    )
    constant_spec = pl.BlockSpec((group, 1, width), lambda i, j, c, n: (i, 0, j))
    state_spec = pl.BlockSpec((None, group, 1, width), lambda i, j, c, n: (c, i, 0, j))
    cut_spec = pl.BlockSpec(
        (None, None, 1, tile), lambda i, j, c, n: (i, tile_at(c, n), 0, 0),
        memory_space=pltpu.SMEM,
    )  # fmt: skip

    def beyond_at(tile_index):
        each = tile // _UNROLL
        beyond = tile_index * each + (-1 if descending else each)
        return lax.clamp(0, beyond, -(-steps // _UNROLL) - 1)

    def specs(spec, tree):
        return jax.tree.map(lambda _: spec, tree)

    states = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1)[:, :, None], entering)
    if cut is not None:
        cut = _cut_words(cut, group, tile)
    x0 = jax.tree.map(lambda x: x[:, None], x0)
    leaving = like((chunks, rows, 1, channels), jnp.float32, entering)
    results, leaving = pl.pallas_call(
        kernel,
        out_shape=(results, leaving),
        grid=(-(-rows // group), -(-channels // width), chunks, tiles),
        in_specs=[
            specs(decay_spec, a), specs(sequence_spec, inputs), specs(cut_spec, cut),
            specs(sequence_spec, x), specs(beyond_spec, x), specs(constant_spec, x0),
            specs(state_spec, states),
        ],
        out_specs=(specs(sequence_spec, results), specs(state_spec, leaving)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=pltpu.InterpretParams() if target.interpret else False,
        name=f"linear_scan_{name}",
    )(a, inputs, cut, x, x, x0, states)  # fmt: skip
    return results, jax.tree.map(lambda x: jnp.swapaxes(x[:, :, 0], 0, 1), leaving)


def _group(rows: int, channels: int, decays: int, inner: int) -> int:
    """How many rows the streams of a program are from: as makes the fewest programs.

    The rows of a group have one decay in common, or each its own in the same order.
    """

    def fits(group):
        in_order = inner == 1 and (decays == rows or decays % group == 0)
        return decays == 1 or inner % group == 0 or in_order

    def programs(group):
        return -(-rows // group) * -(-channels * group // (_LANES * _STREAMS))

    return min(filter(fits, (1, 2, 4, 8)), key=programs)


def _tile_steps(steps: int, chunk: int, step_bytes: int) -> int:
    """Steps of a tile, a divisor of the chunk, of `step_bytes` for each channel."""
    most = _VMEM_BYTES // (2 * _STREAMS * _LANES * step_bytes)
    most = 1 << most.bit_length() >> 1
    if chunk < steps:
        return math.gcd(chunk, most)
    return min(most, -(-steps // _UNROLL) * _UNROLL)


def _by_step(x, rows: int):
    """"rows time channel" as "time stream 128". One row may stand for all."""
    x = jnp.broadcast_to(x, (rows, *x.shape[1:]))
    x = jnp.concatenate([x[..., i : i + _LANES] for i in range(0, x.shape[-1], _LANES)])
    return jnp.swapaxes(x, 0, 1)


def _by_stream(x, rows: int):
    """What `_by_step` made of `rows` rows, as it was."""
    x = jnp.swapaxes(x, 0, 1)
    return jnp.concatenate([x[i : i + rows] for i in range(0, _STREAMS, rows)], axis=-1)


def _at(tree, k: int):
    return jax.tree.map(lambda x: x[k].astype(jnp.float32), tree)


def _cut_words(cut, group: int, tile: int):
    """One word for each step of a group, with a bit for each row: "groups tiles 1 time"."""
    rows, steps = cut.shape
    cut = jnp.pad(cut, [(0, -rows % group), (0, -steps % tile)])
    bits = cut.reshape(-1, group, cut.shape[1] // tile, 1, tile).astype(jnp.int32)
    return jnp.sum(bits << jnp.arange(group)[:, None, None, None], axis=1)


def _keep(cut, x):
    return x if cut is None else where(cut, 0.0, x)


def _filled(value: float, planes):
    """A real number as planes of the shape of `planes`."""
    return _number(
        [jnp.full(x.shape, value if i == 0 else 0.0, x.dtype) for i, x in enumerate(planes)]
    )


def _number(planes):
    return Planar(*planes) if len(planes) == 2 else planes[0]


def _planes(x):
    return tuple(x) if isinstance(x, Planar) else (x,)
