"""Checks how times are taken and compared, and how a benchmark is run, written and drawn."""

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import benchmarks.__main__ as command
from benchmarks import _harness, _plots
from benchmarks._benchmark import Benchmark, Unavailable, columns
from benchmarks._harness import Contest, measure
from rnnscale_kernels.testing import _timing, compile_timed, orders

ROOT = Path(command.__file__).parents[1]


class Clock:
    """Stands still but for what `takes` says."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def takes(self, *ms):
        """Something that takes so long the first time, the second, ..., and as the last from then
        on. Exact in binary if `ms` are multiples of 1/8."""
        left = list(ms)

        def run():
            self.now += left[0] / 1e3
            if len(left) > 1:
                left.pop(0)

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_timing, "time", clock)
    return clock


def test_figures_are_of_all_rounds_but_the_first_call(clock):
    ours, theirs = [4.0, 2.0, 3.0, 9.0, 5.0], [8.0, 8.0, 3.0, 27.0, 5.0]
    contest = Contest(
        {"layer": "LRU", "batch": 8},
        {"rnnscale": clock.takes(1000, *ours), "peer": clock.takes(1000, *theirs)},
        {"peer": {"compile_s": 1.5}},
    )
    mine, peer = measure(contest, rounds=5)
    assert list(mine)[:3] == ["layer", "batch", "contender"]
    assert (mine["layer"], mine["contender"], peer["contender"]) == ("LRU", "rnnscale", "peer")
    for row, ms in ((mine, ours), (peer, theirs)):
        low, median, high = statistics.quantiles(ms, n=4, method="inclusive")
        assert row["median_ms"] == pytest.approx(median)
        assert row["quartile_ms"] == pytest.approx([low, high])
        assert row["best_ms"] == pytest.approx(min(ms))
    assert mine["ratio"] == 1 and mine["ratio_spread"] == [1, 1]
    # The ratio of the medians, and the quartiles of 2, 4, 1, 3 and 1: of one round each.
    assert peer["ratio"] == pytest.approx(8 / 4)
    assert peer["ratio_spread"] == pytest.approx([1, 3])
    assert peer["compile_s"] == 1.5 and "compile_s" not in mine


def test_who_is_faster_than_ours_is_ahead(clock):
    contenders = {"rnnscale": clock.takes(4), "slow": clock.takes(5), "fast": clock.takes(3)}
    rows = {row["contender"]: row for row in measure(Contest({}, contenders), rounds=3)}
    assert rows["fast"]["ahead"] is True and rows["fast"]["ratio"] == pytest.approx(0.75)
    assert "ahead" not in rows["slow"] and "ahead" not in rows["rnnscale"]
    limited = measure(Contest({}, contenders, limits=("fast",)), rounds=3)
    assert all("ahead" not in row for row in limited)  # it does a part of the job only
    del contenders["rnnscale"]
    for row in measure(Contest({}, contenders), rounds=1):
        assert row["ratio"] is None and row["ratio_spread"] is None and "ahead" not in row


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_everybody_is_first_as_often_and_follows_everybody_next_to_them(count):
    names = [f"contender {i}" for i in range(count)]
    rounds = list(orders(names, 2 * count))
    assert all(sorted(each) == names for each in rounds)
    places = Counter((place, name) for each in rounds for place, name in enumerate(each))
    assert set(places.values()) == {2} and len(places) == count**2
    before = {name: set() for name in names}
    for each in rounds:
        for first, second in zip(each, each[1:], strict=False):
            before[second].add(first)
    if count > 1:
        assert all(len(each) == min(2, count - 1) for each in before.values())


def test_each_takes_its_turn_in_every_round_while_no_garbage_is_collected():
    calls, collecting = [], []

    def contender(name):
        def run():
            calls.append(name)
            collecting.append(gc.isenabled())

        return run

    assert gc.isenabled()
    measure(Contest({}, {name: contender(name) for name in "abc"}), rounds=4)
    assert Counter(calls) == {"a": 5, "b": 5, "c": 5}
    assert collecting[3:] == [False] * 12 and gc.isenabled()
    gc.disable()
    try:
        measure(Contest({}, {"a": contender("a")}), rounds=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("fails_at", [1, 3])
def test_who_fails_has_an_error_and_the_others_go_on(clock, fails_at):
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == fails_at:
            raise MemoryError("no room for 3 GB")

    contenders = {"rnnscale": clock.takes(4), "large": fail, "peer": clock.takes(8)}
    contest = Contest({"time": 64}, contenders, {"large": {"note": "keeps all states"}})
    mine, large, peer = measure(contest, rounds=4)
    assert len(calls) == fails_at
    assert large == {
        "time": 64, "contender": "large", "error": "MemoryError: no room for 3 GB",
        "note": "keeps all states",
    }  # fmt: skip
    assert mine["median_ms"] == pytest.approx(4) and peer["ratio"] == pytest.approx(2)
    assert gc.isenabled()


def test_nobody_is_compared_with_ours_where_ours_fails(clock):
    def fail():
        raise RuntimeError("broken")

    mine, peer = measure(Contest({}, {"rnnscale": fail, "peer": clock.takes(8)}), rounds=2)
    assert mine["error"] == "RuntimeError: broken" and peer["ratio"] is None
    assert peer["median_ms"] == pytest.approx(8)


def test_what_is_no_contest():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        measure(Contest({}, {"rnnscale": list}), rounds=0)
    with pytest.raises(ValueError, match=r"facts of \['per'\]; the contenders are \['peer'\]"):
        Contest({}, {"peer": list}, {"per": {}})


def test_programs_of_a_layer_and_what_they_took():
    weights, xs = jnp.arange(6.0).reshape(2, 3), jnp.ones((4, 5, 2))
    thunks, facts = _harness.compiled(lambda layer, xs: jnp.tanh(xs @ layer), weights, xs)
    assert list(thunks) == list(facts) == ["forward", "gradient"]
    for mode, thunk in thunks.items():
        thunk()
        assert facts[mode].keys() == {"compile_s", "temp_bytes", "peak_bytes"}
        assert facts[mode]["compile_s"] > 0


def test_temporaries_hold_what_is_between_argument_and_result():
    x = jnp.eye(64)
    program, facts = compile_timed(jax.jit(lambda x: jnp.sin(x @ x) @ x), x)
    np.testing.assert_allclose(program(x), np.sin(1) * np.eye(64), rtol=1e-6)
    # The sines are neither an argument nor a result.
    assert facts["temp_bytes"] == x.nbytes and facts["compile_s"] > 0


def printed(renderable):
    console = Console(width=120)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_the_table_marks_who_is_ahead_and_tells_who_failed():
    rows = [
        {"time": 65536, "contender": "rnnscale", "median_ms": 12.3456, "ratio": 1.0},
        {"time": 65536, "contender": "fast", "median_ms": 6.1728, "ratio": 0.5, "ahead": True},
        {"time": 65536, "contender": "large", "error": "MemoryError: [no] room"},
    ]
    text = printed(columns("time", "contender", "median_ms", "ratio")(rows))
    head, ours, fast, large, failed = (" ".join(line.split()) for line in text.splitlines())
    assert head == "time contender median_ms ratio"
    assert ours == "65,536 rnnscale 12.3 1"
    assert fast == "65,536 fast 6.17 0.5 ahead"
    assert large == "65,536 large"
    assert failed == "FAILED 65,536 large: MemoryError: [no] room"


def test_lines_keep_their_style_and_differ_without_colour():
    names = ["b", "rnnscale", "a", "b", *(f"peer {i}" for i in range(30))]
    styles = _plots.styles(names)
    assert list(styles)[:3] == ["rnnscale", "b", "a"] and len(styles) == 33
    in_grey = {(style["marker"], style["linestyle"]) for style in styles.values()}
    assert len(in_grey) == 33


def add_width(parser):
    parser.add_argument("--width", type=int, default=3)


def two_rows(options):
    print("training says something")
    yield {"width": options.width, "ms": 1.5}
    yield {"width": 2 * options.width, "ms": 2.5}


@pytest.fixture
def benchmark(monkeypatch):
    """Replaces the benchmark `memory` by another one."""

    def put(run, **others):
        fake = Benchmark(run=run, table=columns("width", "ms"), add_options=add_width, **others)
        monkeypatch.setattr(command, "load", lambda name: fake)

    return put


def test_the_document_has_command_versions_device_and_rows(benchmark, tmp_path, capsys):
    benchmark(two_rows, about=lambda options: {"seed": options.rounds})
    file = tmp_path / "rows.json"
    given = ["memory", "--json", str(file), "--width", "4", "--quick"]
    assert command.main(given) == 0
    document = json.loads(file.read_text())
    assert document["benchmark"] == "memory" and document["seed"] == 3
    # Where it is written to does not matter to who runs it again.
    assert document["command"] == "python -m benchmarks memory --width 4 --quick"
    assert document["rows"] == [{"width": 4, "ms": 1.5}, {"width": 8, "ms": 2.5}]
    assert document["platform"] == "cpu" and document["device"] and "jax" in document["versions"]
    assert "incomplete" not in document
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()] == [
        ["width", "ms"], ["4", "1.5"], ["8", "2.5"]
    ]  # fmt: skip


def test_a_dash_is_the_standard_output_which_has_nothing_else(benchmark, capsys):
    benchmark(two_rows)
    assert command.main(["memory", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["rows"]) == 2
    assert "width" in captured.err and "training says something" in captured.err


def test_rounds_are_15_or_3_or_as_the_benchmark_says(benchmark):
    seen = []

    def run(options):
        seen.append(getattr(options, "rounds", None))
        return []

    for module, given in (
        ({}, []), ({}, ["--quick"]), ({}, ["--quick", "--rounds", "7"]), ({"rounds": 11}, []),
        ({"quick_rounds": 1}, ["--quick"]), ({"rounds": None}, []),
    ):  # fmt: skip
        benchmark(run, **module)
        assert command.main(["memory", *given]) == 0
    assert seen == [15, 3, 7, 11, 1, None]
    with pytest.raises(SystemExit):
        command.main(["memory", "--rounds", "7"])


def measures_nothing(options):
    raise AssertionError("measured")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--json", "{tmp}/nowhere/rows.json"], "there is no folder"),
        (["--json", "{tmp}"], "is a folder; name a file"),
        (["--plot", "{tmp}/rows.docs"], "must end in one of .*.png"),
        (["--plot", "{tmp}/nowhere/rows.png"], "there is no folder"),
        (["--rounds", "0"], "must be at least 1, got 0"),
        (["--rond", "3"], "unrecognized arguments: --rond 3"),
    ],
)
def test_a_bad_option_is_found_before_anything_is_measured(
    benchmark, tmp_path, capsys, given, says
):
    if "--plot" in given:
        pytest.importorskip("matplotlib", reason="plots need rnnscale[plots]")
    benchmark(measures_nothing, plot=measures_nothing)
    with pytest.raises(SystemExit) as end:
        sys.exit(command.main(["memory", *(each.format(tmp=tmp_path) for each in given)]))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks: error: ")
    assert re.search(says, line)


def test_an_unknown_benchmark_is_an_error(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["nothing"])
    assert end.value.code == 2 and "invalid choice: 'nothing'" in capsys.readouterr().err


def test_who_failed_makes_the_exit_code_one(benchmark, capsys):
    benchmark(lambda options: [{"width": 1, "error": "MemoryError: no room"}])
    assert command.main(["memory"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_rows_outlive_what_ends_a_benchmark(benchmark, tmp_path, capsys):
    def run(options):
        yield {"width": 1, "ms": 1.0}
        raise KeyboardInterrupt

    benchmark(run)
    file = tmp_path / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        command.main(["memory", "--json", str(file)])
    document = json.loads(file.read_text())
    assert document["incomplete"] is True and len(document["rows"]) == 1
    assert command.main(["plot", str(file), "--out", str(tmp_path / "rows.svg")]) == 2
    assert "of a benchmark that was interrupted" in capsys.readouterr().err


def test_what_cannot_run_says_so_in_one_line_and_writes_nothing(benchmark, tmp_path, capsys):
    def run(options):
        raise Unavailable("it needs a GPU")
        yield

    benchmark(run)
    file = tmp_path / "rows.json"
    assert command.main(["memory", "--json", str(file)]) == 3
    assert capsys.readouterr().err == "benchmarks: memory cannot run here: it needs a GPU\n"
    assert not file.exists()


def test_a_picture_now_is_the_picture_from_the_document(benchmark, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need rnnscale[plots]")
    drawn = []

    def plot(rows, figure):
        drawn.append(rows)
        panel = figure.subplots()
        _plots.lines(panel, rows, "width", "ms", _plots.styles(["cpu"]), by="device")
        assert panel.get_xscale() == "log"
        _plots.legend(figure)

    benchmark(two_rows, plot=plot)
    file, now, later = (str(tmp_path / name) for name in ("rows.json", "now.svg", "later.svg"))
    given = ["memory", "--width", "4", "--json", file]
    assert command.main([*given, "--plot", now]) == 0
    assert command.main(["plot", file, "--out", later]) == 0
    assert drawn[0] == drawn[1] and drawn[0][0]["device"] == "cpu" and len(drawn[0]) == 2
    assert Path(now).read_text().startswith("<?xml") and Path(later).exists()
    assert command.main(["plot", file, file, "--out", later]) == 0
    assert len(drawn[2]) == 4

    other = json.loads(Path(file).read_text()) | {"benchmark": "scaling"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "rows only.json").write_text("[]")
    (tmp_path / "empty.json").write_text('{"experiment": "digits", "rows": []}')
    capsys.readouterr()
    for wrong, says in (
        ([file, tmp_path / "other.json"], "of one benchmark, the files are of memory, scaling"),
        ([tmp_path / "rows only.json"], "was not written by python -m benchmarks"),
        ([tmp_path / "empty.json"], "has no rows to draw"),
        ([tmp_path / "nothing.json"], "cannot read"),
    ):
        assert command.main(["plot", *map(str, wrong), "--out", later]) == 2
        assert says in capsys.readouterr().err


def test_the_list_names_all_without_loading_jax():
    code = (
        "import sys\nfrom benchmarks.__main__ import main\nassert main([]) == 0\n"
        "assert not {'jax', 'numpy', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == list(command.BENCHMARKS)
    assert all(text.endswith(".") for _, text in lines)


def test_every_benchmark_is_in_the_list():
    files = {path.stem for path in command.FOLDER.glob("[!_]*.py")}
    # A training as users write it.
    assert files == {*command.BENCHMARKS, "train_script"}


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_every_benchmark_is_one(name, capsys):
    benchmark = command.load(name)
    assert isinstance(benchmark, Benchmark)
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--quick" in text and "--json" in text
    assert command.description(name).partition("\n")[0] in text
    options, _ = command.parse(name, benchmark, ["--quick"])
    assert isinstance(options, argparse.Namespace) and options.quick


def test_all_runs_each_in_a_process_and_lists_what_was_skipped(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "BENCHMARKS", ("gpu",))
    assert command.main(["all", "--quick", "--json", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "skipped: gpu cannot run here: there is no accelerator; --rehearse" in out
    assert list(tmp_path.iterdir()) == []


def test_all_fails_where_one_does_and_goes_on(monkeypatch, tmp_path, capsys):
    codes, commands = iter([1, 0]), []

    def run(given, **options):
        commands.append(given)
        return SimpleNamespace(returncode=next(codes), stderr="")

    monkeypatch.setattr(command, "BENCHMARKS", ("memory", "scaling"))
    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.main(["all", "--json", str(tmp_path)]) == 1
    assert [each[3:] for each in commands] == [
        [name, "--json", str(tmp_path / f"{name}.json")] for name in ("memory", "scaling")
    ]
    out = capsys.readouterr().out
    assert "failed, exit code 1" in out and "passed" in out
    assert command.main(["all", "--json", str(tmp_path / "nowhere")]) == 2
