"""Importers for the LRU code of NicolasZucchet/minimal-LRU."""

from rnnscale._checks import check_arguments
from rnnscale.interop._arrays import make_with, read_arrays
from rnnscale.interop._flax import Norm, Params, Pool, find_layers, read_classifier
from rnnscale.models import GLU, SequenceClassifier
from rnnscale.ssm import LRU

_SHAPES = {
    "nu_log": "states",
    "theta_log": "states",
    "gamma_log": "states",
    "B_re": "states features",
    "B_im": "states features",
    "C_re": "features states",
    "C_im": "features states",
    "D": "features",
}


@check_arguments
def lru_from_minimal(params: Params) -> LRU:
    r"""A layer `LRU`, which their models call `seq`.

    It computes the same as theirs, up to rounding and to what `LRU` says about $|\lambda|$.

    **Arguments:**

    - `params`: `nu_log`, `theta_log`, `gamma_log`, `B_re`, `B_im`, `C_re`, `C_im`, `D`.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape.
    """
    return _read_layer("LRU", params)


@check_arguments
def lru_layers_from_minimal(params: Params) -> dict[str, LRU]:
    """All layers `LRU` of a model, by their path, such as `"encoder.layers_0.seq"`.

    **Raises:** `ValueError` if there is none, or as for `lru_from_minimal`.
    """
    return {path: _read_layer(path, tree) for path, tree in find_layers(params, "nu_log").items()}


@check_arguments
def lru_classifier_from_minimal(
    variables: Params, *, norm: Norm = "batch", pool: Pool = "mean"
) -> SequenceClassifier:
    """A full `ClassificationModel`, with batch or layer norms, as it is after training.

    It returns logits; theirs returns their `log_softmax`, in another shape if `multidim` is above
    one. Models with norms after the layers, `prenorm=False`, have the same weights but compute
    something else, and no block here does that: import their layers by `lru_layers_from_minimal`.

    **Arguments:**

    - `variables`: `params`, and `batch_stats` for batch norms, which become `FrozenBatchNorm`s.
    - `norm`: `"batch"` or `"layer"`, the model's norms: their parameters look the same.
    - `pool`: their `pooling`, `"mean"`, `"last"` or `"none"`.

    **Raises:** `ValueError` if a weight is missing, is unknown or has another shape.
    """
    return read_classifier(
        variables,
        norm=norm,
        norm_name="normalization",
        mixer=GLU,
        maps={"out1": "value", "out2": "gate"},
        read_layer=_read_layer,
        pool=pool,
    )


def _read_layer(owner: str, params: Params) -> LRU:
    sizes: dict[str, int] = {}
    arrays = read_arrays(owner, params, _SHAPES, sizes)
    return make_with(
        lambda key: LRU(sizes["features"], sizes["states"], key=key),
        **{name.lower(): array for name, array in arrays.items()},
    )
