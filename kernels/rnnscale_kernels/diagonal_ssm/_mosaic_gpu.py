"""The linear part of a state-space layer on Hopper GPUs, by Pallas Mosaic GPU.

A program is one warpgroup. It takes time in tiles: tensor cores map a tile of the input to its
drive, in shared memory in float32; the threads run the recurrence down it in place, a state each;
tensor cores map the states on. The states never reach device memory.

Rows alone do not fill a GPU, so time is split into segments. A first sweep finds the state in which
each would end if it started from zero, and from that follows where it really starts. The backward
pass consists of the same sweeps, half of them over the adjoint system, which runs the other way:

    s_t = conj(decay) s_{t+1} + C^H g_t,    du_t = Re(B^H s_t).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._planar import (
    cast,
    conjugate,
    in_double,
    multiply,
    multiply_conjugate,
    ones_like,
    power,
    where,
)
from ._recurrence import stack, unstack

TILE = 64
"""Steps: the rows of a tensor core's product."""
LANES = 128
"""The threads of a warpgroup, which have a state each."""
WIDTH = 64
"""16-bit numbers in a row of what tensor cores read from shared memory."""
SHARED_BYTES = 226 * 1024
"""Of 227 KB; barriers take the rest."""

_PAD = 4  # float32 after each row, so that the rows of a product are not all in the same banks
_CORES = 132  # of an H100, where nothing says which device it is


def unavailable(target) -> str | None:
    if target.platform != "cuda":
        return "it is for NVIDIA GPUs"
    if target.capability is None:
        return "the GPU's compute capability is not known"
    if target.capability[0] != 9:
        return "it needs compute capability 9.0, this is {}.{}".format(*target.capability)
    return None


