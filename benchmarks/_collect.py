"""Rows of experiments that were measured one by one, put into the committed results."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnnscale._errors import UserError
from rnnscale.cli._experiment import row_by_row
from rnnscale.experiments import EXPERIMENTS

from ._markdown import RESULTS

Document = Mapping[str, Any]


def collect(files: Sequence[str]) -> list[Path]:
    """Puts what `rnnscale experiment` wrote with `--json` or `--curves` into the results: all
    rows of an entry are replaced at once.

    **Returns:** the files of the results that were written.

    **Raises:** `ValueError` if a file cannot be read or has no such rows, or if its rows were not
    measured as those of the results were: with other versions or options, or on another device.
    No file is written then.
    """
    documents: dict[Path, Document] = {}
    for file in files:
        part = _read(file)
        is_curves = "values" in part["rows"][0]
        folder = RESULTS / "experiments" / ("curves" if is_curves else "")
        target = folder / f"{part['experiment']}.json"
        documents[target] = _merged(documents.get(target), part, file)
    for target, measured in documents.items():
        if target.is_file():
            stored = json.loads(target.read_text(encoding="utf-8"))
            documents[target] = _merged(stored, measured, measured["experiment"])
    for target, document in documents.items():
        is_curves = target.parent.name == "curves"
        text = row_by_row(document) if is_curves else json.dumps(document, indent=1)
        target.write_text(text + "\n", encoding="utf-8")
    return list(documents)


def _read(file: str) -> Document:
    try:
        document = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    rows = document.get("rows") if isinstance(document, dict) else None
    if not rows or document.get("experiment") not in EXPERIMENTS:
        raise UserError(
            f"{file} has no rows of an experiment, as rnnscale experiment NAME writes them with "
            "--json or --curves"
        )
    return document


def _merged(document: Document | None, part: Document, file: str) -> Document:
    """The rows of the part, and those of the document for other entries, in the order of the
    preset. Texts are those of the part, which is newer."""
    preset = EXPERIMENTS[part["experiment"]]
    order = [entry.name for entry in preset.entries]
    measured = {row["entry"] for row in part["rows"]}
    if unknown := measured - {*order}:
        raise UserError(f"{file}: {preset.name} has no entry {', '.join(sorted(unknown))}")
    rows = list(part["rows"])
    kept = [row for row in document["rows"] if row["entry"] not in measured] if document else []
    if document and kept:
        rows += kept
        before, now = (_settings(each) for each in (document, part))
        if differ := [name for name in before | now if before.get(name) != now.get(name)]:
            values = (f"{x}: {now.get(x)}, and {before.get(x)} for other rows" for x in differ)
            raise UserError(f"{file} was measured in another way: {'; '.join(values)}")
    rows.sort(key=lambda row: order.index(row["entry"]))  # stable: seeds keep their order
    return {**part, "command": _command(part, [row["entry"] for row in rows], order), "rows": rows}


def _settings(document: Document) -> dict[str, Any]:
    """What must be the same for all rows of a file."""
    names = document.keys() - {"rows", "command", "differs"}
    return {name: document[name] for name in names} | {"options": _split(document["command"])[1]}


def _command(part: Document, rows: Sequence[str], order: Sequence[str]) -> str:
    """The command that measures all these rows."""
    begin, options = _split(part["command"])
    found = list(dict.fromkeys(rows))
    chosen = [] if found == list(order) else ["--row", *found]
    return shlex.join([*begin, *chosen, *options])


def _split(command: str) -> tuple[list[str], list[str]]:
    """`rnnscale experiment NAME`, and the options without `--row`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--row", nargs="+")
    _, rest = parser.parse_known_args(shlex.split(command))
    return rest[:3], rest[3:]
