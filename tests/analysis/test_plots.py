"""Plots draw the right numbers at the right places, read back from their axes."""

import itertools

import numpy as np
import pytest

from rnnscale.analysis import plot_eigenvalues, plot_gradient_norms, plot_lyapunov, plot_timescales

Figure = pytest.importorskip("matplotlib.figure", reason="plots need matplotlib").Figure

SERIES = {f"series {i}": np.linspace(0.9, 0.1, 5) ** (i + 1) for i in range(6)}


def drawn(plot, data, **options):
    """The series by their names, and the axes."""
    figure = Figure()
    axes = figure.subplots()
    plot(axes, data, **options)
    figure.canvas.draw()
    lines = {line.get_label(): line for line in axes.get_lines()}
    return {name: line for name, line in lines.items() if not name.startswith("_")}, axes


def test_eigenvalues_in_the_complex_plane():
    values = {"one": np.array([0.5 + 0.25j, -1j]), "other": [1.0]}
    lines, axes = drawn(plot_eigenvalues, values)
    np.testing.assert_array_equal(lines["one"].get_xydata(), [[0.5, 0.25], [0, -1]])
    np.testing.assert_array_equal(lines["other"].get_xydata(), [[1, 0]])
    circle = axes.get_lines()[0].get_xydata()
    np.testing.assert_allclose(np.hypot(*circle.T), 1)
    assert axes.get_aspect() == 1


def test_gradients_of_zero_are_left_out():
    lines, axes = drawn(plot_gradient_norms, {"a": [1.0, 0.1, 0.0]})
    np.testing.assert_array_equal(lines["a"].get_xydata(), [[0, 1], [1, 0.1], [2, np.nan]])
    assert axes.get_yscale() == "log"


def test_exponents_are_numbered_from_one():
    lines, _ = drawn(plot_lyapunov, {"a": [0.5, -0.5, -np.inf]})
    np.testing.assert_array_equal(lines["a"].get_xydata(), [[1, 0.5], [2, -0.5], [3, np.nan]])


def test_time_scales_are_sorted_and_infinite_ones_counted():
    lines, axes = drawn(plot_timescales, {"a": [3.0, np.inf, 0.0, 50.0]}, seq_len=784)
    (line,) = lines.values()
    assert line.get_label() == "a (1 infinite)"
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 50, 3, np.nan])
    low, high = axes.get_ylim()
    assert low < 3 and high > 784


@pytest.mark.parametrize(
    "plot", [plot_eigenvalues, plot_gradient_norms, plot_lyapunov, plot_timescales]
)
def test_series_differ_without_colour(plot):
    lines, axes = drawn(plot, SERIES)
    for one, other in itertools.combinations(lines.values(), 2):
        shape = [(line.get_linestyle(), line.get_marker()) for line in (one, other)]
        assert shape[0] != shape[1] or abs(_grey(one) - _grey(other)) > 0.2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(SERIES)


def _grey(line):
    from matplotlib.colors import to_rgb

    return np.dot(to_rgb(line.get_color()), [0.299, 0.587, 0.114])
