"""What every cell does alike: initialise inside transformations, and refuse wrong arguments."""

import inspect
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnscale import cells
from rnnscale.cells import (
    AntiSymmetricRNNCell,
    Cell,
    ClockWorkRNNCell,
    CoupledOscillatoryRNNCell,
    ExpRNNCell,
    GatedAntiSymmetricRNNCell,
    GatedLipschitzRNNCell,
    GatedRecurrentUnit,
    GatedRecurrentUnitCell,
    HeterogeneousOscillatoryRNNCell,
    IndRNNCell,
    LeakyElmanCell,
    LipschitzRNNCell,
    LongShortTermMemory,
    LongShortTermMemoryCell,
    LrcSSMCell,
    MinimalGatedUnitCell,
    NonNormalRNNCell,
    ParaGRUCell,
    ParaLSTMCell,
    RandomOscillatorsCell,
    RGLRUCell,
    UnICORNNCell,
    WilsonCowanCell,
)

# All classes with the constructor `(idim, hdim, *, key)`: all but RGLRUCell.
CELLS: list[Any] = [
    kind
    for name, kind in ((name, getattr(cells, name)) for name in dir(cells))
    if inspect.isclass(kind)
    and issubclass(kind, Cell)
    and not inspect.isabstract(kind)
    and name == kind.__name__ != "RGLRUCell"
]
over_cells = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)


def test_initialise_inside_jit_and_vmap(key):
    def make(key):
        return [*(cell(3, 8, key=key) for cell in CELLS), RGLRUCell(8, blocks=2, key=key)]

    keys = jax.random.split(key, 2)
    stacked = eqx.filter_jit(eqx.filter_vmap(make))(keys)
    for got, expected in zip(jax.tree.leaves(stacked), jax.tree.leaves(make(keys[1])), strict=True):
        np.testing.assert_allclose(got[1], expected, rtol=1e-5, atol=1e-6)


def test_aliases():
    assert GatedRecurrentUnit is GatedRecurrentUnitCell
    assert LongShortTermMemory is LongShortTermMemoryCell


@over_cells
def test_bad_sizes(cell, key):
    with pytest.raises(ValueError, match=f"{cell.__name__}: idim must be at least 1; got 0"):
        cell(0, 8, key=key)
    with pytest.raises(ValueError, match=f"{cell.__name__}: hdim must be at least 1; got -4"):
        cell(3, -4, key=key)


