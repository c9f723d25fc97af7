"""Importers for the recurrent networks and cells of PyTorch."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.cells import Cell, ElmanRNNCell, GatedRecurrentUnitCell, LongShortTermMemoryCell
from rnnscale.interop._arrays import check_mapping, make_with, read_arrays
from rnnscale.layers import BidirectionalRNNEncoder, DeepRNNEncoder, Encoder, RNNEncoder

type _StateDict = Mapping[str, Any]
type _MakeCell = Callable[["_CellWeights"], Cell]

_NAME = re.compile(r"(weight|bias)_(ih|hh)_l(\d+)(_reverse)?")


@check_arguments
def lstm_from_torch(state_dict: _StateDict, *, prefix: str = "") -> Encoder:
    """A `torch.nn.LSTM` of any depth, in one direction or both, with or without biases.

    It computes the same as torch from a zero state, up to rounding. The two biases of torch, which
    are only ever added to each other, become one. Without biases, ours are zero and can be trained.

    ```
    encoder = lstm_from_torch(module.state_dict())
    state, hs = encoder(xs)     # xs: (batch, time, features), as with batch_first=True
    ```

    **Arguments:**

    - `state_dict`: the weights of the module, or of a model that contains it.
    - `prefix`: the beginning of the names of the module's weights, such as `"encoder.lstm."`. Other
        names are ignored.

    **Returns:** an `RNNEncoder` for one layer in one direction, a `BidirectionalRNNEncoder` for one
    in both, a `DeepRNNEncoder` of these for several.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape, or if there is
    a `proj_size`.
    """
    return _network("torch.nn.LSTM", 4, _lstm, state_dict, prefix)


@check_arguments
def gru_from_torch(state_dict: _StateDict, *, prefix: str = "") -> Encoder:
    """A `torch.nn.GRU`. **Arguments**, **Returns**, **Raises:** as for `lstm_from_torch`."""
    return _network("torch.nn.GRU", 3, _gru, state_dict, prefix)


@check_arguments
def elman_from_torch(
    state_dict: _StateDict,
    *,
    nonlinearity: Callable[[Array], Array] = jnp.tanh,
    prefix: str = "",
) -> Encoder:
    """A `torch.nn.RNN`. The weights do not show its nonlinearity: pass `jax.nn.relu` for `"relu"`.

    Other **Arguments**, **Returns**, **Raises:** as for `lstm_from_torch`.
    """
    return _network("torch.nn.RNN", 1, _elman(nonlinearity), state_dict, prefix)


@check_arguments
def lstm_cell_from_torch(state_dict: _StateDict, *, prefix: str = "") -> LongShortTermMemoryCell:
    """A `torch.nn.LSTMCell`. **Arguments**, **Raises:** as for `lstm_from_torch`."""
    return _cell("torch.nn.LSTMCell", 4, _lstm, state_dict, prefix)


@check_arguments
def gru_cell_from_torch(state_dict: _StateDict, *, prefix: str = "") -> GatedRecurrentUnitCell:
    """A `torch.nn.GRUCell`. **Arguments**, **Raises:** as for `lstm_from_torch`."""
    return _cell("torch.nn.GRUCell", 3, _gru, state_dict, prefix)


@check_arguments
def elman_cell_from_torch(
    state_dict: _StateDict,
    *,
    nonlinearity: Callable[[Array], Array] = jnp.tanh,
    prefix: str = "",
) -> ElmanRNNCell:
    """A `torch.nn.RNNCell`. **Arguments**, **Raises:** as for `elman_from_torch`."""
    return _cell("torch.nn.RNNCell", 1, _elman(nonlinearity), state_dict, prefix)


class _CellWeights(NamedTuple):
    """The weights of one cell. Gates are stacked along the first axis; absent biases are zero."""

    hidden: NDArray[np.float32]
    input: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    input_bias: NDArray[np.float32]


def _lstm(weights: _CellWeights) -> LongShortTermMemoryCell:
    hdim, idim = weights.hidden.shape[1], weights.input.shape[1]
    return make_with(
        lambda key: LongShortTermMemoryCell(idim, hdim, key=key),
        recurrent=weights.hidden.reshape(4, hdim, hdim),
        input=weights.input.reshape(4, hdim, idim),
        bias=(weights.input_bias + weights.hidden_bias).reshape(4, hdim),
    )


def _gru(weights: _CellWeights) -> GatedRecurrentUnitCell:
    hdim, idim = weights.hidden.shape[1], weights.input.shape[1]
    hidden = weights.hidden_bias.reshape(3, hdim)
    # In the candidate, the reset gate multiplies the product with the state and its bias, so that
    # bias can't be added to the input's.
    ungated = np.concatenate([hidden[:2], np.zeros((1, hdim), np.float32)])
    return make_with(
        lambda key: GatedRecurrentUnitCell(idim, hdim, key=key),
        recurrent=weights.hidden.reshape(3, hdim, hdim),
        input=weights.input.reshape(3, hdim, idim),
        bias=weights.input_bias.reshape(3, hdim) + ungated,
        candidate_bias=hidden[2],
    )


def _elman(nonlinearity: Callable[[Array], Array]) -> Callable[[_CellWeights], ElmanRNNCell]:
    def make(weights: _CellWeights) -> ElmanRNNCell:
        hdim, idim = weights.hidden.shape[1], weights.input.shape[1]
        return make_with(
            lambda key: ElmanRNNCell(idim, hdim, nonlinearity=nonlinearity, key=key),
            recurrent=weights.hidden,
            input=weights.input,
            bias=weights.input_bias + weights.hidden_bias,
        )

    return make


def _network(
    owner: str, gates: int, make: _MakeCell, state_dict: _StateDict, prefix: str
) -> Encoder:
    tree = _weights_below(owner, state_dict, prefix)
    names = [name for name in map(_NAME.fullmatch, tree) if name]
    depth = 1 + max((int(name[3]) for name in names), default=0)
    directions = ["", "_reverse"] if any(name[4] for name in names) else [""]
    has_bias = any(name[1] == "bias" for name in names)
    shapes = {}
    for layer in range(depth):
        inputs = "inputs" if layer == 0 else f"{len(directions)}*units"
        for direction in directions:
            shapes |= _shapes(gates, inputs, f"_l{layer}{direction}", has_bias)
    arrays = read_arrays(owner, tree, shapes, {})
    encoders: list[Encoder] = []
    for layer in range(depth):
        cells = [make(_cell_weights(arrays, f"_l{layer}{direction}")) for direction in directions]
        one_way = len(cells) == 1
        encoders.append(RNNEncoder(*cells) if one_way else BidirectionalRNNEncoder(*cells))
    return encoders[0] if depth == 1 else DeepRNNEncoder(encoders)


def _cell(
    owner: str, gates: int, make: Callable[[_CellWeights], Any], state_dict: _StateDict, prefix: str
) -> Any:
    tree = _weights_below(owner, state_dict, prefix)
    has_bias = any(name.startswith("bias") for name in tree)
    arrays = read_arrays(owner, tree, _shapes(gates, "inputs", "", has_bias), {})
    return make(_cell_weights(arrays, ""))


def _weights_below(owner: str, state_dict: _StateDict, prefix: str) -> dict[str, Any]:
    """The weights whose names begin with the prefix, by the rest of their names."""
    owner = f"{owner}, below {prefix!r}," if prefix else owner
    names = check_mapping(owner, state_dict)
    tree = {name.removeprefix(prefix): names[name] for name in names if name.startswith(prefix)}
    if projections := [name for name in tree if name.startswith("weight_hr")]:
        raise UserError(
            f"{owner} has {projections[0]}, which comes with proj_size: no cell here projects its "
            "output, so train one without proj_size"
        )
    if not any(name.startswith("weight_hh") for name in tree):
        raise UserError(
            f"{owner} has weights called weight_hh...; got "
            f"{', '.join(names) or 'none'}; say with prefix what comes before"
        )
    return tree


def _shapes(gates: int, inputs: str, suffix: str, has_bias: bool) -> dict[str, str]:
    rows = f"{gates}*units"
    shapes = {f"weight_hh{suffix}": f"{rows} units", f"weight_ih{suffix}": f"{rows} {inputs}"}
    return shapes | ({f"bias_hh{suffix}": rows, f"bias_ih{suffix}": rows} if has_bias else {})


def _cell_weights(arrays: Mapping[str, NDArray[np.float32]], suffix: str) -> _CellWeights:
    hidden, inputs = arrays[f"weight_hh{suffix}"], arrays[f"weight_ih{suffix}"]
    zeros = np.zeros(hidden.shape[0], np.float32)
    biases = (arrays.get(f"bias_{each}{suffix}", zeros) for each in ("hh", "ih"))
    return _CellWeights(hidden, inputs, *biases)
