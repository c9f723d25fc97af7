"""Every layer and cell, in the plain loop and in other libraries: time, memory, compile time.

Each is timed forward and with the gradient by the input and all parameters. All contenders have the
same weights. Their outputs are compared first, except for those whose `note` begins with "another
equation". `linear_scan` is the recurrence alone, real, with a decay for every step. The contender
`products` is the limit: the matrix products of the layer without what lies between them.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from rnnscale import cells
from rnnscale_kernels import linear_scan
from rnnscale_kernels.testing import MODES, Thunk

from . import _products, _torch
from ._benchmark import OURS, Benchmark, Row, columns
from ._harness import Contest, compiled, measure
from ._peers import (
    LIBRARIES,
    check_close,
    check_equal,
    contenders,
    installed,
    log_missing,
    over_time,
    versions_of_libraries,
)
from ._plots import ratios

CELLS: dict[str, Callable[..., cells.Cell]] = {
    **{
        cell.__name__: cell
        for cell in (
            cells.ElmanRNNCell,
            cells.LeakyElmanCell,
            cells.WilsonCowanCell,
            cells.IndRNNCell,
            cells.LongShortTermMemoryCell,
            cells.GatedRecurrentUnitCell,
            cells.ChoGatedRecurrentUnitCell,
            cells.MinimalGatedUnitCell,
            cells.AntiSymmetricRNNCell,
            cells.GatedAntiSymmetricRNNCell,
            cells.ClockWorkRNNCell,
            cells.GatedLipschitzRNNCell,
            cells.UnitaryEvolutionRNNCell,
            cells.CoupledOscillatoryRNNCell,
            cells.HeterogeneousOscillatoryRNNCell,
            cells.RandomOscillatorsCell,
            cells.UnICORNNCell,
            cells.ParaGRUCell,
            cells.ParaLSTMCell,
            cells.SLSTMCell,
            cells.LrcSSMCell,
            cells.ExpRNNCell,
            cells.NonNormalRNNCell,
            cells.MinGRUCell,
            cells.MinLSTMCell,
        )
    },
    "LipschitzRNNCell euler": partial(cells.LipschitzRNNCell, method="euler"),
    "LipschitzRNNCell rk2": partial(cells.LipschitzRNNCell, method="rk2"),
    "RGLRUCell": lambda idim, hdim, *, key: cells.RGLRUCell(idim, key=key),
}
LAYERS = ("LRU", "S5", *CELLS, "linear_scan")
QUICK = ("LRU", "LongShortTermMemoryCell", "MinGRUCell", "linear_scan")


@dataclass(frozen=True)
class Shape:
    """`units` are complex states of an LRU or S5."""

    batch: int
    time: int
    features: int
    units: int


SSM_SHAPES = (
    Shape(8, 2048, 64, 256),
    Shape(1, 12_000, 64, 160),
    Shape(1, 16_384, 64, 128),
    Shape(5, 3000, 96, 192),
    Shape(16, 1024, 128, 128),
    Shape(32, 1024, 128, 128),
)
CELL_SHAPE = Shape(32, 512, 64, 256)
SCAN_SHAPE = Shape(8, 2048, 256, 256)
QUICK_SHAPE = Shape(2, 128, 8, 16)


def shapes(layer: str, quick: bool) -> Sequence[Shape]:
    if quick:
        return (QUICK_SHAPE,)
    if layer in ("LRU", "S5"):
        return SSM_SHAPES
    return (SCAN_SHAPE if layer == "linear_scan" else CELL_SHAPE,)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer", nargs="+", choices=LAYERS, metavar="NAME", help=f"of {', '.join(LAYERS)}"
    )


def run(options: argparse.Namespace) -> Iterator[Row]:
    log_missing()
    for layer in options.layer or (QUICK if options.quick else LAYERS):
        for shape in shapes(layer, options.quick):
            make = scan_contests if layer == "linear_scan" else contests
            for contest in make(layer, shape):
                yield from measure(contest, options.rounds)


def make_ours(layer: str, features: int, units: int, key: jax.Array) -> Any:
    """The layer or cell of ours, the one that its peers get their weights from."""
    if layer in ("LRU", "S5"):
        return LIBRARIES[OURS].make(layer, features, units, key)
    cell = CELLS[layer](features, units, key=key)
    if isinstance(cell, cells.GatedRecurrentUnitCell):
        # That of Flax does not have it.
        zeros = jnp.zeros_like(cell.candidate_bias)
        cell = eqx.tree_at(lambda cell: cell.candidate_bias, cell, zeros)
    return cell


def contests(layer: str, shape: Shape) -> list[Contest]:
    """One for the forward pass and one for the gradient."""
    ours = make_ours(layer, shape.features, shape.units, jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (shape.batch, shape.time, shape.features))
    found = contenders(ours)
    few = xs[:1, :64]
    check_equal(found, few)
    thunks: dict[str, dict[str, Thunk]] = {}
    facts: dict[str, dict[str, Row]] = {}
    for name, contender in found.items():
        thunks[name], facts[name] = compiled(contender.run, contender.module, xs)
        facts[name] = {mode: {**each, **contender.facts} for mode, each in facts[name].items()}
    if (module := torch_module(ours)) is not None:
        check_close("torch", _torch.outputs(module, few), found[OURS].run(ours, few))
        thunks["torch"] = _torch.thunks(module, xs)
    if (products := _products.products(ours)) is not None:
        thunks[_products.NAME], compiled_facts = compiled(products, ours, xs)
        facts[_products.NAME] = {
            mode: {**each, "note": _products.NOTE} for mode, each in compiled_facts.items()
        }
    return _by_mode({"layer": layer, **vars(shape)}, thunks, facts)


def torch_module(ours: Any) -> Any:
    """PyTorch's layer with the weights of ours, where it has one and is here. It runs on the CPU,
    so beside programs for a GPU it is left out."""
    kind = type(ours).__name__
    if kind not in _torch.MODULES or not _torch.here() or jax.default_backend() != "cpu":
        return None
    return _torch.with_weights(_torch.make(kind, ours.idim, ours.hdim), ours)


def scan_contests(layer: str, shape: Shape) -> list[Contest]:
    b_key, a_key = jax.random.split(jax.random.key(1))
    size = (shape.batch, shape.time, shape.units)
    b = jax.random.normal(b_key, size)
    a = jax.random.uniform(a_key, size, minval=0.5, maxval=0.999)

    def ours(a, b):
        return linear_scan(a, b)[0]

    def textbook(a, b):
        def combine(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        return jax.lax.associative_scan(combine, (a, b), axis=1)[1]

    def plain(a, b):
        def step(h, x):
            h = x[0] * h + x[1]
            return h, h

        return over_time(step, jnp.zeros_like(b[:, 0]), (a, b))

    expected = ours(a, b)
    thunks, facts = {}, {}
    for name, form in (("rnnscale", ours), ("textbook", textbook), ("plain", plain)):
        check_close(name, form(a, b), expected)
        thunks[name], facts[name] = compiled(form, a, b)
    if "mambapy" in installed() and jax.default_backend() == "cpu":
        got, thunks["mambapy"] = _torch.scan_thunks(a, b)
        check_close("mambapy", got, expected)
    return _by_mode({"layer": layer, **vars(shape)}, thunks, facts)


def _by_mode(
    case: Row, thunks: dict[str, dict[str, Thunk]], facts: dict[str, dict[str, Row]]
) -> list[Contest]:
    return [
        Contest(
            {**case, "mode": mode},
            {name: modes[mode] for name, modes in thunks.items()},
            {name: modes[mode] for name, modes in facts.items()},
            limits=(_products.NAME,),
        )
        for mode in MODES
    ]


def _shape(row: Row) -> str:
    return f"{row['batch']}x{row['time']} {row['features']}→{row['units']}"


BENCHMARK = Benchmark(
    run=run,
    table=columns(
        *("layer", "batch", "time", "features", "units", "mode", "contender"),
        *("median_ms", "ratio", "temp_bytes", "compile_s", "note"),
    ),
    plot=ratios("Gradient", lambda row: f"{row['layer']} {_shape(row)}", height=9),
    add_options=add_options,
    about=versions_of_libraries,
)
