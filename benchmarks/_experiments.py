"""The tables of the experiments, which say of each figure what ended its training."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from rnnscale.experiments import EXPERIMENTS, Experiment

from ._benchmark import Row
from ._families import FAMILIES, family
from ._markdown import load, markdown

DAGGER, FIXED = "†", "‡"

PIXELS = ("digits", "digits-permuted", "mnist5k", "mnist5k-permuted")

# The experiments of each list, with the number of digits behind the point.
LISTS: Mapping[str, Mapping[str, int]] = {
    "long-range": {
        **{"adding-500": 5, "adding-1000": 5, "adding-5000": 5, "copy": 4},
        **{"listops": 3, "pendulum": 5},
    },
    "series": {"japanese-vowels": 3, "uea": 3},
    "reservoirs": {"reservoirs": 5, "reservoirs-lorenz": 1},
}


def ending(row: Row) -> str | None:
    """What ended the trainings of a row: `"budget"` if it cut one of them short, `"steps"` if one
    ended after a fixed number of them, or else `"patience"`; None if nothing was trained."""
    found = set(row["ended"])
    return next((each for each in ("budget", "steps", "patience") if each in found), None)


_NOTES = {
    DAGGER: "A training was stopped before its end by its budget of processor time or steps. Such "
    "a figure says little about its model, which may do better with more time.",
    FIXED: "Trained for a fixed number of steps.",
}


class Marks:
    """The marks of the figures in a table, by what ended their training.

    **Arguments:**

    - `rows`: all rows of the table.
    """

    def __init__(self, rows: Iterable[Row]):
        endings = {ending(row) for row in rows} - {None}
        self._all_fixed = endings == {"steps"}

    def mark(self, row: Row) -> str:
        """A dagger if the budget cut the training short. Trainings of a fixed number of steps are
        marked if the table has others too."""
        marks = {"budget": DAGGER, "steps": "" if self._all_fixed else FIXED}
        return marks.get(ending(row) or "", "")

    def figure(self, row: Row, digits: int) -> str:
        """Mean and spread, with the mark."""
        spread = "" if row["spread"] is None else f" ± {row['spread']:.{digits}f}"
        return f"{row['mean']:.{digits}f}{spread}{self.mark(row)}"

    def explained(self, table: str) -> str:
        """The table, with what its marks mean below it."""
        lines = [f"{mark} {note}" for mark, note in _NOTES.items() if mark in table]
        if self._all_fixed:
            lines.append("All trainings had a fixed number of steps.")
        return table + "".join(f"\n{line}\n" for line in lines)


def with_differences(table: str, experiments: Iterable[str]) -> str:
    """The table, and below it what differs from the papers in each of these experiments."""
    found: dict[str, list[str]] = {}
    for name in experiments:
        if (document := _document(name)) is not None:
            found.setdefault(document["differs"], []).append(f"`{name}`")
    texts = (f"{', '.join(names)}: {differs}\n" for differs, names in found.items())
    begin = "\n<details>\n<summary>What differs from the papers</summary>\n"
    return "\n".join([table + begin, *texts, "</details>\n"])


def place(row: Row | None, *, higher: bool) -> tuple[int, float]:
    """Where a row stands in a sorted table: by its figure, then those that were cut short, then
    those that are missing."""
    if row is None:
        return 2, 0.0
    return int(ending(row) == "budget"), -row["mean"] if higher else row["mean"]


def overview() -> str:
    """The best model of each family on some tasks, and the models that track a state."""
    images = {name: rows_by_entry(name).values() for name in ("mnist5k", "mnist5k-permuted")}
    texts = [row for row in rows_by_entry("bytes").values() if "baseline" not in row["options"]]
    tracked = rows_by_entry("state-tracking").values()
    tracks = {
        task: [row for row in tracked if row["options"]["task"] == task]
        for task in dict.fromkeys(row["options"]["task"] for row in tracked)
    }
    # Models of text and of states are compared after the same steps, which needs no mark.
    of_images = Marks(row for rows in images.values() for row in rows)
    of_texts, of_states = Marks(texts), Marks(tracked)
    solves = EXPERIMENTS["state-tracking"].solves

    def best(marks: Marks, rows: Iterable[Row], name: str, *, higher: bool) -> str:
        found = [row for row in rows if family(row["entry"]) == name]
        if not found:
            return ""
        row = min(found, key=lambda row: place(row, higher=higher))
        return f"{row['entry']} {marks.figure(row, 3)}"

    def solvers(task: str, name: str) -> str:
        tried = [row for row in tracks[task] if family(row["options"]["model"]) == name]
        found = [row for row in tried if all(map(solves, row["figures"]))]
        names = ", ".join(
            row["entry"].removeprefix(f"{task}-") + of_states.mark(row) for row in found
        )
        return names or (f"none of {len(tried)}" if tried else "")

    header = (*(f"`{name}`" for name in images), "`bytes`", *(f"solve `{x}`" for x in tracks))
    lines = [
        (
            name,
            *(best(of_images, rows, name, higher=True) for rows in images.values()),
            best(of_texts, texts, name, higher=False),
            *(solvers(task, name) for task in tracks),
        )
        for name in FAMILIES
    ]
    return of_images.explained(markdown(("family", *header), lines))


_OF_MNIST = ("", ", minutes", ", published")


def pixels() -> str:
    """The accuracies of each model, the best on `mnist5k` first. For MNIST there are the size of
    the model, the processor time that it took, and the published accuracies."""
    tables = {name: rows_by_entry(name) for name in PIXELS}
    marks = Marks(row for rows in tables.values() for row in rows.values())
    models = dict.fromkeys(entry for rows in tables.values() for entry in rows)

    def line(model: str) -> Iterator[str]:
        rows = {name: table.get(model) for name, table in tables.items()}
        yield model
        yield family(model)
        yield "" if (row := rows["mnist5k"]) is None else f"{row['parameters']:,}"
        for name, row in rows.items():
            yield "" if row is None else marks.figure(row, 3)
            if name.startswith("mnist"):
                yield "" if row is None else f"{sum(row['seconds']) / 60:.0f}"
                (entry,) = (x for x in EXPERIMENTS[name].entries if x.name == model)
                yield "" if entry.paper is None else f"{entry.paper.value:.3f}"

    header = (
        *("model", "family", "parameters", "`digits`", "`digits-permuted`"),
        *(f"{name}{each}" for name in ("`mnist5k`", "`mnist5k-permuted`") for each in _OF_MNIST),
    )
    ordered = sorted(models, key=lambda x: place(tables["mnist5k"].get(x), higher=True))
    table = markdown(header, [tuple(line(model)) for model in ordered])
    return with_differences(marks.explained(table), PIXELS)


def rows_by_entry(experiment: str) -> Mapping[str, Row]:
    """The rows of an experiment; none before it was measured."""
    document = _document(experiment)
    return {} if document is None else {row["entry"]: row for row in document["rows"]}


def language() -> str:
    """Bits per byte, the best first, with the count models and compression programs among them.
    The speed is that up to the last evaluation."""
    rows = rows_by_entry("bytes").values()
    curves = {each["entry"]: each for each in load("experiments/curves/bytes")["rows"]}
    marks = Marks(rows)
    lines = []
    for row in sorted(rows, key=lambda row: place(row, higher=False)):
        options, speed = row["options"], ""
        if (curve := curves.get(row["entry"])) is not None:
            bytes_read = curve["steps"][-1] * options["batch_size"] * options["seq_len"]
            speed = f"{bytes_read / curve['cpu_seconds'][-1]:,.0f}"
        lines.append(
            (
                row["entry"],
                "no training" if "baseline" in options else family(row["entry"]),
                str(options.get("dim", "")),
                f"{row['parameters']:,}" if row["parameters"] else "",
                marks.figure(row, 3),
                speed,
            )
        )
    header = ("model", "family", "width", "parameters", "bits per byte", "bytes a processor second")
    return with_differences(marks.explained(markdown(header, lines)), ["bytes"])


def samples() -> str:
    """A text by each model of text, the best first."""
    rows = [row for row in rows_by_entry("bytes").values() if "sample" in row]
    rows.sort(key=lambda row: place(row, higher=False))
    marks = Marks(rows)
    texts = (
        f"{row['entry']}, {marks.figure(row, 3)} bits per byte:\n\n"
        f"```text\n{_printable(row['sample'])}\n```\n\n"
        for row in rows
    )
    return marks.explained("".join(texts))


def _printable(text: str) -> str:
    """A text that cannot end the block that it stands in, or control a terminal."""
    text = "".join(each if each.isprintable() or each == "\n" else "�" for each in text)
    return re.sub("^( *)```", r"\1'''", text, flags=re.MULTILINE).strip("\n")


def listed(digits: Mapping[str, int]) -> str:
    """The rows of experiments that have few, one after the other, and the published figures, if
    there are any."""
    found = {name: _document(name) for name in digits}
    documents = {name: each for name, each in found.items() if each is not None}
    marks = Marks(row for each in documents.values() for row in each["rows"])
    lines = []
    for name, document in documents.items():
        metric = document["metric"].partition(":")[0]
        for row in document["rows"]:
            lines.append(
                (
                    *(f"`{name}`", row["entry"], metric, marks.figure(row, digits[name])),
                    *(_seeds(row, EXPERIMENTS[name]), published(row)),
                )
            )
    header = ("experiment", "entry", "measure", "measured here", "seeds", "published")
    columns = len(header) if any(line[-1] for line in lines) else len(header) - 1
    table = markdown(header[:columns], [line[:columns] for line in lines])
    return with_differences(marks.explained(table), documents)


def _document(experiment: str) -> dict[str, Any] | None:
    """The results of an experiment; None before it was measured."""
    try:
        return load(f"experiments/{experiment}")
    except FileNotFoundError:
        return None


def _seeds(row: Row, experiment: Experiment) -> str:
    """The number of seeds, and how many of them solve the task, if that is what counts."""
    seeds = str(len(row["seeds"]))
    if experiment.solved is None:
        return seeds
    return f"{sum(map(experiment.solves, row['figures']))} of {seeds} solve it"


def published(row: Row) -> str:
    paper = row["paper"]
    if paper is None:
        return ""
    return paper["source"] if paper["value"] is None else f"{paper['value']:g}; {paper['source']}"


def state_tracking() -> str:
    """A line for each task and model, with the accuracy at each length."""
    document, preset = load("experiments/state-tracking"), EXPERIMENTS["state-tracking"]
    marks = Marks(document["rows"])
    rows = []
    for row in document["rows"]:
        task, more = row["options"]["task"], dict(row["more"])
        width = more.pop("width")
        curve = {name: x for name, x in more.items() if name.isdecimal()}
        solved = sum(map(preset.solves, row["figures"]))
        tried = len(row["seeds"])
        verdict = {0: "no", tried: "yes"}.get(solved, f"{solved} of {tried} seeds")
        rows.append(
            (
                f"`{task}`",
                row["entry"].removeprefix(f"{task}-"),
                f"{width:.0f}",
                f"{row['parameters']:,}",
                *(f"{x:.3f}{marks.mark(row)}" for x in curve.values()),
                verdict,
                "" if row["paper"] is None else row["paper"]["source"],
            )
        )
    steps = [f"{name} steps" for name in ("40", "64", "128", "256", "512")]
    header = ("task", "model", "width", "parameters", *steps, "solved", "the papers")
    return with_differences(marks.explained(markdown(header, rows)), ["state-tracking"])


TABLES: Mapping[str, Callable[[], str]] = {
    "overview": overview,
    "pixels": pixels,
    "bytes": language,
    "samples": samples,
    **{name: partial(listed, digits) for name, digits in LISTS.items()},
    "state-tracking": state_tracking,
}
