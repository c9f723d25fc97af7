"""Microseconds from an input to its output, one step at a time.

Each contender runs a stream: it hands its state from step to step and waits for every output. The
figures are quantiles over all steps of all turns; each turn is a piece of the stream.

- `rnnscale`: the step that `rnnscale.interop.export_step` wrote, loaded again.
- `layer.step`: the layer's own step under `jax.jit`, with the weights as arguments.
- `torch`: one call of `LSTMCell` or `GRUCell` with the same weights, without gradients.
- `whole sequence`: the layer over all 1024 steps so far, to get the last output. This is what a
    model without a step function has to do.

A batch has 1 row or 64.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import numpy as np

from rnnscale import LRU, S5, GatedRecurrentUnitCell, LongShortTermMemoryCell, RNNEncoder
from rnnscale.interop import export_step, load_step
from rnnscale.models import LanguageModel
from rnnscale_kernels.testing import Thunk, failure, take_turns

from . import _torch
from ._benchmark import OURS, Benchmark, Row, Unavailable, columns
from ._harness import compared
from ._peers import check_close
from ._plots import ratios

BATCHES = (1, 64)
STEPS, HISTORY = 200, 1024
QUICK_STEPS, QUICK_HISTORY = 20, 64

LAYERS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "LSTM": (64, 256, lambda i, h, key: RNNEncoder(LongShortTermMemoryCell(i, h, key=key))),
    "GRU": (64, 256, lambda i, h, key: RNNEncoder(GatedRecurrentUnitCell(i, h, key=key))),
    "LRU": (64, 256, lambda i, h, key: LRU(i, h, key=key)),
    "S5": (64, 256, lambda i, h, key: S5(i, 2 * h, key=key)),
    "LanguageModel of S5, 4 blocks": (
        64,
        256,
        lambda i, h, key: LanguageModel(
            256, make_layer=lambda key: S5(i, 2 * h, key=key), dim=i, depth=4, key=key
        ),
    ),
}
"""Features, units or complex states, and what makes the layer of them."""


class Stream:
    """Calls `advance(state) -> (state, y)` so often a turn, and keeps the seconds of each call."""

    def __init__(self, advance: Callable[[Any], tuple[Any, Any]], state: Any, steps: int):
        self.advance, self.state, self.steps = advance, state, steps
        self.turns: list[list[float]] = []

    def __call__(self) -> None:
        seconds = []
        for _ in range(self.steps):
            start = time.perf_counter()
            self.state, y = self.advance(self.state)
            jax.block_until_ready(y)
            seconds.append(time.perf_counter() - start)
        self.turns.append(seconds)


def run(options: argparse.Namespace) -> Iterator[Row]:
    if importlib.util.find_spec("flatbuffers") is None:
        raise Unavailable("flatbuffers is not installed: rnnscale[export] has it")
    if not _torch.here():
        print("left out: torch (not installed)", file=sys.stderr)
    layers = ["LSTM", "LRU"] if options.quick else list(LAYERS)
    for name in layers:
        for batch in BATCHES:
            yield from measured(name, batch, options)


def measured(name: str, batch: int, options: argparse.Namespace) -> list[Row]:
    features, units, make = LAYERS[name]
    steps = QUICK_STEPS if options.quick else STEPS
    history = QUICK_HISTORY if options.quick else HISTORY
    layer = make(features, units, key=jax.random.key(0))
    x_key, xs_key = jax.random.split(jax.random.key(1))
    if isinstance(layer, LanguageModel):
        x = jax.random.randint(x_key, (batch,), 0, layer.vocab)
        xs = jax.random.randint(xs_key, (batch, history), 0, layer.vocab)
    else:
        x = jax.random.normal(x_key, (batch, features))
        xs = jax.random.normal(xs_key, (batch, history, features))
    file = export_step(layer)
    exported = load_step(file)
    arrays, static = eqx.partition(layer, eqx.is_array)
    own = jax.jit(lambda arrays, x, state: eqx.combine(arrays, static).step(x, state))
    whole = jax.jit(lambda arrays, xs: eqx.combine(arrays, static)(xs)[1][:, -1])

    def first_call(advance: Callable[[], Any]) -> dict[str, Any]:
        start = time.perf_counter()
        jax.block_until_ready(advance())
        return {"compile_s": time.perf_counter() - start}

    zero, own_zero = exported.init_state((batch,)), layer.init_state((batch,))
    facts = {
        OURS: first_call(lambda: exported(x, zero)) | {"file_bytes": len(file)},
        "layer.step": first_call(lambda: own(arrays, x, own_zero)),
        "whole sequence": first_call(lambda: whole(arrays, xs)),
    }
    expected = exported(x, zero)[1]
    check_close("layer.step", own(arrays, x, own_zero)[1], expected, tolerance=1e-4)
    streams = {
        OURS: Stream(partial(exported, x), zero, steps),
        "layer.step": Stream(partial(own, arrays, x), own_zero, steps),
        # It takes as long as very many steps.
        "whole sequence": Stream(lambda state: (state, whole(arrays, xs)), None, 2),
    }
    if _torch.here() and name in ("LSTM", "GRU"):
        advance = torch_advance(name, cast(Any, layer).cell, np.asarray(x))
        check_close("torch", advance(None)[1], expected, tolerance=1e-4)
        streams["torch"] = Stream(advance, None, steps)
    case = {"layer": name, "batch": batch, "features": features, "units": units}
    return in_turns(case, streams, facts, options.rounds)


def in_turns(
    case: Row, streams: dict[str, Stream], facts: dict[str, Row], rounds: int
) -> list[Row]:
    """A row for each stream. The first piece of each, before the turns, does not count."""
    thunks: dict[str, Thunk] = dict(streams)
    _, errors = take_turns(thunks, rounds)
    medians = {
        name: [float(np.median(turn)) for turn in stream.turns[1:]]
        for name, stream in streams.items()
        if name not in errors
    }
    rows = []
    for name, stream in streams.items():
        row = {**case, "contender": name}
        if name in errors:
            row |= failure(errors[name])
        else:
            p50, p99 = 1e6 * np.quantile(np.concatenate(stream.turns[1:]), (0.5, 0.99))
            row |= {"p50_us": float(p50), "p99_us": float(p99), **compared(name, medians)}
        rows.append({**row, **facts.get(name, {})})
    return rows


def torch_advance(name: str, cell: Any, x: np.ndarray) -> Callable[[Any], tuple[Any, Any]]:
    import torch  # pyright: ignore[reportMissingImports]

    layer = _torch.with_weights(getattr(torch.nn, name)(cell.idim, cell.hdim), cell)
    module = getattr(torch.nn, f"{name}Cell")(cell.idim, cell.hdim)
    weights = {key.removesuffix("_l0"): value for key, value in layer.state_dict().items()}
    module.load_state_dict(weights)
    inputs = torch.tensor(x)

    def advance(state: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            state = module(inputs, state)
        return state, state[0] if name == "LSTM" else state

    return advance


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("layer", "batch", "features", "units", "contender", "p50_us", "p99_us"),
        *("ratio", "ratio_spread", "compile_s", "file_bytes"),
    ),
    plot=ratios("Step", lambda row: f"{row['layer']}, batch {row['batch']}"),
)
