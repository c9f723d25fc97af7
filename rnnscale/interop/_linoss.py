"""Importers for the LinOSS and D-LinOSS code of their authors."""

from collections.abc import Mapping
from typing import Any, Literal

from rnnscale._checks import check_arguments
from rnnscale.interop._arrays import Arrays, make_with, read_arrays
from rnnscale.ssm import DampedLinOSS, LinOSS

_SHAPES = {"A_diag": "states", "B": "states features 2", "C": "features states 2", "D": "features"}


@check_arguments
def linoss_from_rusch(
    params: Mapping[str, Any], *, discretisation: Literal["im", "imex"] = "im"
) -> LinOSS:
    r"""A `LinOSSLayer` of tk-rusch/linoss, which its blocks call `ssm`.

    It computes the same as theirs, up to rounding and to what `LinOSS` says about $A$ and $\Delta$.

    ```
    arrays = {name: x for name, x in vars(block.ssm).items() if equinox.is_array(x)}
    layer = linoss_from_rusch(arrays, discretisation=block.ssm.discretization.lower())
    ```

    **Arguments:**

    - `params`: `A_diag`, `B`, `C`, `D`, `steps`.
    - `discretisation`: `"im"` or `"imex"`, their `discretization`.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape.
    """
    sizes: dict[str, int] = {}
    arrays = read_arrays("LinOSSLayer", params, _SHAPES | {"steps": "states"}, sizes)
    return make_with(
        lambda key: LinOSS(
            sizes["features"], sizes["states"], discretisation=discretisation, key=key
        ),
        step_logit=arrays["steps"],
        **_shared(arrays),
    )


@check_arguments
def damped_linoss_from_boyer(params: Mapping[str, Any]) -> DampedLinOSS:
    r"""A `DampedIMEX1Layer` of jaredbmit/damped-linoss, which its blocks call `layer`.

    It computes the same as theirs, up to rounding and to what `DampedLinOSS` says about the bounds
    of $A$, $G$ and $\Delta$.

    **Arguments:**

    - `params`: `A_diag`, `G_diag`, `B`, `C`, `D`, `dt`.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape.
    """
    sizes: dict[str, int] = {}
    shapes = _SHAPES | {"G_diag": "states", "dt": "states"}
    arrays = read_arrays("DampedIMEX1Layer", params, shapes, sizes)
    return make_with(
        lambda key: DampedLinOSS(sizes["features"], sizes["states"], key=key),
        g=arrays["G_diag"],
        step_logit=arrays["dt"],
        **_shared(arrays),
    )


def _shared(arrays: Arrays) -> Arrays:
    """The fields that both layers have, from what their codes call alike."""
    b, c = arrays["B"], arrays["C"]
    return {
        "a": arrays["A_diag"],
        "b_re": b[..., 0],
        "b_im": b[..., 1],
        "c_re": c[..., 0],
        "c_im": c[..., 1],
        "d": arrays["D"],
    }
