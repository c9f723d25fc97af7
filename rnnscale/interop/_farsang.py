"""Importer for the LrcSSM code of its authors, MoniFarsang/LrcSSM."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from rnnscale._checks import Positive, check_arguments
from rnnscale.cells import LrcSSMCell
from rnnscale.interop._arrays import make_with, read_arrays

# Their names, shapes and our names. The maps of the input are one array here.
_VECTORS = {
    "weight_sensory_sigma": ("inputs", "input_slope"),
    "weight_sensory_mu": ("inputs", "input_midpoint"),
    "weight_sigma": ("units", "slope"),
    "weight_mu": ("units", "midpoint"),
    "weight_w": ("units", "conductance"),
    "weight_h": ("units", "potential"),
    "weight_gleak": ("units", "leak"),
    "weight_vleak": ("units", "reversal"),
    "weight_elastance_kernel": ("units", "elastance"),
    "weight_elastance_bias": ("units", "elastance_bias"),
    "weight_elastance_shift": ("units", "elastance_shift"),
}
_MAPS = ("weight_sensory_w", "weight_sensory_h")


@check_arguments
def lrcssm_cell_from_farsang(
    params: Mapping[str, Any],
    *,
    form: Literal["asymmetric", "symmetric"] = "asymmetric",
    dt: Positive = 1.0,
) -> LrcSSMCell:
    """A cell `LRCU` with real states.

    It computes the same as theirs, up to rounding. In their models the cells are
    `model.grus[layer][0].gru`:

    ```
    params = {name: x for name, x in vars(cell).items() if name.startswith("weight")}
    cell = lrcssm_cell_from_farsang(params)
    ```

    **Arguments:**

    - `params`: the arrays of the cell by the names of its fields, `weight_mu`, `weight_sigma` and
        so on.
    - `form`: `"symmetric"` for their `use_symmetric`. The asymmetric form, the default, does not
        use their `weight_elastance_shift`.
    - `dt`: theirs, 1 by default.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape; `TypeError` if
    an argument has another kind.
    """
    shapes = {name: "units inputs" for name in _MAPS}
    shapes |= {name: axes for name, (axes, _) in _VECTORS.items()}
    sizes: dict[str, int] = {}
    arrays = read_arrays("LRCU", params, shapes, sizes)
    vectors = {ours: arrays[name] for name, (_, ours) in _VECTORS.items()}
    if form == "asymmetric":
        del vectors["elastance_shift"]
    return make_with(
        lambda key: LrcSSMCell(sizes["inputs"], sizes["units"], form=form, dt=dt, key=key),
        input=np.stack([arrays[name] for name in _MAPS]),
        dt=dt,
        **vectors,
    )
