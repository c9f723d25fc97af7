"""Functions from records to batches, which can be combined."""

from rnnscale.data.pipelines._bucket import bucket as bucket
from rnnscale.data.pipelines._lanes import lanes as lanes, lanes_once as lanes_once
from rnnscale.data.pipelines._next_token import next_token as next_token
from rnnscale.data.pipelines._order import augment as augment, repeat as repeat, shuffle as shuffle
from rnnscale.data.pipelines._pack import pack as pack
from rnnscale.data.pipelines._packed import write_packed as write_packed
from rnnscale.data.pipelines._pad import PaddedSource as PaddedSource, pad as pad
from rnnscale.data.pipelines._prefetch import Batches as Batches
from rnnscale.data.pipelines._stream import (
    batches as batches,
    evaluation_batches as evaluation_batches,
    stream as stream,
)
from rnnscale.data.pipelines._window import window as window
