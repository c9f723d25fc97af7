"""Linear attention, its gated forms and the delta rule: the recurrence of matrix states alone.

Every contender gets the same queries, keys, values, decays and strengths beta of erasure, and its
outputs are compared with ours before anything is timed. `plain` is the step inside a
`jax.lax.scan`. Of other libraries only the recurrences are timed, without projections: memax
combines K x K transitions by an associative scan, discretax has the delta rule without decay in
chunks, and transformers has the gated delta rule of Qwen3-Next in chunks, in PyTorch.
"""
# pyright: reportMissingImports=false

import argparse
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rnnscale_kernels import linear_attention
from rnnscale_kernels.testing import MODES, AttentionArguments, Thunk

from ._benchmark import OURS, Benchmark, Row, columns
from ._harness import Contest, compiled, measure
from ._peers import check_close, installed, log_missing, unchecked, versions_of_libraries
from ._plots import ratios

PLAIN = AttentionArguments().baselines["lax_scan"]


@dataclass(frozen=True)
class Shape:
    """`decay` is that of `AttentionArguments`; `delta` says whether the delta rule erases."""

    batch: int
    time: int
    heads: int
    key: int
    value: int
    decay: str = "none"
    delta: bool = False


SHAPES = (
    *(
        Shape(4, 1024, 4, 64, 64, decay, delta)
        for delta in (True, False)
        for decay in ("none", "head", "channel")
    ),
    Shape(1, 4096, 2, 128, 128, "head", True),
    Shape(8, 1024, 8, 16, 16, "none", True),
    Shape(1, 2048, 24, 128, 64, "head"),
)
QUICK = (Shape(2, 128, 2, 8, 8, "none", True),)


class Inputs(NamedTuple):
    """`log_decay` or `beta` may be `None`. Keys have length one."""

    query: Array
    key: Array
    value: Array
    log_decay: Array | None
    beta: Array | None


def draw(shape: Shape) -> Inputs:
    arguments = AttentionArguments(
        (shape.batch,), shape.time, shape.heads, 0, shape.key, shape.value, shape.decay
    )
    _, (query, key, value, log_decay, _) = arguments.draw(jax.random.key(0))
    beta = jax.random.uniform(jax.random.key(1), (*value.shape[:-1], 1)) if shape.delta else None
    return Inputs(query, key, value, log_decay, beta)


def ours(inputs: Inputs, _: Any) -> Array:
    return linear_attention(*_arguments(inputs))[0]


def plain(inputs: Inputs, _: Any) -> Array:
    arguments = _arguments(inputs)
    rows, _, heads, width = arguments[2].shape
    start = jnp.zeros((rows, heads, arguments[1].shape[-1], width))
    return PLAIN(start, arguments)[0]


def _arguments(inputs: Inputs) -> tuple:
    query, key, value, log_decay, beta = inputs
    if beta is None:
        return query, key, value, log_decay, None
    return query, key, beta * value, log_decay, beta * key


def memax(inputs: Inputs, _: Any) -> Array:
    """Its semigroup: pairs of a transition and a state, for every step."""
    from memax.equinox.scans import semigroup_scan
    from memax.equinox.semigroups.delta import DeltaNetSemigroup

    def head(query, key, value, log_decay, beta):
        transitions = jnp.broadcast_to(jnp.eye(key.shape[-1]), (*key.shape, key.shape[-1]))
        if beta is not None:
            transitions -= beta[..., None] * key[:, :, None] * key[:, None, :]
            value = beta * value
        if log_decay is not None:
            transitions *= jnp.exp(log_decay).reshape(len(key), 1, -1)
        algebra = DeltaNetSemigroup(key.shape[-1])
        states = key[:, :, None] * value[:, None, :]
        start = algebra.initialize_carry()[0], jnp.zeros_like(states[0])
        with unchecked():
            _, states = semigroup_scan(algebra, start, (transitions, states))
        return jnp.einsum("tk,tkv->tv", query, states[-len(key) :])

    return jax.vmap(jax.vmap(head, 1, 1))(*inputs)


def discretax(inputs: Inputs, _: Any) -> Array:
    from discretax.sequence_mixers.deltanet import chunk_delta_rule_head

    query, key, value, _, beta = inputs

    def head(query, key, value, beta):
        return chunk_delta_rule_head(query, key, value, beta[:, 0], 64)

    return jax.vmap(jax.vmap(head, 1, 1))(query, key, value, beta)


def torch_thunks(inputs: Inputs) -> tuple[np.ndarray, dict[str, Thunk]]:
    """The outputs of transformers' function, and what computes them and their gradients."""
    import torch
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    query, key, value, log_decay, beta = inputs
    scale = key.shape[-1] ** 0.5  # it divides queries by this
    decay = jnp.zeros(value.shape[:-1]) if log_decay is None else log_decay
    beta = None if beta is None else beta[..., 0]
    arrays = [
        torch.tensor(np.asarray(x), requires_grad=True)
        for x in (scale * query, key, value, decay, beta)
    ]
    weights = torch.randn(*value.shape)

    def outputs():
        return qwen.torch_chunk_gated_delta_rule(*arrays)[0]

    def forward():
        with torch.no_grad():
            return outputs()

    def gradient():
        torch.autograd.grad((outputs() * weights).sum(), arrays)

    return forward().numpy(), {"forward": forward, "gradient": gradient}


def forms(shape: Shape) -> dict[str, Any]:
    """The contenders in JAX that compute this recurrence, and are installed."""
    found = {OURS: ours, "plain": plain}
    here = installed()
    # The states of memax's DeltaNet are square, and so are those of discretax.
    square = shape.delta and shape.key == shape.value
    if "memax" in here and square and shape.decay != "channel":
        found["memax"] = memax
    if "discretax" in here and square and shape.decay == "none" and shape.time % 64 == 0:
        found["discretax"] = discretax
    return found


def contests(shape: Shape) -> Iterator[Contest]:
    inputs = draw(shape)
    unused = jnp.zeros(())
    expected = ours(inputs, unused)
    thunks: dict[str, Mapping[str, Thunk]] = {}
    facts = {}
    for name, form in forms(shape).items():
        check_close(name, form(inputs, unused), expected)
        thunks[name], facts[name] = compiled(form, inputs, unused)
    here = "torch" in installed() and importlib.util.find_spec("transformers") is not None
    if here and shape.delta and shape.decay != "channel" and jax.default_backend() == "cpu":
        got, thunks["transformers"] = torch_thunks(inputs)
        check_close("transformers", got, expected)
    for mode in MODES:
        yield Contest(
            {**asdict(shape), "mode": mode},
            {name: modes[mode] for name, modes in thunks.items()},
            {name: modes[mode] for name, modes in facts.items()},
        )


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for shape in QUICK if options.quick else SHAPES:
        for contest in contests(shape):
            yield from measure(contest, options.rounds)


def _label(row: Row) -> str:
    rule = "delta" if row["delta"] else "add"
    size = f"{row['batch']}x{row['time']} {row['heads']}x{row['key']}x{row['value']}"
    return f"{rule}, decay {row['decay']}, {size}"


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("delta", "decay", "batch", "time", "heads", "key", "value", "mode", "contender"),
        *("median_ms", "ratio", "temp_bytes", "compile_s"),
    ),
    plot=ratios("Gradient", _label, height=4.8),
    about=versions_of_libraries,
)
