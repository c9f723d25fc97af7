"""The figures of the README: accuracy, text, time, memory, and what sharding costs."""

from ._benchmark import OURS, Row
from ._curves import FOLDER, picture
from ._experiments import Marks, ending, place, rows_by_entry
from ._families import FAMILIES, family
from ._markdown import RESULTS, load, markdown


def headline() -> str:
    """A picture of how models learn, and a table."""
    lines = [*_accuracy(), *_text(), _time(), _memory(), _collectives()]
    return _curves() + markdown(("figure", "rnnscale", "compared with"), lines)


def _curves() -> str:
    """The picture of permuted digits, in which nearly all models were trained until they stopped
    improving."""
    file = picture(FOLDER / "digits-permuted.json")
    alt = "Validation accuracy of each model on permuted digits, over steps and processor time"
    return f"![{alt}]({file.relative_to(RESULTS.parents[1]).as_posix()})\n\n"


def _accuracy() -> list[tuple[str, ...]]:
    """The best model of each family, among those that were trained until they stopped improving."""
    rows = rows_by_entry("mnist5k").values()
    ended = sorted(
        (row for row in rows if ending(row) == "patience"),
        key=lambda row: place(row, higher=True),
    )
    best: dict[str, Row] = {}
    for row in ended:
        best.setdefault(family(row["entry"]), row)
    if not best:
        return []
    found = [best[each] for each in FAMILIES if each in best]
    found.sort(key=lambda row: place(row, higher=True))
    marks = Marks(found)
    ours = ", ".join(f"{row['entry']} {marks.figure(row, 3)}" for row in found)
    papers = ", ".join(
        f"{row['entry']} {row['paper']['value']:.3f} (here {marks.figure(row, 3)})"
        for row in ended
        if row["paper"] is not None
    )
    return [
        (
            "accuracy on MNIST, pixel by pixel, trained on 3,500 images: the best of each family "
            "of which a model was trained to the end",
            ours,
            f"published, trained on 50,000 images or more: {papers}",
        )
    ]


def _text() -> list[tuple[str, ...]]:
    """The best models of text, beside what needs no training."""
    rows = sorted(rows_by_entry("bytes").values(), key=lambda row: place(row, higher=False))
    trained = [row for row in rows if ending(row) in ("patience", "steps")][:3]
    others = [row for row in rows if "baseline" in row["options"]]
    if not trained or not others:
        return []
    marks = Marks(trained)
    texts = (
        ", ".join(f"{row['entry']} {marks.figure(row, 3)}" for row in each)
        for each in (trained, others)
    )
    return [("bits per byte of Python's standard library, 1 M parameters", *texts)]


def _time() -> tuple[str, ...]:
    steps = [row for row in load("train_step_cpu")["rows"] if row["layer"] == "LRU"]
    (ours,) = (row for row in steps if row["contender"] == OURS)
    others = sorted((row["ratio"], row["contender"]) for row in steps if row["contender"] != OURS)
    job = f"training step of an LRU, {ours['batch']} sequences of {ours['time']:,} steps"
    ratios = ", ".join(f"{name} {ratio:.1f}" for ratio, name in others)
    differences = "[how they differ](benchmarks/speed.md#time-compared-with-other-libraries)"
    compared = f"as a multiple of ours: {ratios} ({differences})"
    return job, f"{ours['median_ms']:.0f} ms", compared


def _memory() -> tuple[str, ...]:
    sizes = [row for row in load("memory_cpu")["rows"] if row["layer"] == "S5"]
    length = max(row["length"] for row in sizes)
    full, chunked = (row["temp_bytes"] / 1e6 for row in sizes if row["length"] == length)
    return (
        f"memory for the gradient of an S5 language model, {length:,} steps",
        f"{chunked:.1f} MB, in chunks of time",
        f"{full:,.0f} MB without chunks",
    )


def _collectives() -> tuple[str, ...]:
    moved = [row for row in load("scaling_cpu")["rows"] if row["experiment"] == "length"]
    last, first = (
        f"{sum(each['bytes'] for each in row['collectives']) / 1e6:.2f} MB for "
        f"{row['work']['length']:,} steps"
        for row in (moved[-1], moved[0])
    )
    return "bytes that a device exchanges in a training step, time split over eight", last, first
