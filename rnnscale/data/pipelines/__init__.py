"""From records to batches, in functions that can be put together."""

from ._pad import PaddedSource as PaddedSource
from ._stream import (
    Batches as Batches,
    batches as batches,
    evaluation_batches as evaluation_batches,
)
