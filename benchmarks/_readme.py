"""The tables of the README, made of the results: no figure in them is typed by hand.

Between `<!-- figures: NAME -->` and `<!-- end -->` stands what `TABLES[NAME]` makes of the files in
`results/`. `python -m benchmarks readme` writes them anew, and a test compares.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._benchmark import OURS, Row

RESULTS = Path(__file__).parent / "results"
_BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n)(?s:.*?)(<!-- end -->)")


def written(text: str) -> str:
    """The text with all its tables made anew.

    **Raises:** `ValueError` for a block whose table nothing makes, and where a table has no block.
    """
    blocks = [name for _, name, _ in _BLOCK.findall(text)]
    if sorted(blocks) != sorted(TABLES):
        raise ValueError(f"the blocks are {sorted(blocks)}, the tables are {sorted(TABLES)}")
    return _BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Three digits, and no exponent where none is needed."""
    if value == 0:
        return "0"
    order = math.floor(math.log10(abs(value)))
    return f"{value:.2e}" if order < -3 else f"{value:,.{max(0, 2 - order)}f}"


def with_spread(row: Row, digits: int) -> str:
    if row["spread"] is None:
        return f"{row['mean']:.{digits}f}"
    return f"{row['mean']:.{digits}f} ± {row['spread']:.{digits}f}"


def jobs(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows of the same job together."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def beside(
    name: str,
    title: Callable[[Row], str],
    key: Sequence[str],
    figure: str,
    unit: str,
    why: str = "",
    chosen: Callable[[Row], bool] = lambda row: True,
) -> str:
    """Ours, and how many times as much the others take; in bold who takes less, and below the table
    why they do, and whose job is not quite ours.

    **Raises:** `ValueError` where somebody takes less and there is no reason.
    """
    ahead = False
    lines: list[tuple[str, str, str]] = []
    notes: dict[str, dict[str, None]] = {}
    for rows in jobs(filter(chosen, load(name)["rows"]), key).values():
        (ours,) = [row for row in rows if row["contender"] == OURS]
        others = []
        for row in rows:
            if row is ours:
                continue
            if "note" in row:
                told = notes.setdefault(f"{row['contender']}: {row['note']}", {})
                told[row["layer"].removesuffix("Cell")] = None
            if (ratio := row.get("ratio")) is None:
                others.append(f"{row['contender']}: {row.get('stopped') or row['error']}")
            elif row.get("ahead"):
                ahead = True
                others.append(f"**{row['contender']} {ratio:.2f}**")
            else:
                others.append(f"{row['contender']} {number(ratio)}")
        lines.append((title(ours), f"{number(ours[figure])} {unit}", ", ".join(others)))
    if ahead and not why:
        raise ValueError(f"{name}: somebody is ahead, and nothing says why")
    table = markdown(("job", "rnnscale", "the others take so many times as long"), lines)
    if ahead:
        table += f"\nWhere others are ahead: {why}\n"
    told = (f"- {note} ({', '.join(layers)})\n" for note, layers in notes.items())
    return table + ("\nIn what the jobs differ:\n\n" + "".join(told) if notes else "")


_WRITTEN_OUT = (
    "the loop of a cell is written out for eight steps, forward and backward, which takes longer "
    "to compile and less time to run; the plain loop of an LRU or S5 is the smallest program "
    "there is, and the slowest."
)
_SHAPE = ("layer", "batch", "time", "features", "units")


def shape(row: Row) -> str:
    layer = row["layer"].removesuffix("Cell")
    return f"{layer}, B={row['batch']} L={row['time']:,}, {row['features']} to {row['units']}"


def train_step() -> str:
    return beside("train_step_cpu", shape, _SHAPE, "median_ms", "ms")


_OF_LAYERS = {
    "forward": (
        "PyTorch's LSTM is oneDNN's, product and gates in one; MinGRU makes the gates of all steps "
        "before the recurrence, which takes more memory than a step at a time in the plain loop; "
        "why Wilson-Cowan is behind is not known: alone in a process the two loops are alike; "
        "Elman and IndRNN are within what the rounds differ by."
    ),
    "gradient": (
        "the backward pass of an IndRNN makes the pre-activations again, which takes less memory; "
        "rnn-jax's leak is a constant of the program, ours a parameter; Elman is within what the "
        "rounds differ by."
    ),
}


def layers(mode: str) -> str:
    return beside(
        "layers_cpu",
        shape,
        _SHAPE,
        "median_ms",
        "ms",
        _OF_LAYERS[mode],
        chosen=lambda row: row["mode"] == mode,
    )


def growth() -> str:
    why = (
        "PyTorch's LSTM is oneDNN's, whose products of few rows are faster, as for a single step. "
        "One row of 1,024 steps is in two sweeps: its two lines show what few rounds of a short "
        "job differ by."
    )
    return beside("growth_cpu", shape, ("sweep", *_SHAPE), "median_ms", "ms", why)


def compile_time() -> str:
    return beside("compile_time_cpu", shape, _SHAPE, "seconds", "s", _WRITTEN_OUT)


def start_up() -> str:
    return beside("start_up_cpu", shape, _SHAPE, "seconds", "s", _WRITTEN_OUT)


def latency() -> str:
    def title(row: Row) -> str:
        rows = "1 row" if row["batch"] == 1 else f"{row['batch']} rows"
        return f"{row['layer']}, {rows}, {row['features']} to {row['units']}"

    why = (
        "most of a step is its matrix product. PyTorch's is faster for one row; for 64 rows the "
        "two are alike on one core, and PyTorch makes more of two. `layer.step` is within what "
        "the rounds differ by."
    )
    key = ("layer", "batch", "features", "units")
    return beside("latency_cpu", title, key, "p50_us", "us", why)


