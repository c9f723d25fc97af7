"""Mamba and Mamba-2, in plain loops and in other libraries: processor time of both passes.

Ours, `plain` and `tree` are the same layer with the recurrence by our operation, by `jax.lax.scan`
over steps and, for Mamba, by `jax.lax.associative_scan` over the expanded states. `transformers` is
its torch code for CPUs, `mambapy` the same with that library's parallel scan; both have the weights
of ours, and outputs are compared first. The S6 of memax has another equation, one state for each
channel and no block, and is run at the channels of ours; discretax 0.3 has no S6. Times are those
of the processor, over all threads, the least of all rounds, so other programs may be running.
PyTorch has one thread: of several, those that wait for the others take processor time too.
"""
# pyright: reportMissingImports=false

import argparse
from collections.abc import Callable, Iterator
from time import perf_counter, process_time
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnscale import sharding
from rnnscale._fields import parameters
from rnnscale.ssm import Mamba, Mamba2
from rnnscale_kernels.testing import MODES, Thunk

from . import _torch
from ._benchmark import OURS, Benchmark, Row, columns
from ._harness import compiled
from ._peers import check_close, installed, log_missing, over_time, unchecked, versions_of_libraries


class Shape(NamedTuple):
    layer: str
    batch: int
    time: int
    features: int
    states: int


# The time of the gradient of transformers' Mamba grows with the square of the length.
SHAPES = (
    Shape("Mamba", 4, 256, 256, 16),
    Shape("Mamba2", 4, 256, 256, 64),
    Shape("Mamba2", 1, 1024, 256, 128),
)
QUICK = (Shape("Mamba", 2, 40, 16, 4), Shape("Mamba2", 2, 40, 32, 8))

type Run = Callable[[Any, jax.Array], jax.Array]


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for shape in QUICK if options.quick else SHAPES:
        thunks, notes = contenders(shape)
        for mode in MODES:
            calls = {name: each[mode] for name, each in thunks.items()}
            for name, row in timed(calls, options.rounds).items():
                note = {"note": notes[name]} if name in notes else {}
                yield {**shape._asdict(), "mode": mode, "contender": name, **row, **note}


