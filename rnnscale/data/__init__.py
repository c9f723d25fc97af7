"""Sources of records, and pipelines from records to streams of batches."""

from rnnscale.data.pipelines._bucket import bucket as bucket
from rnnscale.data.pipelines._lanes import lanes as lanes, lanes_once as lanes_once
from rnnscale.data.pipelines._next_token import next_token as next_token
from rnnscale.data.pipelines._order import augment as augment, repeat as repeat, shuffle as shuffle
from rnnscale.data.pipelines._pack import pack as pack, write_packed as write_packed
from rnnscale.data.pipelines._pad import PaddedSource as PaddedSource, pad as pad
from rnnscale.data.pipelines._prefetch import Batches as Batches
from rnnscale.data.pipelines._stream import (
    batches as batches,
    evaluation_batches as evaluation_batches,
    stream as stream,
)
from rnnscale.data.pipelines._window import window as window
from rnnscale.data.sources._array_files import (
    ArrayFiles as ArrayFiles,
    SequenceFiles as SequenceFiles,
)
from rnnscale.data.sources._array_record import ArrayRecordFiles as ArrayRecordFiles
from rnnscale.data.sources._arrays import (
    ArraySource as ArraySource,
    SequenceArrays as SequenceArrays,
)
from rnnscale.data.sources._csv import CsvSeries as CsvSeries
from rnnscale.data.sources._documents import (
    ByteFiles as ByteFiles,
    TextFiles as TextFiles,
    files_under as files_under,
)
from rnnscale.data.sources._packed import (
    PackedSource as PackedSource,
    ShardInfo as ShardInfo,
    write_rows as write_rows,
)
from rnnscale.data.sources._parquet import (
    ParquetRows as ParquetRows,
    ParquetSequences as ParquetSequences,
)
from rnnscale.data.sources._source import (
    AbstractSequences as AbstractSequences,
    ArraySpec as ArraySpec,
    ElementSpec as ElementSpec,
    Record as Record,
    SequenceSource as SequenceSource,
    Skipped as Skipped,
    Source as Source,
    SpecifiedSource as SpecifiedSource,
    arrays_over_time as arrays_over_time,
    element_spec as element_spec,
    record_spec as record_spec,
)
from rnnscale.data.sources._stored import (
    StoredArray as StoredArray,
    open_npy as open_npy,
    open_npz as open_npz,
)
from rnnscale.data.sources._tokens import TokenShards as TokenShards
from rnnscale.data.sources._ts import read_ts as read_ts
from rnnscale.data.sources._unchanged import UnchangedFile as UnchangedFile