def large_batch() -> str:
    rows = [
        (
            row["rule"],
            str(row["batch"]),
            str(row["accumulation"]),
            str(row["steps"]),
            "diverged" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.3f}",
            "not reached" if row["tokens_to_target"] is None else f"{row['tokens_to_target']:,}",
            "yes" if row["keeps"] else "no",
        )
        for row in load("large_batch_cpu")["rows"]
    ]
    return markdown(
        ("rate grows", "batch", "parts", "steps", "bits per byte", "bytes to target", "pays"), rows
    )


def memory() -> str:
    found = jobs(load("memory_cpu")["rows"], ("layer", "length"))
    layers = dict.fromkeys(layer for layer, _ in found)
    lengths = sorted({length for _, length in found})
    rows = []
    for layer in layers:
        whole, chunked = [], []
        for length in lengths:
            for row in found[layer, length]:
                into = whole if row["chunk"] is None else chunked
                into.append(f"{row['temp_bytes'] / 1e6:,.1f}")
        rows += [(layer, "whole", *whole), ("", "in chunks", *chunked)]
    return markdown(("layer", "", *(f"{length:,} steps" for length in lengths)), rows)


def pixels() -> str:
    names = ("digits", "digits-permuted", "mnist5k", "mnist5k-permuted")
    tables = {
        name: {row["entry"]: row for row in load(f"experiments/{name}")["rows"]} for name in names
    }
    rows = []
    for entry, permuted in tables["mnist5k-permuted"].items():
        ours = (with_spread(table[entry], 3) for table in tables.values())
        paper = permuted["paper"]
        rows.append((entry, *ours, "" if paper is None else f"{paper['value']:.3f}"))
    return markdown(("model", *(f"`{name}`" for name in tables), "published, permuted MNIST"), rows)


def others() -> str:
    """Experiments of few entries."""
    rows = []
    for name, digits in (
        ("adding-500", 5), ("adding-1000", 5), ("adding-5000", 5), ("copy", 4),
        ("japanese-vowels", 3), ("listops", 3), ("reservoirs", 5), ("reservoirs-lorenz", 1),
    ):  # fmt: skip
        document = load(f"experiments/{name}")
        for row in document["rows"]:
            paper = row["paper"]
            published = "" if paper is None else paper["source"]
            if paper is not None and paper["value"] is not None:
                published = f"{paper['value']:g}; {published}"
            metric = document["metric"].partition(":")[0]
            rows.append(
                (
                    f"`{name}`", row["entry"], metric, with_spread(row, digits),
                    str(len(row["seeds"])), published,
                )
            )  # fmt: skip
    return markdown(("experiment", "entry", "figure", "ours", "seeds", "published"), rows)


def watch() -> str:
    rows = load("watch_cpu")["rows"]
    accuracies = [row["test_accuracy"] for row in rows]
    return markdown(
        ("person left out", *(str(row["person"]) for row in rows), "mean"),
        [
            (
                "accuracy",
                *(f"{each:.3f}" for each in accuracies),
                f"{sum(accuracies) / len(rows):.3f}",
            )
        ],
    )


def streams() -> str:
    return markdown(
        ("rows of steps in a batch", "batches", "rows", "bits per byte", "with the state carried"),
        [
            (
                f"{row['batch_size']} of {row['seq_len']}",
                f"{row['steps']:,}",
                row["rows"],
                f"{row['bits_per_byte']['each window from zero']:.3f}",
                f"{row['bits_per_byte']['state carried on']:.3f}",
            )
            for row in load("streams_cpu")["rows"]
        ],
    )


def exchanged() -> str:
    rows = []
    for row in load("scaling_cpu")["rows"]:
        if row["experiment"] != "length":
            continue
        moved = Counter[str]()
        counts = Counter[str]()
        for each in row["collectives"]:
            moved[each["kind"]] += each["bytes"]
            counts[each["kind"]] += each["count"]
        rows.append(
            (
                f"{row['work']['length']:,}",
                ", ".join(f"{counts[kind]} {kind}, {moved[kind]:,} bytes" for kind in moved),
            )
        )
    return markdown(("steps over eight devices", "a device exchanges in a training step"), rows)


def loading() -> str:
    rows = []
    for row in load("data_cpu")["rows"]:
        if "overhead" not in row:
            continue
        low, median, high = (100 * each for each in row["overhead"])
        rows.append((row["kind"], row["name"], f"{median:+.0f} %", f"{low:+.0f} to {high:+.0f} %"))
    header = "processor time beside Grain alone; with workers, time that passed"
    return markdown(("what", "of", header, "quartiles"), rows)


def language() -> str:
    rows = sorted(load("experiments/bytes")["rows"], key=lambda row: row["mean"])
    return markdown(
        ("layer", "width", "parameters", "bits per byte"),
        [
            (
                row["entry"],
                str(row["options"]["dim"]),
                f"{row['parameters']:,}",
                with_spread(row, 3),
            )
            for row in rows
        ],
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "train-step": train_step,
    "layers-gradient": lambda: layers("gradient"),
    "layers-forward": lambda: layers("forward"),
    "growth": growth,
    "compile-time": compile_time,
    "start-up": start_up,
    "latency": latency,
    "large-batch": large_batch,
    "memory": memory,
    "pixels": pixels,
    "experiments": others,
    "bytes": language,
    "watch": watch,
    "streams": streams,
    "exchanged": exchanged,
    "loading": loading,
}
