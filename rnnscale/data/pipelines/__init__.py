"""From records to batches, in functions that can be put together."""

from ._bucket import bucket as bucket
from ._lanes import lanes as lanes, lanes_once as lanes_once
from ._next_token import next_token as next_token
from ._order import augment as augment, repeat as repeat, shuffle as shuffle
from ._pack import pack as pack
from ._packed import write_packed as write_packed
from ._pad import PaddedSource as PaddedSource, pad as pad
from ._stream import (
    Batches as Batches,
    batches as batches,
    evaluation_batches as evaluation_batches,
    stream as stream,
)
from ._window import window as window
