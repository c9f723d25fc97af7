"""`rnnscale data`: pack sequences into files of rows, and check such files."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rnnscale._errors import UserError, as_user_error
from rnnscale.cli._options import add_own_data_options, own_data

if TYPE_CHECKING:
    from rnnscale.data import AbstractSequences

# The kinds of sources, each with the suffixes that leave no doubt about it.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "text": (".txt", ".md", ".py"),
    "bytes": (),
    "tokens": (".bin",),
    "npy": (".npz",),
    "parquet": (".parquet",),
    "csv": (".csv",),
    "ts": (".ts",),
}


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "data",
        help="describe your own data, pack sequences into files of rows, and check such files",
        description="Describes your own data, packs sequences into files of rows, and checks such "
        "files.",
        examples=(
            "rnnscale data describe series.csv --label class",
            "rnnscale data pack texts packed --steps 1024",
            "rnnscale data check packed",
        ),
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_describe(actions)
    _add_pack(actions)
    _add_check(actions)


def _add_describe(actions: argparse._SubParsersAction) -> None:
    describe = actions.add_parser(
        "describe",
        help="print what is understood of your own data, before anything is trained",
        description="Prints what is understood of a file or a folder: the kind of problem, shapes, "
        "lengths, labels, missing values and the split, as `rnnscale train --data` uses them.",
        examples=(
            "rnnscale data describe Coffee_TRAIN.ts",
            "rnnscale data describe load.csv --time hour --label load --horizon 24",
        ),
    )
    describe.set_defaults(command=_describe)
    describe.add_argument("path", metavar="PATH", help="a file or a folder")
    describe.add_argument(
        "--seq-len",
        type=int,
        metavar="L",
        help="time steps in a window of a forecast or text; default: by the data",
    )
    add_own_data_options(describe, path_flag=None)


def _add_pack(actions: argparse._SubParsersAction) -> None:
    pack = actions.add_parser(
        "pack",
        help="pack sequences into rows of one length",
        description="Packs sequences into rows of one length, and writes them to ArrayRecord "
        "shards, with an index and a checksum for each shard. rnnscale.data.PackedSource reads "
        "them.",
        examples=(
            "rnnscale data pack texts packed --steps 1024",
            "rnnscale data pack tokens packed --steps 4096 --kind tokens --dtype uint16 --end 0",
        ),
    )
    pack.set_defaults(command=_pack)
    pack.add_argument("source", metavar="SRC", help="a file, or a folder with files of one kind")
    pack.add_argument("folder", metavar="DST", help="a new folder")
    pack.add_argument("--steps", type=int, required=True, metavar="N", help="steps in a row")
    pack.add_argument(
        "--kind",
        choices=list(_KINDS),
        help="the kind of SRC: a folder of text files or of any files, shards of tokens (.npy or "
        ".bin), arrays in a .npz file or a folder of .npy files, Parquet files with lists, a "
        "folder of CSV files with one step per line, or a .ts file; default: the suffixes "
        "decide",
    )
    pack.add_argument(
        "--end",
        type=int,
        metavar="TOKEN",
        help="a token to append to each document, which in shards of tokens already ends it; "
        "default: 0 for text, otherwise none",
    )
    pack.add_argument(
        "--dtype", help="dtype of the tokens in .bin files, such as uint16; default: none"
    )
    pack.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of CSV files with labels; default: none",
    )
    pack.add_argument("--rows-per-shard", type=int, metavar="N", help="default: 256 MiB of rows")
    pack.add_argument(
        "--skip",
        action="store_true",
        help="leave out files and records that can't be used, instead of ending with an error",
    )


def _add_check(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check",
        help="compare packed files with their checksums",
        description="Reads all files that `rnnscale data pack` wrote, and compares them with "
        "their checksums.",
        examples=("rnnscale data check packed", "rnnscale data check /data/packed"),
    )
    check.set_defaults(command=_check)
    check.add_argument("folder", metavar="DST", help="folder with the index and the shards")


def _describe(arguments: argparse.Namespace) -> int:
    from rnnscale.tasks import describe

    options = own_data(arguments).get("data", {})
    for line in describe(arguments.path, seq_len=arguments.seq_len, **options):
        print(line)
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    source = Path(arguments.source)
    if not source.exists():
        raise UserError(f"there is no file or folder {source}")
    from rnnscale.data import next_token, write_packed

    kind = arguments.kind or _kind(source)
    _check_options(kind, arguments)
    opened = _open(kind, source, arguments)
    sequences = opened
    if arguments.end is not None and "tokens" not in opened.element_spec:
        raise UserError(f"--end is a token, and {source} has no tokens")
    if "tokens" in opened.element_spec:
        end = 0 if arguments.end is None and kind == "text" else arguments.end
        sequences = next_token(opened, end=end)
    with _progress("packing") as progress:
        packed = write_packed(
            sequences,
            arguments.folder,
            arguments.steps,
            rows_per_shard=arguments.rows_per_shard,
            notes={"source": str(source), "kind": kind, "skipped": opened.skipped},
            progress=progress,
        )
    size = sum(shard.bytes for shard in packed.shards)
    print(
        f"{len(sequences):,} sequences, {sequences.lengths.sum():,} steps in {len(packed):,} rows "
        f"of {arguments.steps:,}, {packed.notes['fill']:.1%} filled, {len(packed.shards)} shards, "
        f"{size:,} bytes, {len(opened.skipped)} left out"
    )
    return 0


def _check(arguments: argparse.Namespace) -> int:
    if not Path(arguments.folder).is_dir():
        raise UserError(f"there is no folder {arguments.folder}")
    from rnnscale.data import PackedSource

    packed = PackedSource(arguments.folder)
    with _progress("reading") as progress:
        packed.verify(progress)
    size = sum(shard.bytes for shard in packed.shards)
    print(
        f"{arguments.folder} is unchanged: {len(packed):,} rows in {len(packed.shards)} shards, "
        f"{size:,} bytes"
    )
    return 0


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, as a function of the amount done and the total."""
    from rich.progress import Progress

    from rnnscale.cli._console import Console

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _kind(source: Path) -> str:
    """The kind of a source, from the suffixes of its files."""
    from rnnscale.data import files_under

    files = files_under(source) if source.is_dir() else [source]
    kind_of = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes}
    kinds = {kind_of.get(file.suffix) for file in files}
    if len(kinds) != 1 or None in kinds:
        suffixes = ", ".join(sorted({file.suffix or "none" for file in files})) or "no files"
        raise UserError(
            f"the suffixes in {source} ({suffixes}) don't say what it is; give --kind, one of "
            f"{', '.join(_KINDS)}"
        )
    (kind,) = kinds
    return str(kind)


