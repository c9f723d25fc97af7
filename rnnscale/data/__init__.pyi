from .pipelines._bucket import bucket as bucket
from .pipelines._lanes import lanes as lanes, lanes_once as lanes_once
from .pipelines._next_token import next_token as next_token
from .pipelines._order import augment as augment, repeat as repeat, shuffle as shuffle
from .pipelines._pack import pack as pack, write_packed as write_packed
from .pipelines._pad import pad as pad
from .pipelines._prefetch import Batches as Batches
from .pipelines._stream import (
    batches as batches,
    evaluation_batches as evaluation_batches,
    stream as stream,
)
from .pipelines._window import window as window
from .sources._array_files import (
    ArrayFiles as ArrayFiles,
    SequenceFiles as SequenceFiles,
)
from .sources._array_record import ArrayRecordFiles as ArrayRecordFiles
from .sources._arrays import (
    ArraySource as ArraySource,
    SequenceArrays as SequenceArrays,
)
from .sources._csv import CsvSeries as CsvSeries
from .sources._documents import (
    ByteFiles as ByteFiles,
    TextFiles as TextFiles,
    files_under as files_under,
)
from .sources._packed import (
    PackedSource as PackedSource,
    ShardInfo as ShardInfo,
    write_rows as write_rows,
)
from .sources._padded import PaddedSource as PaddedSource
from .sources._parquet import (
    ParquetRows as ParquetRows,
    ParquetSequences as ParquetSequences,
    open_parquet as open_parquet,
)
from .sources._source import (
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
from .sources._stored import (
    StoredArray as StoredArray,
    open_npy as open_npy,
    open_npz as open_npz,
)
from .sources._times import parse_time as parse_time
from .sources._tokens import TokenShards as TokenShards
from .sources._ts import parse_ts as parse_ts, read_ts as read_ts
from .sources._unchanged import UnchangedFile as UnchangedFile