@pytest.mark.parametrize(
    ("cell", "arguments", "message"),
    [
        (LeakyElmanCell, {"leak": 0.0}, r"leak must be in \(0, 1\]; got 0.0"),
        (LeakyElmanCell, {"leak": 1.5}, r"leak must be in \(0, 1\]; got 1.5"),
        (WilsonCowanCell, {"rate": -0.1}, r"rate must be in \(0, 1\]; got -0.1"),
        (WilsonCowanCell, {"rate": math.nan}, r"rate must be in \(0, 1\]; got nan"),
        (IndRNNCell, {"recurrent_range": (1.0, 0.5)}, r"\(low, high\) .*; got \(1.0, 0.5\)"),
        (AntiSymmetricRNNCell, {"epsilon": 0.0}, "epsilon must be positive and finite; got 0.0"),
        (AntiSymmetricRNNCell, {"recurrent_std": -1.0}, "recurrent_std must be at least 0"),
        (
            GatedAntiSymmetricRNNCell,
            {"epsilon": -1.0},
            "epsilon must be positive and finite; got -1.0",
        ),
        (GatedAntiSymmetricRNNCell, {"recurrent_std": -1.0}, "recurrent_std must be at least 0"),
        (ClockWorkRNNCell, {"periods": ()}, r"periods must have .* one element; got \(\)"),
        (ClockWorkRNNCell, {"periods": (1, 0)}, r"periods\[1\] must be at least 1; got 0"),
        (ClockWorkRNNCell, {"periods": (1, 2, 4)}, "hdim must be a multiple of 3; got 8"),
        (ClockWorkRNNCell, {"periods": (1, 2), "sizes": (1, 2)}, r"hdim=8; got \(1, 2\)"),
        (ClockWorkRNNCell, {"periods": (1, 2), "sizes": (8,)}, r"each of the 2 .*; got \(8,\)"),
        (ClockWorkRNNCell, {"periods": (1, 2), "sizes": (8, 0)}, r"sizes\[1\] must be at least 1"),
        (ClockWorkRNNCell, {"periods": (2**16, 3**14)}, "least common multiple .* got 31345665"),
        (LipschitzRNNCell, {"epsilon": 0.0}, "epsilon must be positive and finite; got 0.0"),
        (LipschitzRNNCell, {"beta": 1.1}, r"beta must be in \[0, 1\]; got 1.1"),
        (LipschitzRNNCell, {"beta": (0.5, -0.1)}, r"beta\[1\] must be in \[0, 1\]; got -0.1"),
        (LipschitzRNNCell, {"init_std": -1.0}, "init_std must be at least 0 and finite; got -1.0"),
        (LipschitzRNNCell, {"method": "rk4"}, "method must be one of euler, rk2; got 'rk4'"),
        (GatedLipschitzRNNCell, {"beta": (2.0, 0.5)}, r"beta\[0\] must be in \[0, 1\]; got"),
        (GatedLipschitzRNNCell, {"method": "heun"}, "method must be one of euler, rk2; got 'heun'"),
        (CoupledOscillatoryRNNCell, {"dt": 0.0}, "dt must be positive and finite; got 0.0"),
        (CoupledOscillatoryRNNCell, {"dt": math.nan}, "dt must be positive and finite; got nan"),
        (CoupledOscillatoryRNNCell, {"gamma": -1.0}, "gamma must be at least 0 .*; got -1.0"),
        (CoupledOscillatoryRNNCell, {"epsilon": -0.1}, "epsilon must be at least 0 .*; got -0.1"),
        (HeterogeneousOscillatoryRNNCell, {"gamma": (2.0, 1.0)}, r"gamma must be \(low, high\)"),
        (HeterogeneousOscillatoryRNNCell, {"epsilon": (-1.0, 1.0)}, r"epsilon\[0\] must be at"),
        (RandomOscillatorsCell, {"dt": -1.0}, "dt must be positive and finite; got -1.0"),
        (
            RandomOscillatorsCell,
            {"gamma": (2.0, 1.0)},
            r"gamma must be \(low, high\) .*\(2.0, 1.0\)",
        ),
        (RandomOscillatorsCell, {"epsilon": (-1.0, 1.0)}, r"epsilon\[0\] must be at least 0"),
        (RandomOscillatorsCell, {"spectral_radius": -1.0}, "spectral_radius must be at least 0"),
        (RandomOscillatorsCell, {"input_scaling": math.nan}, "input_scaling must be at least 0"),
        (ExpRNNCell, {"init": "haar"}, "init must be one of henaff, cayley; got 'haar'"),
        (NonNormalRNNCell, {"init": "haar"}, "init must be one of henaff, cayley; got 'haar'"),
        (NonNormalRNNCell, {"hdim": 5}, "hdim must be even, .*; got 5"),
        (
            MinimalGatedUnitCell,
            {"reset_gate": "x"},
            "reset_gate must be one of before, after, none",
        ),
        (UnICORNNCell, {"dt": 0.0}, "dt must be positive and finite; got 0.0"),
        (UnICORNNCell, {"alpha": -1.0}, "alpha must be at least 0 and finite; got -1.0"),
        (ParaGRUCell, {"heads": 2}, "heads must divide idim=3 and hdim=8; got heads=2"),
        (ParaLSTMCell, {"heads": 3}, "heads must divide idim=3 and hdim=8; got heads=3"),
        (LrcSSMCell, {"form": "odd"}, "form must be one of asymmetric, symmetric; got 'odd'"),
        (LrcSSMCell, {"dt": math.inf}, "dt must be positive and finite; got inf"),
    ],
)
def test_bad_arguments(cell: Any, arguments, message, key):
    with pytest.raises(ValueError, match=f"{cell.__name__}: .*{message}"):
        cell(**({"idim": 3, "hdim": 8} | arguments), key=key)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"idim": 0}, "idim must be at least 1; got 0"),
        ({"idim": 4, "blocks": 0}, "blocks must be at least 1; got 0"),
        ({"idim": 4, "blocks": 3}, "blocks must divide idim=4; got blocks=3"),
    ],
)
def test_bad_sizes_of_rglru(sizes, message, key):
    with pytest.raises(ValueError, match=f"RGLRUCell: {message}"):
        RGLRUCell(**sizes, key=key)


@over_cells
def test_bad_calls(cell, key):
    made: Cell = jax.eval_shape(lambda key: cell(3, 8, key=key), key)
    cell = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), made)
    with pytest.raises(ValueError, match=f"{type(cell).__name__} .* with 3 features; got shape"):
        cell(jnp.zeros(8), cell.init_state())
    with pytest.raises(ValueError, match=f"{type(cell).__name__} takes a state like init_state"):
        cell(jnp.zeros(3), jnp.zeros(7))
