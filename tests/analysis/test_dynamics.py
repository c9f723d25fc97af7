"""What the report of a run shows of the recurrent layers, for every kind of layer and model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale
from rnnscale.analysis import Panel, dynamics_panels
from rnnscale.attention import LinearAttention
from rnnscale.cells import RandomOscillatorsCell, RGLRUCell
from rnnscale.models import LanguageModel, SequenceClassifier
from rnnscale.ssm import LRU, S5, BidirectionalS5

pytest.importorskip("matplotlib", reason="plots need matplotlib")

DIM, STEPS = 4, 8
LAYERS = {
    "s5-bidirectional": lambda key: BidirectionalS5(DIM, 8, key=key),
    "lru": lambda key: LRU(DIM, 8, key=key),
    "rglru": lambda key: rnnscale.RNNEncoder(RGLRUCell(DIM, key=key)),
    "linear-attention": lambda key: LinearAttention(DIM, 2, key_dim=2, key=key),
}


def check(model: Any, xs: jax.Array, names: list[str], *, has_cells: bool) -> None:
    panels = dynamics_panels(model, xs, seq_len=STEPS)
    expected = ["Eigenvalues", "Time scales", "Gradients against lag"]
    assert [each.title for each in panels] == expected + ["Lyapunov exponents"] * has_cells
    eigenvalues, *_ = [drawn(each) for each in panels]
    assert [axes.get_title() for axes in eigenvalues.axes] == names
    for line in (line for axes in eigenvalues.axes for line in axes.get_lines()):
        assert np.isfinite(line.get_xydata()).all()


def drawn(panel: Panel) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    panel.draw(figure)
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None and legend.get_texts()
    figure.canvas.draw()
    return figure


@pytest.mark.slow
def test_cells(getkey):
    """One of each kind: gated, linear, with several states, complex, orthogonal, untrained."""
    kinds = [
        rnnscale.LongShortTermMemoryCell,
        rnnscale.MinGRUCell,
        rnnscale.CoupledOscillatoryRNNCell,
        rnnscale.ExpRNNCell,
        RandomOscillatorsCell,
        rnnscale.UnitaryEvolutionRNNCell,
    ]
    cells = [kind(DIM, DIM, key=getkey()) for kind in kinds]
    model = rnnscale.DeepRNN(cells, 3, key=getkey())
    xs = jax.random.normal(getkey(), (2, STEPS, DIM))
    check(model, xs, [f"layer {i}" for i in range(len(kinds))], has_cells=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_stacks_of_layers(name, getkey):
    model = SequenceClassifier(2, 3, make_layer=LAYERS[name], dim=DIM, depth=2, key=getkey())
    xs = jax.random.normal(getkey(), (2, STEPS, 2))
    check(model, xs, ["layer 0", "layer 1"], has_cells=name == "rglru")


@pytest.mark.slow
def test_tokens(getkey):
    model = LanguageModel(
        11, make_layer=lambda key: S5(DIM, 8, key=key), dim=DIM, depth=2, key=getkey()
    )
    check(model, jnp.zeros((2, STEPS), int), ["layer 0", "layer 1"], has_cells=False)