def contenders(shape: Shape) -> tuple[dict[str, dict[str, Thunk]], dict[str, str]]:
    """What to call in each mode, and how a contender's job differs."""
    make = {"Mamba": Mamba, "Mamba2": Mamba2}[shape.layer]
    keys = jax.random.split(jax.random.key(0))
    layer = jax.jit(lambda key: make(shape.features, shape.states, key=key))(keys[0])
    xs = jax.random.normal(keys[1], (shape.batch, shape.time, shape.features))
    found = {name: compiled(way, layer, xs)[0] for name, way in WAYS[shape.layer].items()}
    expected = found[OURS]["forward"]()
    for name, modes in found.items():
        check_close(name, modes["forward"](), expected, 1e-4)
    notes = {}
    if _torch.here() and "transformers" in installed():
        for name in ("transformers", "mambapy"):
            if name in installed() and (name, shape.layer) != ("mambapy", "Mamba2"):
                module = mixer(layer, mambapy=name == "mambapy")
                check_close(name, _torch_outputs(module, xs), expected, 1e-4)
                found[name] = torch_thunks(module, xs)
    if "memax" in installed() and shape.layer == "Mamba":
        module, width = memax_layer(2 * shape.features, keys[0])
        found["memax"] = compiled(memax, module, jnp.tile(xs, width // shape.features))[0]
        notes["memax"] = "another equation: one state for each channel, and no block"
    return found, notes


def timed(calls: dict[str, Thunk], rounds: int) -> dict[str, Row]:
    """The least processor time and the median time of each, called in turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start, processor = perf_counter(), process_time()
            jax.block_until_ready(call())
            taken[name].append((process_time() - processor, perf_counter() - start))
    rows = {}
    for name, times in taken.items():
        processor, passed = np.array(times[1:]).T * 1e3
        rows[name] = {
            "processor_ms": round(float(processor.min()), 2),
            "median_ms": round(float(np.median(passed)), 2),
        }
    for name, row in rows.items():
        row["ratio"] = round(row["processor_ms"] / rows[OURS]["processor_ms"], 2)
        if name != OURS and row["ratio"] < 1:
            row["ahead"] = True
    return rows


def ours(layer: Any, xs: jax.Array) -> jax.Array:
    return layer(xs)[1]


def by(name: str, function: Callable[..., Any]) -> Run:
    """The layer with `function` in the place of an operation of `rnnscale.sharding`."""

    def run(layer: Any, xs: jax.Array) -> jax.Array:
        with mock.patch.object(sharding, name, function):
            return ours(layer, xs)

    return run


def selective_loop(u, delta, a, b, c, h0, **_):
    rates = a.T

    def step(h, now):
        u, delta, b, c = now
        h = jnp.exp(delta[:, None] * rates) * h + (delta * u)[:, None] * b[..., None]
        return h, jnp.sum(h * c[..., None], axis=1)

    return over_time(step, jnp.swapaxes(h0, 1, 2), (u, delta, b, c)), h0


def selective_tree(u, delta, a, b, c, h0, **_):
    def combine(left, right):
        return right[0] * left[0], right[0] * left[1] + right[1]

    decay, drive = jnp.exp(delta[..., None] * a), (delta * u)[..., None] * b[:, :, None]
    _, h = lax.associative_scan(combine, (decay, drive), axis=1)
    return jnp.einsum("btdn,btn->btd", h, c), h0


def attention_loop(query, key, value, log_decay, *, h0, **_):
    times = value.shape[2] // query.shape[2]

    def step(h, now):
        q, k, v, g = now
        q, k = (jnp.repeat(x, times, axis=1) for x in (q, k))
        h = jnp.exp(g)[..., None, None] * h + k[..., None] * v[..., None, :]
        return h, jnp.einsum("bhk,bhkv->bhv", q, h)

    return over_time(step, h0, (query, key, value, log_decay)), h0


WAYS: dict[str, dict[str, Run]] = {
    "Mamba": {
        OURS: ours,
        "plain": by("selective_scan", selective_loop),
        "tree": by("selective_scan", selective_tree),
    },
    "Mamba2": {OURS: ours, "plain": by("linear_attention", attention_loop)},
}


def mixer(layer: Any, *, mambapy: bool = False) -> Any:
    """The layer of transformers with the weights of ours."""
    import torch
    import transformers

    models: Any = transformers.models
    given = {each.path: np.asarray(each.value) for each in parameters(layer)}
    torch.set_num_threads(1)
    shared = {
        "hidden_size": layer.idim,
        "state_size": layer.state_dim,
        "expand": 2,
        "num_hidden_layers": 1,
    }
    if isinstance(layer, Mamba):
        config = transformers.MambaConfig(
            **shared, time_step_rank=layer.dt_rank, use_bias=False, use_mambapy=mambapy
        )
        module = models.mamba.modeling_mamba.MambaMixer(config, 0)
        weights = {
            "in_proj.weight": given["in_proj"].reshape(-1, layer.idim),
            "conv1d.weight": given["conv.weight"][:, None, ::-1],
            "conv1d.bias": given["conv.bias"],
            "x_proj.weight": given["x_proj"],
            "dt_proj.weight": given["dt_proj"],
            "dt_proj.bias": given["dt_bias"],
            "out_proj.weight": given["out_proj"],
        }
    else:
        config = transformers.Mamba2Config(
            **shared, num_heads=layer.heads, head_dim=layer.head_dim, n_groups=layer.groups
        )
        module = models.mamba2.modeling_mamba2.Mamba2Mixer(config, 0)
        maps = [given[name].reshape(-1, layer.idim) for name in ("zx_proj", "bc_proj", "dt_proj")]
        taps = np.concatenate([given["conv.weight"], given["conv_maps.weight"]])
        weights = {
            "in_proj.weight": np.concatenate(maps),
            "conv1d.weight": taps[:, None, ::-1],
            "conv1d.bias": np.concatenate([given["conv.bias"], given["conv_maps.bias"]]),
            "dt_bias": given["dt_bias"],
            "norm.weight": given["norm_scale"].reshape(-1),
            "out_proj.weight": given["out_proj"].reshape(layer.odim, -1),
        }
    weights |= {"A_log": given["a_log"], "D": given["d"]}
    module.load_state_dict({name: torch.tensor(x.copy()) for name, x in weights.items()})
    return module.eval()


def _torch_outputs(module: Any, xs: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return module(torch.tensor(np.asarray(xs))).numpy()


def torch_thunks(module: Any, xs: Any) -> dict[str, Thunk]:
    """The forward pass, and the gradient of a weighted sum of the outputs by the input and all
    parameters."""
    import torch

    inputs = torch.tensor(np.asarray(xs), requires_grad=True)
    weights = torch.randn(*xs.shape)

    def forward():
        with torch.no_grad():
            module(inputs)

    def gradient():
        torch.autograd.grad((module(inputs) * weights).sum(), [inputs, *module.parameters()])

    return {"forward": forward, "gradient": gradient}


def memax_layer(width: int, key: jax.Array) -> tuple[Any, int]:
    from memax.equinox.semigroups.s6 import S6

    return S6(width, width, key), width


def memax(module: Any, xs: jax.Array) -> jax.Array:
    flags = jnp.zeros(xs.shape[1], bool)

    def row(x: jax.Array) -> jax.Array:
        return module(module.initialize_carry(), (x, flags))[1]

    with unchecked():
        return jax.vmap(row)(xs)


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("layer", "batch", "time", "features", "states", "mode", "contender"),
        *("processor_ms", "median_ms", "ratio", "note"),
    ),
    about=versions_of_libraries,
    rounds=5,
)
