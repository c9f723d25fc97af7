"""Records by their index: in memory and in files."""

from ._arrays import ArraySource as ArraySource, SequenceArrays as SequenceArrays
from ._source import (
    ArraySpec as ArraySpec,
    ElementSpec as ElementSpec,
    Record as Record,
    SequenceSource as SequenceSource,
    Source as Source,
    element_spec as element_spec,
    over_time as over_time,
    spec_of as spec_of,
)