def _check_options(kind: str, arguments: argparse.Namespace) -> None:
    if arguments.labels and kind != "csv":
        raise UserError(f"--labels are columns of CSV files, and the source is of kind {kind}")
    if arguments.dtype is not None and kind != "tokens":
        raise UserError(f"--dtype is that of shards of tokens, and the source is of kind {kind}")
    if arguments.end is not None and kind in ("text", "bytes") and not 0 <= arguments.end < 256:
        raise UserError(f"--end must be a byte, 0 to 255, got {arguments.end}")


def _open(kind: str, source: Path, arguments: argparse.Namespace) -> "AbstractSequences":
    from rnnscale import data

    skip = arguments.skip
    match kind:
        case "text":
            return data.TextFiles(source, skip=skip)
        case "bytes":
            return data.ByteFiles(source, skip=skip)
        case "tokens":
            shards = _files(source, ".npy", ".bin")
            if arguments.dtype is not None and all(each.suffix == ".npy" for each in shards):
                raise UserError("--dtype is that of .bin files, and .npy files have their own")
            with as_user_error():
                return data.TokenShards(shards, dtype=arguments.dtype, end=arguments.end, skip=skip)
        case "npy":
            return _open_arrays(source, skip)
        case "parquet":
            return data.ParquetSequences(_files(source, ".parquet"), skip=skip)
        case "csv":
            return data.CsvSeries(source, labels=arguments.labels, skip=skip)
        case _:
            return data.read_ts(source, skip=skip)


def _open_arrays(source: Path, skip: bool) -> "AbstractSequences":
    from rnnscale.data import SequenceFiles, open_npy, open_npz

    if source.suffix == ".npz":
        arrays = open_npz(source)
    else:
        arrays = {path.stem: open_npy(path) for path in _files(source, ".npy")}
    offsets = arrays.pop("offsets", None)
    if "inputs" not in arrays:
        raise UserError(
            f"{source} must have an array 'inputs' of shape (sequences, time, ...), or of shape "
            f"(steps, ...) with an array 'offsets'; it has {', '.join(arrays) or 'none'}"
        )
    leading = slice(2) if offsets is None else slice(1)
    over_time = {
        name: array
        for name, array in arrays.items()
        if array.shape[leading] == arrays["inputs"].shape[leading]
    }
    per_sequence = {name: array for name, array in arrays.items() if name not in over_time}
    return SequenceFiles(over_time, offsets, per_sequence, skip=skip)


def _files(source: Path, *suffixes: str) -> list[Path]:
    from rnnscale.data import files_under

    if source.is_file():
        return [source]
    files = [file for file in files_under(source) if file.suffix in suffixes]
    if not files:
        raise UserError(f"{source} has no file that ends in {' or '.join(suffixes)}")
    return files
