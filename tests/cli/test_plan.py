"""`rnnscale plan`, compiled for virtual devices of the CPU."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rnnscale._errors import UserError
from rnnscale.cli import main
from rnnscale.plan import HARDWARE
from rnnscale_kernels.testing import missing

TINY = "--dim 8 --state-dim 8 --depth 1".split()


def plan(*arguments: str) -> int:
    return main(["plan", *arguments, *TINY])


def test_a_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "plan.json"
    options = ["--mesh", "data=4,tensor=2", "--json", str(file)]
    assert plan("digits", "--target", "cpu:8", *options) == 0
    found = json.loads(file.read_text())
    assert found["devices"] == 8 and found["virtual"] and "virtual" in found["compiled_for"]
    assert found["options"]["dim"] == 8 and found["options"]["model"] == "s5"
    meshes = {name: found[name]["mesh"] for name in ("compiled", "estimated", "smaller", "larger")}
    axes = {"data": 4, "fsdp": 1, "tensor": 2, "seq": 1}
    assert meshes == {
        "compiled": axes,
        "estimated": axes,
        "smaller": {**axes, "data": 2},
        "larger": {**axes, "data": 8},
    }
    sources = [found[name]["source"] for name in meshes]
    assert sources == ["compiled", "estimated", "estimated", "estimated"]
    kinds = ("parameters", "optimiser", "batch", "activations", "temporaries")
    for name in meshes:
        memory = found[name]["memory"]
        assert memory["total"] == sum(memory[kind] for kind in kinds)
        assert found[name]["flops"] > 0
    assert found["hardware"] is None and found["compiled"]["bound"] is None
    over = {tuple(each["axes"]) for each in found["compiled"]["collectives"]}
    assert {("data",), ("tensor",)} <= over
    printed = capsys.readouterr().out
    assert "compiled for 8 virtual CPU devices" in printed
    assert "larger" in printed and "all-reduce" in printed


def test_an_absent_compiler_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("rnnscale.plan._topology.missing", lambda name: "needs jax-cuda13-plugin")
    assert plan("digits", "--target", "h100:8", "--json", "-") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["virtual"]
    assert found["compiled_for"] == "8 virtual CPU devices (needs jax-cuda13-plugin)"
    # Compiled for the CPU, compared with the datasheet of the target.
    assert found["hardware"]["name"] == HARDWARE["h100"].name
    assert found["compiled"]["fits"] and found["compiled"]["bound"]["step"] > 0
    assert "needs jax-cuda13-plugin" in printed.err and "NVIDIA H100 datasheet" in printed.err


def test_a_search_compiles_the_best_three(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked: list[dict[str, int]] = []

    def compile_apart(given, target, iterations):
        asked.append(given["mesh"])
        if len(asked) == 2:
            raise UserError("install rnnscale[aot]")  # as rich would not print it in its markup
        memory, collectives = {"total": 1000}, [{"sent": 10.0}]
        return {"compiled": {"memory": memory, "collectives": collectives, "bound": {"step": 1.0}}}

    monkeypatch.setattr("rnnscale.cli._plan._compile_apart", compile_apart)
    file = tmp_path / "search.json"
    options = ["--search", "--batch-size", "6", "--json", str(file)]
    assert plan("digits", "--target", "h100:4", *options) == 0
    found = json.loads(file.read_text())
    ranked = [each["mesh"] for each in found["estimated"]]
    assert asked == ranked[:3] and len(ranked) > 3
    assert found["compiled"][1] == {"mesh": asked[1], "reason": "install rnnscale[aot]"}
    printed = capsys.readouterr().out
    assert "does not compile: install rnnscale[aot]" in printed
    total = found["estimated"][0]["memory"]["total"]
    assert f" {1000 / total:.2f} " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("digits", "--target"),
        ("digits --target b300:8", "target must be one of"),
        ("digits --target v5e:8", "write it like 'v5e:4x4'"),
        ("digits --target cpu:8 --mesh data=4", "the mesh needs 4 devices"),
        ("digits --target cpu:8 --mesh model=8", "unknown mesh axis 'model'"),
        ("digits --target cpu:8 --batch-size 12", "make it a multiple of 8"),
        ("digits --target cpu:8 --json nowhere/x.json", "there is no folder nowhere"),
        ("digits --target cpu:8 --search --mesh data=8", "leave out --mesh"),
        ("digits --target cpu:7 --search --model indrnn", "over any mesh of 7"),
        ("digits --target cpu:8 --iterations 5", "leave them out, or give parallel"),
        ("digit --target cpu:8", "did you mean 'digits'"),
    ],
)
def test_bad_input_is_one_line(arguments: str, message: str, error_line: Callable[..., str]):
    assert message in error_line("plan", *arguments.split(), *TINY)


def test_a_plan_for_data_of_ones_own_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [f"{person},{step},{person % 2}" for person in range(12) for step in range(4)]
    (tmp_path / "ward.csv").write_text("\n".join(["patient,pulse,outcome", *rows]))
    columns = ["--group", "patient", "--label", "outcome"]
    options = ["--target", "cpu:1", "--batch-size", "4"]
    assert plan("--data", str(tmp_path / "ward.csv"), *columns, *options) == 0
    assert capsys.readouterr().out.startswith("ward, s5 on cpu:1, data=1; compiled for")


@pytest.mark.slow
def test_a_search_compiles_in_a_process_of_its_own(tmp_path: Path):
    """For a single device, which has a single mesh."""
    file = tmp_path / "search.json"
    # Options that are no plain words have to reach the other process too.
    hybrid = ["--model", "slstm", "--cell", "conv_width=none", "--every", "2", "attention"]
    options = ["--target", "cpu:1", "--search", "--no-remat", "--json", str(file)]
    assert main(["plan", "digits", *TINY, *hybrid, "--depth", "2", *options]) == 0
    found = json.loads(file.read_text())
    (estimated,), (compiled,) = found["estimated"], found["compiled"]
    assert compiled["compiled"]["mesh"] == estimated["mesh"]
    assert compiled["compiled"]["source"] == "compiled"


@pytest.mark.slow
def test_no_device_is_looked_for(monkeypatch: pytest.MonkeyPatch):
    """In a process whose environment does not name a platform."""
    if reason := missing("h100:8"):
        pytest.skip(reason)
    monkeypatch.delenv("JAX_PLATFORMS")
    command = [sys.executable, "-m", "rnnscale", "plan", "digits", "--target", "h100:8", *TINY]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0 and process.stderr == ""
    assert "compiled for h100:8" in process.stdout
