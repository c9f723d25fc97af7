"""Plots of what this package computes, drawn on given matplotlib axes.

Series differ in lightness and in their markers or dashes, so the plots can be read without colour.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rnnscale._checks import Size, check_arguments

# The palette of Okabe and Ito, distinct for all kinds of colour vision, from dark to light.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
_MARKS = ("o", "x", "^", "s", "+", "v")


@check_arguments
def plot_eigenvalues(axes: Any, values: Mapping[str, ArrayLike]) -> None:
    """Eigenvalues in the complex plane, with the unit circle.

    **Arguments:**

    - `axes`: a `matplotlib.axes.Axes`.
    - `values`: for each series, by its name, what `eigenvalues` returned.
    """
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color="0.6", linewidth=0.8, zorder=0)
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    for i, (name, each) in enumerate(values.items()):
        each = np.asarray(each, np.complex128)
        mark, colour = _MARKS[i % len(_MARKS)], _COLOURS[i % len(_COLOURS)]
        hollow = {} if mark in "x+" else {"markerfacecolor": "none"}
        axes.plot(
            each.real,
            each.imag,
            mark,
            color=colour,
            markersize=4.5,
            label=name,
            alpha=0.8,
            **hollow,
        )
    axes.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
    # Outside the axes, because eigenvalues may be anywhere inside.
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))


@check_arguments
def plot_gradient_norms(axes: Any, norms: Mapping[str, ArrayLike]) -> None:
    """Gradient norms against the lag, on a logarithmic axis. Norms of zero are left out.

    **Arguments:**

    - `axes`: a `matplotlib.axes.Axes`.
    - `norms`: for each series, by its name, what `gradient_norms` returned.
    """
    for i, (name, each) in enumerate(norms.items()):
        each = np.asarray(each, np.float64)
        _line(axes, i, np.arange(each.size), np.where(each > 0, each, np.nan), name)
    axes.set(xlabel="lag (steps)", ylabel="gradient norm", yscale="log")
    _set_decades(axes, norms.values())
    _legend(axes, norms)


@check_arguments
def plot_lyapunov(axes: Any, exponents: Mapping[str, ArrayLike]) -> None:
    """Lyapunov exponents by their rank, with zero marked.

    **Arguments:**

    - `axes`: a `matplotlib.axes.Axes`.
    - `exponents`: for each series, by its name, what `lyapunov_spectrum` returned for one row.
    """
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    for i, (name, each) in enumerate(exponents.items()):
        each = np.asarray(each, np.float64)
        each = np.where(np.isfinite(each), each, np.nan)
        _line(axes, i, np.arange(1, each.size + 1), each, name, mark=True)
    axes.set(xlabel="rank", ylabel="exponent (nats per step)")
    _legend(axes, exponents)


@check_arguments
def plot_timescales(
    axes: Any, steps: Mapping[str, ArrayLike], *, seq_len: Size | None = None
) -> None:
    """Time scales of the modes, from the slowest, on a logarithmic axis. Modes that fade within a
    tenth of a step and modes that never fade are left out; the legend has the number of the latter.

    **Arguments:**

    - `axes`: a `matplotlib.axes.Axes`.
    - `steps`: for each series, by its name, what `timescales` returned.
    - `seq_len`: the number of steps in a sequence, drawn as a line if given.
    """
    if seq_len is not None:
        axes.axhline(seq_len, color="0.6", linewidth=0.8, zorder=0)
        axes.annotate(
            "sequence length", (1, seq_len), xycoords=("axes fraction", "data"), ha="right",
            va="bottom", fontsize="x-small", color="0.4",
        )  # fmt: skip
    names = {}
    for i, (name, each) in enumerate(steps.items()):
        each = np.sort(np.asarray(each, np.float64))[::-1]
        infinite = int(np.isposinf(each).sum())
        name = f"{name} ({infinite} infinite)" if infinite else name
        shown = np.where(np.isfinite(each) & (each >= 0.1), each, np.nan)
        _line(axes, i, np.arange(1, each.size + 1), shown, name, mark=True)
        names[name] = shown
    axes.set(xlabel="mode, from the slowest", ylabel="time scale (steps)", yscale="log")
    _set_decades(axes, [*names.values(), [] if seq_len is None else [seq_len]])
    _legend(axes, names)


def _line(axes: Any, i: int, x: Any, y: Any, name: str, *, mark: bool = False) -> None:
    axes.plot(
        x,
        y,
        color=_COLOURS[i % len(_COLOURS)],
        linestyle=_DASHES[i % len(_DASHES)],
        marker=_MARKS[i % len(_MARKS)] if mark else None,
        markersize=4,
        linewidth=1.4,
        label=name,
    )


def _set_decades(axes: Any, series: Iterable[ArrayLike]) -> None:
    """Show full decades, so that a curve that hardly falls looks flat."""
    values = np.concatenate([np.empty(0), *(np.ravel(np.asarray(each)) for each in series)])
    shown = np.log10(values[np.isfinite(values) & (values > 0)])
    if shown.size:
        low, high = np.floor(shown.min()), np.ceil(shown.max())
        axes.set_ylim(10.0**low * 0.9, 10.0 ** max(high, low + 1) * 1.1)


def _legend(axes: Any, series: Mapping[str, Any]) -> None:
    if series:
        axes.legend(fontsize="x-small")
