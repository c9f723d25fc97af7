import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rnnscale._errors import UserError

if TYPE_CHECKING:
    from rnnscale.data import SequenceSource, StoredArray

# What files with a suffix hold, where it is clear.
_KINDS = {
    ".bin": "tokens",
    ".csv": "csv",
    ".md": "text",
    ".npz": "npy",
    ".parquet": "parquet",
    ".py": "text",
    ".ts": "ts",
    ".txt": "text",
}


def add_to(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "data",
        help="pack sequences into files of rows, and check such files",
        description="Packs sequences into files of rows, and checks such files.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_pack(actions)
    _add_check(actions)


def _add_pack(actions: argparse._SubParsersAction) -> None:
    pack = actions.add_parser(
        "pack",
        help="pack sequences into rows of one length",
        description="Packs sequences into rows of one length, and writes them to ArrayRecord "
        "shards, with an index and a checksum for each shard. rnnscale.data.PackedSource reads "
        "them.",
        allow_abbrev=False,
    )
    pack.set_defaults(command=_pack)
    pack.add_argument("source", metavar="SRC", help="a file, or a folder with files of one kind")
    pack.add_argument("folder", metavar="DST", help="a new folder")
    pack.add_argument("--steps", type=int, required=True, metavar="N", help="steps in a row")
    pack.add_argument(
        "--kind",
        choices=list(_OPEN),
        help="what SRC is: a folder of text files or of any files, shards of tokens (.npy or "
        ".bin), arrays in a .npz file or a folder of .npy files, Parquet files with lists, a "
        "folder of CSV files with a step a line, or a .ts file; by default what the suffixes say",
    )
    pack.add_argument(
        "--end",
        type=int,
        metavar="TOKEN",
        help="the token that follows each document, and in shards of tokens ends it; default: 0 "
        "for text, else none",
    )
    pack.add_argument("--dtype", help="of the tokens in .bin files, such as uint16")
    pack.add_argument(
        "--labels", nargs="+", default=[], metavar="COLUMN", help="of CSV files, that are labels"
    )
    pack.add_argument("--rows-per-shard", type=int, metavar="N", help="default: 256 MiB of rows")
    pack.add_argument(
        "--skip", action="store_true", help="leave out what can't be used, which else is an error"
    )


def _add_check(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check",
        help="compare packed files with their checksums",
        description="Reads all that `rnnscale data pack` wrote, and compares it with its "
        "checksums.",
        allow_abbrev=False,
    )
    check.set_defaults(command=_check)
    check.add_argument("folder", metavar="DST", help="folder with the index and the shards")


def _pack(arguments: argparse.Namespace) -> int:
    from rnnscale.data import element_spec, next_token, write_packed

    source = Path(arguments.source)
    if not source.exists():
        raise UserError(f"there is no file or folder {source}")
    kind = arguments.kind or _kind(source)
    sequences = _OPEN[kind](source, arguments)
    skipped = getattr(sequences, "skipped", ())
    if "tokens" in element_spec(sequences):
        end = 0 if arguments.end is None and kind == "text" else arguments.end
        sequences = next_token(sequences, end=end)
    with _progress("packing") as progress:
        packed = write_packed(
            sequences,
            arguments.folder,
            arguments.steps,
            rows_per_shard=arguments.rows_per_shard,
            notes={"source": str(source), "kind": kind, "skipped": skipped},
            progress=progress,
        )
    size = sum(shard.bytes for shard in packed.shards)
    print(
        f"{len(sequences):,} sequences, {sequences.lengths.sum():,} steps in {len(packed):,} rows "
        f"of {arguments.steps:,}, {packed.notes['fill']:.1%} filled, {len(packed.shards)} shards, "
        f"{size:,} bytes, {len(skipped)} left out"
    )
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from rnnscale.data import PackedSource

    packed = PackedSource(arguments.folder)
    with _progress("reading") as progress:
        packed.verify(progress)
    size = sum(shard.bytes for shard in packed.shards)
    print(
        f"{arguments.folder} is what was written: {len(packed):,} rows in {len(packed.shards)} "
        f"shards, {size:,} bytes"
    )
    return 0


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, which is set to so much of so much."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _kind(source: Path) -> str:
    from rnnscale.data import files_under

    files = files_under(source) if source.is_dir() else [source]
    kinds = {_KINDS.get(file.suffix) for file in files}
    if len(kinds) != 1 or None in kinds:
        suffixes = ", ".join(sorted({file.suffix or "none" for file in files})) or "no files"
        raise UserError(
            f"the suffixes in {source} ({suffixes}) don't say what it is; give --kind, one of "
            f"{', '.join(_OPEN)}"
        )
    (kind,) = kinds
    return str(kind)


def _open_text(source: Path, arguments: argparse.Namespace) -> "SequenceSource":
    from rnnscale.data import TextFiles

    return TextFiles(source, skip=arguments.skip)


def _open_bytes(source: Path, arguments: argparse.Namespace) -> "SequenceSource":
    from rnnscale.data import ByteFiles

    return ByteFiles(source, skip=arguments.skip)


def _open_tokens(source: Path, arguments: argparse.Namespace) -> "SequenceSource":
    from rnnscale.data import TokenShards

    return TokenShards(
        _files(source, (".npy", ".bin")),
        dtype=arguments.dtype,
        end=arguments.end,
        skip=arguments.skip,
    )


def _open_npy(source: Path, arguments: argparse.Namespace) -> "SequenceSource":
    from rnnscale.data import SequenceFiles, open_npy, open_npz

    if source.suffix == ".npz":
        arrays = open_npz(source)
    else:
        arrays = {path.stem: open_npy(path) for path in _files(source, (".npy",))}
    offsets = arrays.pop("offsets", None)
    if "inputs" not in arrays:
        raise UserError(
            f"{source} must have an array 'inputs' of shape (sequences, time, ...), or of shape "
            f"(steps, ...) with an array 'offsets'; it has {', '.join(arrays) or 'none'}"
        )
    inputs = arrays["inputs"].shape
    leading = slice(2) if offsets is None else slice(1)

    def is_over_time(array: "StoredArray") -> bool:
        return array.shape[leading] == inputs[leading]

    return SequenceFiles(
        {name: array for name, array in arrays.items() if is_over_time(array)},
        offsets,
        {name: array for name, array in arrays.items() if not is_over_time(array)},
        skip=arguments.skip,
    )


def _open_parquet(source: Path, arguments: argparse.Namespace) -> "SequenceSource":
    from rnnscale.data import ParquetSequences

    return ParquetSequences(_files(source, (".parquet",)), skip=arguments.skip)


def _open_csv(source: Path, arguments: argparse.Namespace) -> "SequenceSource":
    from rnnscale.data import CsvSeries

    return CsvSeries(source, labels=arguments.labels, skip=arguments.skip)


def _open_ts(source: Path, arguments: argparse.Namespace) -> "SequenceSource":
    from rnnscale.data import read_ts

    return read_ts(source, skip=arguments.skip)


def _files(source: Path, suffixes: tuple[str, ...]) -> list[Path]:
    from rnnscale.data import files_under

    if source.is_file():
        return [source]
    files = [file for file in files_under(source) if file.suffix in suffixes]
    if not files:
        raise UserError(f"{source} has no file that ends in {' or '.join(suffixes)}")
    return files


_OPEN: dict[str, Callable[[Path, argparse.Namespace], "SequenceSource"]] = {
    "text": _open_text,
    "bytes": _open_bytes,
    "tokens": _open_tokens,
    "npy": _open_npy,
    "parquet": _open_parquet,
    "csv": _open_csv,
    "ts": _open_ts,
}
