"""The implementations of linear attention, in one table."""

from functools import partial

from .._dispatch import Dispatch, Implementation
from . import _chunked, _sequential
from ._chunks import ChunkPasses, forward, transpose
from ._spec import AttentionSpec


def _by_chunks(name: str, passes: ChunkPasses) -> Implementation:
    return Implementation(name, partial(forward, passes), partial(transpose, passes))


DISPATCH = Dispatch(
    "linear_attention",
    AttentionSpec.of,
    (_by_chunks("chunked", _chunked.PASSES), _by_chunks("sequential", _sequential.PASSES)),
    order=dict.fromkeys(("cpu", "cuda", "rocm", "tpu"), ("chunked",)),
)
