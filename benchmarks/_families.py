"""Which models belong together in tables and pictures."""

from collections.abc import Mapping
from types import MappingProxyType

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gated": (
            *("lstm", "gru", "gru-cho", "mgu", "slstm"),
            *("mingru", "minlstm", "paragru", "paralstm"),
        ),
        "orthogonal or stable": (
            *("urnn", "exprnn", "nnrnn", "antisymmetric", "antisymmetric-gated"),
            *("lipschitz", "lipschitz-gated"),
        ),
        "oscillators": (
            *("cornn", "cornn-heterogeneous", "unicornn", "ron", "linoss", "d-linoss"),
        ),
        "linear recurrences": (
            *("s5", "s5-bidirectional", "s4d", "lru", "mamba", "mamba2", "rglru", "griffin"),
        ),
        "matrix states": (
            *("linear-attention", "gla", "deltanet", "gated-deltanet", "deltaproduct"),
            *("rwkv7", "mlstm", "mlstm-up-projected"),
        ),
        "other": (
            *("elman", "leaky-elman", "wilson-cowan", "indrnn", "clockwork", "lrcssm", "attention"),
        ),
    }
)
"""The names of `rnnscale train --model`, by how a model keeps what it has read."""

_FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}


def family(model: str) -> str:
    """The family of a model; `"other"` for what is not a single layer, such as a hybrid."""
    return _FAMILY_OF.get(model, "other")
