"""Importer for the UnICORNN code of its authors, tk-rusch/unicornn."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax

from rnnscale._checks import NonEmpty, NonNegative, Positive, check_arguments
from rnnscale._errors import UserError
from rnnscale.cells import UnICORNNCell
from rnnscale.interop._arrays import Arrays, make_with, read_arrays, with_parts
from rnnscale.layers import DeepRNN, DeepRNNEncoder, Linear, RNNEncoder

_OWNER = "UnICORNN"
_LAYER = re.compile(r"RNNs\.(\d+)\.weight_hh")


@check_arguments
def unicornn_from_rusch(
    state_dict: Mapping[str, Any], *, dt: Positive | NonEmpty[Positive], alpha: NonNegative
) -> DeepRNN:
    """A network `UnICORNN` of any depth, in inference: without dropout.

    It computes the same as theirs, up to rounding. Their inputs have the axes
    `time batch features`, those here `batch time features`.

    ```
    rnn = unicornn_from_rusch(model.state_dict(), dt=0.19, alpha=30.65)
    y, hs = rnn(xs)
    ```

    **Arguments:**

    - `state_dict`: `DIs.0.fc.weight`, `DIs.0.fc.bias`, `RNNs.0.weight_hh`, `RNNs.0.c_`, the same
        for further layers, `classifier.weight` and `classifier.bias`. Leave out the
        `embedding.weight` of a network for text: the inputs here are its rows.
    - `dt`, `alpha`: theirs, which the weights do not show. `dt` is one number, or one for each
        layer.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape, or if there
    are more or fewer `dt` than layers; `TypeError` if an argument has another kind.
    """
    depth = 1 + max((int(name[1]) for name in map(_LAYER.fullmatch, state_dict) if name), default=0)
    steps = list(dt) if isinstance(dt, Sequence) else [dt] * depth
    if len(steps) != depth:
        raise UserError(f"{_OWNER}: dt must be one number for each of {depth} layers; got {steps}")
    shapes = {}
    for layer in range(depth):
        shapes |= {
            f"DIs.{layer}.fc.weight": f"units {'units' if layer else 'inputs'}",
            f"DIs.{layer}.fc.bias": "units",
            f"RNNs.{layer}.weight_hh": "units",
            f"RNNs.{layer}.c_": "units",
        }
    shapes |= {"classifier.weight": "classes units", "classifier.bias": "classes"}
    sizes: dict[str, int] = {}
    arrays = read_arrays(_OWNER, state_dict, shapes, sizes)
    cells = [_read_cell(arrays, layer, step, alpha) for layer, step in enumerate(steps)]
    units, classes = sizes["units"], sizes["classes"]
    readout = make_with(
        lambda key: Linear(units, classes, key=key),
        weight=arrays["classifier.weight"],
        bias=arrays["classifier.bias"],
    )
    network = eqx.filter_eval_shape(lambda key: DeepRNN(cells, classes, key=key), jax.random.key(0))
    encoder = DeepRNNEncoder([RNNEncoder(cell) for cell in cells])
    return with_parts(network, {"encoder": encoder, "readout": readout})


def _read_cell(arrays: Arrays, layer: int, dt: float, alpha: float) -> UnICORNNCell:
    weight = arrays[f"DIs.{layer}.fc.weight"]
    units, inputs = weight.shape
    return make_with(
        lambda key: UnICORNNCell(inputs, units, dt=dt, alpha=alpha, key=key),
        recurrent=arrays[f"RNNs.{layer}.weight_hh"],
        control=arrays[f"RNNs.{layer}.c_"],
        input=weight,
        bias=arrays[f"DIs.{layer}.fc.bias"],
        dt=dt,
        alpha=alpha,
    )
