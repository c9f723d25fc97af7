"""The implementations of linear attention, in one table."""

from functools import partial

from .._dispatch import Dispatch, Implementation
from .._target import Target
from . import _chunked, _sequential
from ._chunks import ChunkPasses, forward, transpose
from ._spec import AttentionSpec

# The largest state, in numbers, for which steps that erase are faster on a CPU than products of
# matrices.
_SMALL = 16 * 16


def _chunked_unsuited(target: Target, spec: AttentionSpec) -> str | None:
    if target.platform == "cpu" and spec.erase and spec.key * spec.value <= _SMALL:
        return f"states of {spec.key} by {spec.value} run faster one step after another"
    return None


def _by_chunks(name: str, passes: ChunkPasses, **options) -> Implementation:
    return Implementation(name, partial(forward, passes), partial(transpose, passes), **options)


DISPATCH = Dispatch(
    "linear_attention",
    AttentionSpec.of,
    (
        _by_chunks("chunked", _chunked.PASSES, unsuited=_chunked_unsuited),
        _by_chunks("sequential", _sequential.PASSES),
    ),
    order=dict.fromkeys(("cpu", "cuda", "rocm", "tpu"), ("chunked", "sequential")),
)
