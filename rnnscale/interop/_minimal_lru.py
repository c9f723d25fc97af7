"""The LRU code of NicolasZucchet/minimal-LRU."""

from rnnscale.interop._arrays import check_mapping, filled, read_arrays
from rnnscale.interop._flax import Params, Pool, find_layers, read_classifier
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


def lru_from_minimal(params: Params) -> LRU:
    r"""A layer `LRU`: what `seq` is in their models.

    It computes what theirs does, up to rounding and to what `LRU` says of $|\lambda|$.

    **Arguments:**

    - `params`: `nu_log`, `theta_log`, `gamma_log`, `B_re`, `B_im`, `C_re`, `C_im`, `D`.

    **Raises:** `ValueError` for weights that are missing, unknown or of other shapes.
    """
    return _read_layer("LRU", params)


def lru_layers_from_minimal(params: Params) -> dict[str, LRU]:
    """All layers `LRU` of a model, by their path, such as `"encoder.layers_0.seq"`.

    **Raises:** `ValueError` where there is none, and as `lru_from_minimal`.
    """
    return {path: _read_layer(path, tree) for path, tree in find_layers(params, "nu_log").items()}


def lru_classifier_from_minimal(variables: Params, *, pool: Pool = "mean") -> SequenceClassifier:
    """A whole `ClassificationModel`, with batch or layer norms, as it is after training.

    It gives the logits; theirs gives their `log_softmax`, for `multidim` above one in another
    shape.

    **Arguments:**

    - `variables`: `params`, and `batch_stats` for batch norms, which become `FrozenBatchNorm`s.
    - `pool`: their `pooling`, `"mean"`, `"last"` or `"none"`.

    Models with norms behind the layers, `prenorm=False`, have the same weights, but there is no
    block here that computes them: the numbers would be others. Take their layers, with
    `lru_layers_from_minimal`.

    **Raises:** `ValueError` for weights that are missing, unknown or of other shapes.
    """
    return read_classifier(
        variables,
        norm="normalization",
        mixer=GLU,
        maps={"out1": "value", "out2": "gate"},
        read_layer=_read_layer,
        pool=pool,
    )


def _read_layer(owner: str, params: Params) -> LRU:
    sizes: dict[str, int] = {}
    arrays = read_arrays(owner, check_mapping(owner, params), _SHAPES, sizes)
    return filled(
        lambda key: LRU(sizes["features"], sizes["states"], key=key),
        **{name.lower(): array for name, array in arrays.items()},
    )
