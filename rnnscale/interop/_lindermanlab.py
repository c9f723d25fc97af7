"""Importers for the S5 code of its authors, lindermanlab/S5."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from rnnscale._checks import check_arguments
from rnnscale._errors import UserError
from rnnscale.interop._arrays import check_mapping, make_with, read_arrays
from rnnscale.interop._flax import Norm, Params, Pool, find_layers, read_classifier
from rnnscale.layers import Linear
from rnnscale.models import GLU, HalfGLU, Nonlinearity, SequenceClassifier
from rnnscale.ssm import S5, BidirectionalS5

type Activation = Literal["full_glu", "half_glu1", "half_glu2", "gelu"]


class HalfGLU2(eqx.Module):
    r"""$y = x \odot \sigma(W \mathrm{gelu}(x) + b)$: the activation `half_glu2` of the S5 code."""

    gate: Linear

    def __init__(self, dim: int, *, key: PRNGKeyArray):
        self.gate = Linear(dim, dim, key=key)

    def __call__(self, x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
        return x * jax.nn.sigmoid(self.gate(jax.nn.gelu(x)))


# For each of their activations our mixer, and the names of its linear maps there and here.
_MIXERS: Mapping[str, tuple[Any, Mapping[str, str]]] = {
    "full_glu": (GLU, {"out1": "value", "out2": "gate"}),
    "half_glu1": (HalfGLU, {"out2": "gate"}),
    "half_glu2": (HalfGLU2, {"out2": "gate"}),
    "gelu": (Nonlinearity, {}),
}


class S5Options(TypedDict, total=False):
    """Options with which a layer was trained and which its parameters do not show; see
    `s5_from_lindermanlab`."""

    conj_sym: bool
    clip_eigenvalues: bool
    discretisation: Literal["zoh", "bilinear"]
    step_rescale: float


@check_arguments
def s5_from_lindermanlab(params: Params, **options: Unpack[S5Options]) -> S5 | BidirectionalS5:
    r"""A layer `S5SSM`, which their models call `seq`.

    It computes the same as theirs, up to rounding and to what `S5` says about $|\bar\Lambda|$.
    Options are those with which it was trained, which its parameters do not show.

    **Arguments:**

    - `params`: `Lambda_re`, `Lambda_im`, `B`, `D`, `log_step`, and `C`, or `C1` and `C2`.
    - `conj_sym`: whether each state stands for a conjugate pair, `True` by default. Without, the
        layer here has the same number of states, of a real system of twice the order: its
        `state_dim` is twice their number.
    - `clip_eigenvalues`: their `clip_eigs`, `False` by default.
    - `discretisation`: their `discretization`, `"zoh"` (the default) or `"bilinear"`.
    - `step_rescale`: their `step_rescale`, 1 by default.

    **Returns:** an `S5`; a `BidirectionalS5` if there are two matrices C, or one with twice as many
    columns as there are states.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape.
    """
    return _read_layer("S5SSM", params, **options)


@check_arguments
def s5_layers_from_lindermanlab(
    params: Params, **options: Unpack[S5Options]
) -> dict[str, S5 | BidirectionalS5]:
    """All layers `S5SSM` of a model, whatever is around them.

    **Arguments:**

    - `params`: of the model.
    - `options`: as for `s5_from_lindermanlab`.

    **Returns:** the layers by their path, such as `"encoder.layers_0.seq"`.

    **Raises:** `ValueError` if there is none, or as for `s5_from_lindermanlab`.
    """
    found = find_layers(params, "Lambda_re")
    return {path: _read_layer(path, tree, **options) for path, tree in found.items()}


@check_arguments
def s5_classifier_from_lindermanlab(
    variables: Params,
    *,
    norm: Norm = "batch",
    activation: Activation = "half_glu1",
    pool: Pool = "mean",
    **options: Unpack[S5Options],
) -> SequenceClassifier:
    """A full `ClassificationModel`, with batch or layer norms, as it is after training.

    It returns logits; theirs returns their `log_softmax`. Their `padded` lengths are `lengths`
    here; with those, only a bidirectional layer differs, because theirs runs through the padding.
    Models with norms after the layers, `prenorm=False`, have the same weights but compute something
    else, and no block here does that: import their layers by `s5_layers_from_lindermanlab`.

    **Arguments:**

    - `variables`: `params`, and `batch_stats` for batch norms, which become `FrozenBatchNorm`s.
    - `norm`: `"batch"` or `"layer"`, the model's norms: their parameters look the same.
    - `activation`: theirs, `"half_glu1"`, `"half_glu2"`, `"full_glu"` or `"gelu"`.
    - `pool`: `"mean"` for their mode `pool`, or `"last"`.
    - `options`: as for `s5_from_lindermanlab`.

    **Raises:** `ValueError` if `activation` is unknown, or a weight is missing, is unknown or has
    another shape.
    """
    if activation not in _MIXERS:
        raise UserError(f"activation must be one of {', '.join(_MIXERS)}; got {activation!r}")
    mixer, maps = _MIXERS[activation]
    return read_classifier(
        variables,
        norm=norm,
        norm_name="norm",
        mixer=mixer,
        maps=maps,
        read_layer=lambda path, params: _read_layer(path, params, **options),
        pool=pool,
    )


def _read_layer(
    owner: str,
    params: Params,
    *,
    conj_sym: bool = True,
    clip_eigenvalues: bool = False,
    discretisation: Literal["zoh", "bilinear"] = "zoh",
    step_rescale: float = 1.0,
) -> S5 | BidirectionalS5:
    params = check_mapping(owner, params)
    shapes = {
        "Lambda_re": "states",
        "Lambda_im": "states",
        "log_step": "states 1",
        "B": "states features 2",
        "D": "features",
    }
    if "C1" in params or "C2" in params:
        outputs = {"C1": "features states 2", "C2": "features states 2"}
    else:
        outputs = {"C": "features columns 2"}
    sizes: dict[str, int] = {}
    arrays = read_arrays(owner, params, shapes | outputs, sizes)
    states, features = sizes["states"], sizes["features"]
    if "C" not in arrays:
        maps = [arrays["C1"], arrays["C2"]]
    elif arrays["C"].shape[1] in (states, 2 * states):
        maps = [arrays["C"][:, i : i + states] for i in range(0, arrays["C"].shape[1], states)]
    else:
        raise UserError(
            f"{owner}: C must have the shape (features, states, 2) or, for both directions, "
            f"(features, 2*states, 2) with features={features}, states={states}; got "
            f"{arrays['C'].shape}"
        )
    if not conj_sym:
        # Our layers return twice the real part.
        maps = [each / 2 for each in maps]
    options = {
        "discretisation": discretisation,
        "clip_eigenvalues": clip_eigenvalues,
        "step_rescale": step_rescale,
    }
    forward = make_with(
        lambda key: S5(features, 2 * states, key=key, **options),
        lambda_re=arrays["Lambda_re"],
        lambda_im=arrays["Lambda_im"],
        log_step=arrays["log_step"][:, 0],
        b_re=arrays["B"][..., 0],
        b_im=arrays["B"][..., 1],
        c_re=maps[0][..., 0],
        c_im=maps[0][..., 1],
        d=arrays["D"],
        step_rescale=step_rescale,
    )
    if len(maps) == 1:
        return forward
    layer = make_with(
        lambda key: BidirectionalS5(features, 2 * states, key=key, **options),
        c_backward_re=maps[1][..., 0],
        c_backward_im=maps[1][..., 1],
    )
    return eqx.tree_at(lambda layer: layer.forward, layer, forward)
