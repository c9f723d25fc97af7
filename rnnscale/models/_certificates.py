"""`certificates`: how well Newton's method converged in the layers of a model."""

from typing import Any

from jaxtyping import Array, Bool, Int

from rnnscale.cells import Cell, Certificate, LinearCell, certified_time_loop
from rnnscale.layers import BidirectionalRNNEncoder, RNNEncoder
from rnnscale.models._recurrent_layers import layers_with_inputs


def certificates(
    model: Any,
    xs: Array,
    *,
    reset: Bool[Array, "*batch time"] | None = None,
    lengths: Int[Array, "*batch"] | None = None,
) -> dict[str, Certificate]:
    """The certificates of the layers that run in parallel by Newton's method.

    Calls of a model return no certificates. This calls the model from a zero state and without
    dropout, and computes each such layer once more with its certificate, on all steps at once even
    if the layer has a `chunk`. It can be jitted.

    ```python
    rnn = RNN(GatedRecurrentUnitCell(1, 8, key=key), odim=1, parallel="auto", key=key)
    certificate = certificates(rnn, xs)["layer 0"]
    print(certificate.iterations)
    ```

    **Arguments:**

    - `model`: a model that `recurrent_layers` knows.
    - `xs`: the inputs of the model.
    - `reset`, `lengths`: as in a call of the model.

    **Returns:** a certificate for each encoder of a nonlinear cell that has `parallel` (but none
    for an `SLSTM`), by the name that `recurrent_layers` gives it: `"layer 0"` is next to the input.
    A bidirectional encoder has two, such as `"layer 0 forward"` and `"layer 0 backward"`.

    **Raises:** `TypeError` if `model` is of another kind, and what a call of the model raises.
    """
    return {
        f"layer {i}{suffix}": certified_time_loop(
            cell, inputs, reset=reset, lengths=lengths, reverse=reverse, parallel=layer.parallel
        )[-1]
        for i, (layer, inputs) in enumerate(
            layers_with_inputs(model, xs, reset=reset, lengths=lengths)
        )
        if isinstance(layer, RNNEncoder | BidirectionalRNNEncoder) and layer.parallel is not None
        for suffix, cell, reverse in _directions(layer)
        if not isinstance(cell, LinearCell)
    }


def _directions(layer: RNNEncoder | BidirectionalRNNEncoder) -> list[tuple[str, Cell, bool]]:
    """The suffix of the name and the cell of each direction, and whether it runs backwards."""
    if isinstance(layer, RNNEncoder):
        return [("", layer.cell, False)]
    return [(" forward", layer.forward, False), (" backward", layer.backward, True)]