def unsupported(spec) -> str | None:
    if spec.dtype not in ("bfloat16", "float16"):
        return f"its products take bfloat16 or float16, the input is {spec.dtype}"
    if spec.state_dtype != "float32":
        return f"its states are float32, not {spec.state_dtype}"
    if 0 in (spec.batch, spec.idim, spec.state, spec.odim):
        return "a kernel needs something to compute"
    planes, states = 1 + spec.planar, _padded_states(spec.state)
    widths = _round_up(spec.idim, WIDTH), _round_up(spec.odim, WIDTH)
    needed = max(
        shared_bytes(shapes)
        for inputs, outputs in (widths, widths[::-1])
        for shapes in (
            buffers(planes, states, LANES // min(states, LANES), inputs, outputs=outputs),
            buffers(
                planes,
                states,
                _weight_group(planes),
                inputs,
                others=columns_at_once(outputs),
                feedback=True,
            ),
        )
    )
    if needed > SHARED_BYTES:
        return f"B, C and their tiles take {needed >> 10} KB of {SHARED_BYTES >> 10} on chip"
    return None


def unsuited(target, spec) -> str | None:
    shape = spec.time, spec.idim, spec.odim
    if shape != (_whole_time(spec.time), _whole_row(spec.idim), _whole_row(spec.odim)):
        return "{} steps from {} inputs to {} outputs would be copied to widen them".format(*shape)
    return None


def forward(primals, *, chunk, target):
    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(u, decay, chunk, target)
    system = _System.of(decay, b, c, u.dtype)
    x, cut, last = _fold(u, 2), _fold(cut, 1), _last_steps(u, lengths)
    first = plan.fold_state(h0)

    ends = None
    if plan.segments > 1:
        ends = _sweep(plan, system, x, None, cut, last)["leaving"]
    starts = plan.starts(system.decay, first, ends, cut)
    swept = _sweep(plan, system, x, starts, cut, last, outputs=c.shape[0])
    y = swept["y"].reshape(*u.shape[:-1], -1)
    h_last = jnp.where((last >= 0)[:, None, None], swept["at"], first)
    borders = jnp.moveaxis(swept["borders"][:, : -(-plan.steps // chunk)], 1, 0)
    return (y, plan.unfold_state(h_last, h0)), plan.unfold_state(borders, h0)


def transpose(primals, outputs, cotangents, *, chunk, target):
    u, decay, b, c, h0, cut, lengths = primals
    plan = Plan.of(u, decay, chunk, target)
    system = _System.of(decay, b, c, u.dtype)
    adjoint = _System.of(conjugate(decay), _adjoint(c), _adjoint(b), u.dtype)
    x, cut, last = _fold(u, 2), _fold(cut, 1), _last_steps(u, lengths)
    g, g_last = _fold(cotangents[0], 2), plan.fold_state(cotangents[1])

    # The cotangent s of the states runs back; where a step is cut, it does not go on to the one
    # before.
    back = plan._replace(descending=True)
    cut_after = None if cut is None else jnp.pad(cut[:, 1:], [(0, 0), (0, 1)])
    ends = None
    if plan.segments > 1:
        ends = _sweep(back, adjoint, g, None, cut_after, last, inject=g_last)["leaving"]
    s_starts = back.starts(adjoint.decay, jnp.zeros_like(g_last), ends, cut_after)
    swept = _sweep(back, adjoint, g, s_starts, cut_after, last, inject=g_last, outputs=u.shape[-1])
    du = swept["y"].reshape(u.shape)

    def passed_on(s, cut):
        """What of s reaches the state before."""
        decay: Any = unstack(adjoint.decay, 0)
        s = stack(multiply(decay, unstack(s, -2)), -2)
        return s if cut is None else jnp.where(cut[..., None, None], 0, s)

    dh0 = passed_on(swept["leaving"][:, 0], None if cut is None else cut[:, 0])
    dh0 = dh0 + jnp.where((last < 0)[:, None, None], g_last, 0)

    # The gradients of the weights need the states once more, and once more their cotangents.
    group = _weight_group(plan.planes)
    plan, back = plan._replace(group=group), back._replace(group=group)
    h_starts = plan.segment_starts(plan.fold_state(outputs[1], 1))
    swept = _sweep(plan, system, x, h_starts, cut, last, other=g, feedback=adjoint.into)
    dc = conjugate(unstack(swept["weight"], 1))
    db = _sweep(back, adjoint, g, s_starts, cut_after, last, inject=g_last, other=x)["weight"]
    # The part of d_decay that comes into a segment from those after it, and from h_last.
    cut_at_end = None if cut is None else plan.by_segment(cut_after)[..., -1]
    coming = jnp.concatenate([passed_on(s_starts, cut_at_end), g_last[:, None]], 1)
    at_last = jnp.where((last >= 0)[:, None, None], swept["at"], 0)
    derivatives: Any = unstack(jnp.concatenate([swept["leaving"], at_last[:, None]], 1), -2)
    rest = multiply_conjugate(derivatives, unstack(coming, -2))
    d_decay = jax.tree.map(lambda x, y: x + jnp.sum(y, (0, 1)), unstack(swept["d_decay"], 0), rest)

    def trimmed(gradient, like):
        parts = tuple(slice(n) for n in like.shape)
        return jax.tree.map(lambda x, like: x[parts].astype(like.dtype), gradient, like)

    return (
        du,
        trimmed(d_decay, decay),
        trimmed(jax.tree.map(jnp.transpose, unstack(db, 1)), b),
        trimmed(dc, c),
        plan.unfold_state(dh0, h0),
        None,
        None,
    )


class _System(NamedTuple):
    """h_t = decay h_{t-1} + into x_t, y_t = out h_t: planes stacked, widths rounded up."""

    decay: Any  # "planes state"
    into: Any  # "input planes state"
    out: Any  # "planes state output"

    @classmethod
    def of(cls, decay, b, c, dtype) -> "_System":
        (state, inputs), (outputs, _) = b.shape, c.shape
        states = _padded_states(state) - state
        inputs, outputs = _round_up(inputs, WIDTH) - inputs, _round_up(outputs, WIDTH) - outputs
        into = jnp.moveaxis(stack(b, 0), -1, 0).astype(dtype)
        # Re(C h) = C_re h_re - C_im h_im: the planes of the conjugate.
        out = jnp.swapaxes(stack(conjugate(c), 0), -1, -2).astype(dtype)
        return cls(
            jnp.pad(stack(decay, 0).astype(jnp.float32), [(0, 0), (0, states)]),
            jnp.pad(into, [(0, inputs), (0, 0), (0, states)]),
            jnp.pad(out, [(0, 0), (0, states), (0, outputs)]),
        )


class Plan(NamedTuple):
    """How time and states are split among programs.

    In device memory states are "row segment planes state"; a program's, "planes lane", are those
    of `group` segments that follow one another, side by side.
    """

    rows: int
    steps: int
    segments: int
    length: int  # of a segment
    chunk: int  # the steps from border to border
    planes: int
    states: int
    group: int
    descending: bool
    interpret: bool

    @classmethod
    def of(cls, u, decay, chunk: int, target) -> "Plan":
        *batch, steps, _ = u.shape
        rows, states = math.prod(batch), _padded_states(decay.shape[-1])
        chunk = chunk if chunk < steps else _round_up(steps, TILE)
        if chunk % TILE:
            raise ValueError(f"chunks must be of a multiple of {TILE} steps, got {chunk}")
        chunks = -(-steps // chunk)
        group, planes = LANES // min(states, LANES), len(jax.tree.leaves(decay))
        # As few segments as fill the device, as each costs a reading of the weights.
        together = max(1, rows * chunks // (group * (target.cores or _CORES)))
        most = max(group, _weight_group(planes))
        segments = _round_up(-(-chunks // together), most // math.gcd(rows, most))
        return cls(
            rows=rows,
            steps=steps,
            segments=segments,
            length=-(-chunks // segments) * chunk,
            chunk=chunk,
            planes=planes,
            states=states,
            group=group,
            descending=False,
            interpret=target.interpret,
        )

    @property
    def block(self) -> int:
        """The states of each segment that a program takes at a time."""
        return LANES // self.group

    @property
    def blocks(self) -> int:
        return self.states // self.block

    @property
    def programs(self) -> int:
        return self.rows * self.segments // self.group

    @property
    def tiles(self) -> int:
        return self.length // TILE

    def fold_state(self, x, leading: int = 0):
        """A public state, "*leading *batch state", as "row *leading planes state"."""
        x = stack(x, -2).astype(jnp.float32)
        *shape, planes, state = x.shape
        x = x.reshape(*shape[:leading], self.rows, planes, state)
        x = jnp.moveaxis(x, leading, 0)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.states - state)])

    def unfold_state(self, x, like):
        """The inverse, for `x` "*leading row planes state"."""
        *batch, state = like.shape
        x = x[..., :state].reshape(*x.shape[:-3], *batch, self.planes, state)
        return cast(unstack(x, -2), like.dtype)

    def by_segment(self, x):
        """ "row time" as "row segment step"."""
        padding = self.segments * self.length - self.steps
        return jnp.pad(x, [(0, 0), (0, padding)]).reshape(self.rows, self.segments, self.length)

    def segment_starts(self, borders):
        """Those borders, "row border planes state", that are between segments."""
        starts = borders[:, :: self.length // self.chunk]
        return jnp.pad(starts, [(0, 0), (0, self.segments - starts.shape[1]), (0, 0), (0, 0)])

    def starts(self, decay, first, ends, cut):
        """The state that enters each segment.

        - `first`: the one that enters the row, "row planes state";
        - `ends`: those that would leave the segments if zero entered them.
        """
        if ends is None:
            return jnp.pad(first[:, None], [(0, 0), (0, self.segments - 1), (0, 0), (0, 0)])
        order = slice(None, None, -1) if self.descending else slice(None)
        # What entered a segment or ended the one before comes through those after it, if uncut.
        sources = unstack(jnp.concatenate([first[:, None], ends[:, order][:, :-1]], 1), -2)
        segment = jnp.arange(self.segments)
        distance = segment[:, None] - segment
        reaches = jnp.broadcast_to(distance >= 0, (self.rows, *distance.shape))
        if cut is not None:
            cuts = jnp.any(self.by_segment(cut), -1)[:, order]
            before = jnp.cumsum(cuts, 1) - cuts
            reaches &= before[:, :, None] == before[:, None]
        powers = _powers(unstack(decay, 0), self.length, self.segments)
        decayed = multiply(
            jax.tree.map(lambda x: x[jnp.maximum(distance, 0)], powers),
            jax.tree.map(lambda x: x[:, None], sources),
        )
        sums = jax.tree.map(lambda x: jnp.sum(x, 2), where(~reaches[..., None], 0, decayed))
        return stack(sums, -2)[:, order]

    def lanes(self, x):
        """States as threads have them: "program block planes lane"."""
        x = x.reshape(self.programs, self.group, self.planes, self.blocks, self.block)
        return x.transpose(0, 3, 2, 1, 4).reshape(self.programs, self.blocks, self.planes, LANES)

    def from_lanes(self, x):
        x = x.reshape(self.programs, self.blocks, self.planes, self.group, self.block)
        shape = (self.rows, self.segments, self.planes, self.states)
        return x.transpose(0, 3, 2, 1, 4).reshape(shape)

    def by_block(self, x):
        """The last two axes, "planes state", as one for each block of states, which is in front."""
        x = x.reshape(*x.shape[:-1], self.blocks, self.block)
        x = jnp.moveaxis(x, -2, 0)
        return x.reshape(*x.shape[:-2], self.planes * self.block)

    def cut_bits(self, cut):
        """Cuts as threads take them, 32 steps a word: "program tile word lane"."""
        shape = (self.programs, self.group, self.tiles, TILE // 32, 32)
        bits = self.by_segment(cut).reshape(shape).astype(jnp.uint32)
        words = jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32), -1, dtype=jnp.uint32)
        words = lax.bitcast_convert_type(jnp.moveaxis(words, 1, -1), jnp.int32)
        return jnp.repeat(words, self.block, axis=-1)


def _sweep(
    plan: Plan, system: _System, x, starts, cut, last, *,
    inject=None, outputs: int = 0, other=None, feedback=None,
) -> dict[str, Any]:  # fmt: skip
    """`_mosaic_gpu_sweep.sweep`, with its arguments and results as the rest of this file has them.

    Without `starts`, segments start from zero. `last` is the step of each row at which `inject` is
    added, "row planes state", or of which `at` is the state. `outputs` is the width of `y`.
    """
    from ._mosaic_gpu_sweep import sweep

    decay = plan.by_block(system.decay).reshape(plan.blocks, plan.planes, plan.block)
    weights = {"decay": jnp.tile(decay, plan.group), "into": plan.by_block(system.into)}
    if outputs:
        out = plan.by_block(jnp.moveaxis(system.out, -1, 0))
        weights["out"] = jnp.swapaxes(out, -1, -2)
    if feedback is not None:
        weights["feedback"] = plan.by_block(feedback)
    if starts is None:
        starts = jnp.zeros((plan.rows, plan.segments, plan.planes, plan.states), jnp.float32)
    step = last[:, None] - plan.length * jnp.arange(plan.segments)
    step = jnp.where((step >= 0) & (step < plan.length), step, -1)
    if inject is not None:
        inject = plan.lanes(jnp.broadcast_to(inject[:, None], starts.shape))
        own = jnp.repeat(jnp.eye(plan.group, dtype=bool), plan.block, 1)
        inject = jnp.where(own[:, None, None], inject[:, None], 0)
    results = sweep(
        plan, _whole(x), weights, plan.lanes(starts),
        None if cut is None else plan.cut_bits(cut), step.reshape(-1).astype(jnp.int32),
        inject=inject, width=_whole_row(outputs), borders=outputs > 0 and inject is None,
        other=None if other is None else _whole(other),
    )  # fmt: skip

    if outputs:
        results["y"] = results["y"][:, : plan.steps, :outputs]
    results["leaving"] = plan.from_lanes(results["leaving"][0])
    if "at" in results:
        x = results["at"][0].reshape(
            plan.programs, plan.group, plan.blocks, plan.planes, plan.group, -1
        )
        x = jnp.swapaxes(jnp.diagonal(x, 0, 1, 4), -1, -2)  # the lanes of the segment itself
        segment = jnp.maximum(last, 0) // plan.length
        at = jnp.take_along_axis(plan.from_lanes(x), segment[:, None, None, None], 1)
        results["at"] = at[:, 0]
    if "borders" in results:
        x = jax.vmap(plan.from_lanes, 1, 2)(results["borders"])
        results["borders"] = x.reshape(plan.rows, -1, plan.planes, plan.states)
    if "weight" in results:
        x = jnp.sum(results["weight"], 1)
        x = x.reshape(*x.shape[:3], plan.planes, plan.block).transpose(0, 2, 3, 1, 4)
        results["weight"] = x.reshape(-1, plan.planes, plan.states)
    if "d_decay" in results:
        x = jnp.sum(results["d_decay"], (0, 1)).reshape(plan.blocks, plan.planes, plan.group, -1)
        results["d_decay"] = jnp.sum(x, 2).swapaxes(0, 1).reshape(plan.planes, plan.states)
    return results


def buffers(
    planes: int, states: int, group: int, inputs: int,
    *, outputs: int = 0, others: int = 0, feedback: bool = False, stages: int = 1,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """The shapes in shared memory of a sweep: `rows` in float32, all else in 16 bits."""
    block = LANES // group
    blocks = states // block if outputs else 1
    shapes: dict[str, tuple[int, ...]] = {
        "rows": (planes, TILE, LANES + _PAD),
        "x": (stages, TILE, inputs),
        "into": (blocks, inputs, planes * block),
    }
    if outputs:
        shapes["out"] = (blocks, planes * block, outputs)
    if outputs or others:
        shapes["narrow"] = (TILE, max(block, outputs) if outputs else planes * block)
    if 0 < outputs < block:
        shapes["y"] = (TILE, outputs)
    if others:
        shapes["other"] = (stages, TILE, others)
    if feedback:
        shapes["feedback"] = (others, planes * block)
    return shapes


def shared_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(
        _round_up(math.prod(shape) * (4 if name == "rows" else 2), 1024)
        for name, shape in shapes.items()
    )


def columns_at_once(width: int) -> int:
    """The columns of a weight gradient that a program has registers for, of `width`."""
    return width if width <= LANES else math.gcd(width, LANES)


def _padded_states(states: int) -> int:
    return LANES // 2 if states <= LANES // 2 else _round_up(states, LANES)


def _weight_group(planes: int) -> int:
    """Segments of a program that adds up the gradient of a weight.

    So few of its states have room for their sums in registers.
    """
    return planes * LANES // WIDTH


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _fold(x, axes: int):
    """All batch axes as one; `axes` are not."""
    return None if x is None else x.reshape(-1, *x.shape[x.ndim - axes :])


def _last_steps(u, lengths):
    """The last step of each row."""
    *batch, steps, _ = u.shape
    if lengths is None:
        return jnp.full(math.prod(batch), steps - 1, jnp.int32)
    return lengths.reshape(-1).astype(jnp.int32) - 1


def _adjoint(x):
    return jax.tree.map(jnp.transpose, conjugate(x))


def _whole_row(width: int) -> int:
    """The next width of rows that TMA can take in tiles."""
    return _round_up(width, 8 if width <= WIDTH // 2 else WIDTH)


def _whole_time(steps: int) -> int:
    return steps if steps < 8 else _round_up(steps, 8)


def _whole(x):
    """ "row time width", widened for TMA."""
    _, steps, width = x.shape
    padding = (0, _whole_time(steps) - steps), (0, _whole_row(width) - width)
    return jnp.pad(x, [(0, 0), *padding])


def _powers(x, n: int, count: int):
    """x to the 0, n, ... (count - 1) n, each rounded once: "power state"."""
    with jax.enable_x64(True):
        x = power(in_double(x), n)
        exponent = jnp.arange(count)[:, None]
        result = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), ones_like(x))
        for bit in range((count - 1).bit_length()):
            result = where(exponent >> bit & 1 != 0, multiply(result, x), result)
            x = multiply(x, x)
    return cast(result, jnp.float32)
