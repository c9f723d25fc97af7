"""What tables of figures are made with: the files of results, and Markdown."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ._benchmark import Row

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Three digits, and an exponent only for small values."""
    if value == 0:
        return "0"
    order = math.floor(math.log10(abs(value)))
    return f"{value:.2e}" if order < -3 else f"{value:,.{max(0, 2 - order)}f}"


def jobs(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows by job: by their values of `names`."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found
