"""Several processes on this machine, over gloo. Each takes seconds to start, so a group of them
shows everything that it can before it ends."""

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax._src.clusters import K8sCluster

from rnnscale._errors import UserError
from rnnscale.cli import main
from rnnscale.distributed import _connect, connect
from rnnscale.runs import RunFolder

SCRIPT = Path(__file__).with_name("processes_script.py")
TRAIN_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_script.py"
STEPS = 90
TINY = (
    "--dim 8 --state-dim 16 --depth 1 --batch-size 8 --log-every 1 --learning-rate 1e-3 "
    f"--mesh data=2,fsdp=2,tensor=2 --steps {STEPS}"
).split()


class Group:
    """Processes that were started together. Their outputs go to files: a full pipe would block."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.processes: list[subprocess.Popen] = []

    def start(self, command: list[str], **environment: str) -> None:
        here = self.folder / str(len(self.processes))
        here.mkdir(parents=True)
        with (here / "output").open("w") as output:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    cwd=here,
                )
            )

    def output(self, process: int) -> str:
        return (self.folder / str(process) / "output").read_text()

    def outputs(self) -> str:
        return "\n".join(self.output(i) for i in range(len(self.processes)))

    def wait(self, seconds: float = 300) -> list[int]:
        """The exit codes."""
        until = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(until - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                pytest.fail(f"still running after {seconds} s:\n{self.outputs()}")
        return [process.returncode for process in self.processes]

    def wait_for(self, what: Callable[[], bool], seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not what():
            assert all(process.poll() is None for process in self.processes), self.outputs()
            assert time.monotonic() < until, self.outputs()
            time.sleep(0.01)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Group]]:
    groups = []

    def new() -> Group:
        groups.append(Group(tmp_path_factory.mktemp("group")))
        return groups[-1]

    yield new
    for each in groups:
        each.end()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_script(
    group: Group, count: int, what: str, argument: str = "", devices: int = 1
) -> Group:
    """The environment says what each process is part of."""
    address = f"localhost:{free_port()}"
    for i in range(count):
        group.start(
            [str(SCRIPT), what, argument],
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES=str(count),
            JAX_PROCESS_ID=str(i),
            JAX_NUM_CPU_DEVICES=str(devices),
        )
    return group


def start_training(
    group: Group, count: int, *arguments: str, devices: int, environment: Mapping[str, str] = {}
) -> Group:
    """The arguments say what each process is part of."""
    address = f"localhost:{free_port()}"
    for i in range(count):
        command = ["-m", "rnnscale", "train", *arguments, "--cpu-devices", str(devices)]
        command += ["--coordinator", address, "--processes", str(count), "--process", str(i)]
        group.start(command, **environment)
    return group


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in RunFolder(out).rows()]


def saved(out: Path) -> list[int]:
    return sorted(int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdigit())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with 8 devices that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert main(["train", "digits", *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def stopped(group: Callable[[], Group], tmp_path_factory: pytest.TempPathFactory):
    """2 processes of 4 devices; SIGTERM to process 1, after a save that was due by time."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--save-every", "1000", "--save-minutes", "0.005", "--out", str(out)]
    processes = start_training(group(), 2, "digits", *TINY, *options, devices=4)
    processes.wait_for(lambda: bool(saved(out)))
    processes.processes[1].send_signal(signal.SIGTERM)
    return processes, processes.wait(), shutil.copytree(out, out.with_name("stopped"))


@pytest.fixture(scope="module")
def killed(stopped, group: Callable[[], Group]):
    """Continues as 4 processes of 2 devices, over time instead of parameters; SIGKILL to one."""
    out = stopped[2].with_name("run")
    before = len(losses(out))
    options = ["--save-minutes", "100", "--save-every", "5", "--mesh", "data=2,seq=4"]
    processes = start_training(group(), 4, "--resume", "--out", str(out), *options, devices=2)
    processes.wait_for(lambda: len(losses(out)) > before + 8)
    processes.processes[2].kill()
    start = time.monotonic()
    codes = processes.wait()
    return processes, codes, time.monotonic() - start, out


def test_sigterm_to_one_saves_in_all_at_one_step(stopped):
    processes, codes, out = stopped
    assert codes == [0, 0], processes.outputs()
    last = losses(out)[-1][0]
    assert last < STEPS and saved(out)[-1] == last
    first, other = processes.output(0), processes.output(1)
    assert "SIGTERM: stopping after this step" in other and "SIGTERM" not in first
    assert "another process was asked to stop" in first
    assert f"continue with: rnnscale train --resume --out {out.with_name('run')}" in first
    # Process 0 alone logs the steps.
    assert f"step {last}/{STEPS}" in first
    assert "step " not in other.replace("this step", "") and "continue with" not in other
    assert not (out / "summary.json").exists()


def test_saves_by_time_in_all_at_one_step(stopped):
    _, _, out = stopped
    # The first one was due by time; the last one is that of the signal.
    assert saved(out)[0] < losses(out)[-1][0]
    for step in saved(out):
        assert (out / "checkpoints" / str(step) / "manifest.json").is_file()


@pytest.mark.slow
def test_sigkill_of_one_ends_the_others(killed):
    processes, codes, seconds, _ = killed
    assert codes[2] == -signal.SIGKILL
    assert all(code not in (0, None) for code in codes), codes
    assert seconds < 30
    for i in (0, 1, 3):
        assert re.search("Connection closed by peer|another task died|failed:", processes.output(i))


@pytest.mark.slow
def test_killed_again_it_loses_nothing_that_was_saved(killed, group: Callable[[], Group]):
    """One process is killed, while it starts or at any moment after, and the other a little later.
    A session has another number of processes than the one before."""
    *_, out = killed
    rng = np.random.default_rng(0)
    options = ["--out", str(out), "--mesh", "data=2,fsdp=2,tensor=2"]
    for starting in (True, False):
        newest = max(saved(out))
        processes = start_training(group(), 2, "--resume", *options, devices=4)
        if starting:
            time.sleep(rng.uniform(0, 6))
        else:
            rows = len(losses(out)) + int(rng.integers(1, 12))
            processes.wait_for(lambda rows=rows: len(losses(out)) >= rows)
        processes.processes[rng.integers(2)].kill()
        time.sleep(rng.uniform(0, 0.5))
        processes.end()
        resumed = re.findall(r"resuming after step (\d+)", processes.output(0))
        assert all(int(step) >= newest for step in resumed) and (starting or resumed)
        assert max(saved(out)) >= newest


@pytest.mark.slow
def test_continues_elsewhere_with_the_same_losses(killed, uninterrupted: Path):
    """After sessions of 2 x 4, 4 x 2 and 2 x 4 devices the rest runs on 1 x 8."""
    *_, out = killed
    options = ["--cpu-devices", "8", "--mesh", "data=8"]
    assert main(["train", "--resume", "--out", str(out), *options]) == 0
    steps, values = zip(*losses(out), strict=True)
    expected_steps, expected = zip(*losses(uninterrupted), strict=True)
    assert steps == expected_steps == tuple(range(1, STEPS + 1))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (out, uninterrupted)]
    for name in ("test_loss", "test_accuracy"):
        np.testing.assert_allclose(summaries[0][name], summaries[1][name], rtol=1e-5)


@pytest.fixture(scope="module")
def together(stopped, group: Callable[[], Group], tmp_path_factory: pytest.TempPathFactory):
    """4 processes of 2 devices that do everything that needs no training; then two of them fail."""
    *_, out = stopped
    folder = tmp_path_factory.mktemp("together")
    run = shutil.copytree(out, folder / "run")
    shared = folder / "other" / "shared"
    processes = start_script(group(), 4, "everything", f"{shared},{run}", devices=2)
    codes = processes.wait()
    printed = [dict(re.findall(r"^(.+?): (.*)$", processes.output(i), re.M)) for i in range(4)]
    return processes, codes, printed, shared


@pytest.mark.slow
def test_parameters_are_bit_equal_on_any_number_of_processes(stopped, together, tmp_path: Path):
    """What 2 processes saved, restored by 1 and by 4."""
    here = shutil.copytree(stopped[2], tmp_path / "copy")
    digest = runpy.run_path(str(SCRIPT))["digest_of"](RunFolder(here))
    assert [each["digest"] for each in together[2]] == [digest] * 4


def test_collectives_between_processes(together):
    _, _, printed, shared = together
    for i, each in enumerate(printed):
        assert each["first"] == "[0]" and each["sum"] == "6"
        assert each["error"].startswith("UserError: out=") and "is a file" in each["error"]
        kind = "ZeroDivisionError: " if i == 0 else "RunFailedError: process 0 failed with Zero"
        assert each["other error"].startswith(kind)
        assert each["at once"] == "True"  # without any time to wait
        assert "disagree on seed: process 0 has 0, process 1 has 1" in each["options"]
        assert "not the same folder in all processes" in each["folder"]
        assert "not seen by process 1, 2, 3" in each["folder"]
        assert each["late"].startswith("ProcessMissingError: of 4 processes, these did not come")
        assert each["late"].endswith(": 1")
        # Twice, at the same calls, though each process calls and requests at its own pace.
        assert each["occurred"] == printed[0]["occurred"] and each["occurred"].startswith("2 ")
    assert [p.name for p in shared.parent.rglob("*")] == ["shared"]


def test_a_failure_is_reported_and_ends_all(together):
    processes, codes, *_ = together
    assert codes == [1, 1, 1, 1], processes.outputs()
    last = [processes.output(i).splitlines()[-1] for i in range(4)]
    # Each of those that fail by themselves says why.
    assert last[1] == last[2] == "ValueError: the disk is full"
    for i in (0, 3):
        assert re.match(
            "rnnscale: error: process [12] failed: the disk is full; this ends", last[i]
        )


def test_a_stuck_process_is_ended_but_not_one_that_compiles(
    group: Callable[[], Group], tmp_path: Path
):
    two = start_script(group(), 2, "stuck_in_training", str(tmp_path / "run"))
    codes = two.wait()
    assert 1 in codes and 0 not in codes
    assert re.search(r"no step finished for 0.06 minutes, the last was step \d+;", two.outputs())


BAD = {
    "--coordinator localhost:{port} --processes 2": ["go together", "None"],
    "--coordinator localhost --processes 2 --process 1": ["HOST:PORT", "'localhost'"],
    "--coordinator localhost:{port} --processes 2 --process 2": ["0 to 1", "got 2"],
    "--coordinator localhost:{port} --processes 0 --process 0": ["at least 1", "got 0"],
    "--coordinator localhost:{port} --processes 2 --process 1": ["comes too late"],
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_arguments_are_one_line(arguments: str, tmp_path: Path, error_line: Callable[..., str]):
    jax.devices()  # for the last one
    given = [*arguments.format(port=free_port()).split(), "--connect-minutes", "0.05"]
    line = error_line("train", "digits", "--out", str(tmp_path / "run"), *given)
    assert all(part in line for part in BAD[arguments]), line


def test_processes_that_do_not_come(group: Callable[[], Group]):
    processes = group()
    address = f"localhost:{free_port()}"
    variables = dict(zip(VARIABLES, (address, "2", "0"), strict=True))
    processes.start([str(SCRIPT), "wait"], **variables)
    assert processes.wait() == [2]
    (line,) = processes.output(0).splitlines()
    assert f"process 0 reached {address}, but not all 2 processes did within 0.03" in line


def test_a_coordinator_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_connect.xla_bridge, "backends_are_initialized", lambda: False)
    with pytest.raises(UserError, match="can't be reached .* start process 0 there"):
        connect(f"localhost:{free_port()}", 2, 1, minutes=0.005)


def test_options_that_differ_end_all_with_one_line(group: Callable[[], Group], tmp_path: Path):
    address = f"localhost:{free_port()}"
    command = ["-m", "rnnscale", "train", "digits", "--cpu-devices", "1", "--processes", "2"]
    processes = group()
    for i in range(2):
        own = ["--coordinator", address, "--process", str(i), "--out", str(tmp_path / "run")]
        processes.start([*command, *own, "--dim", str(8 + i)])
    assert processes.wait() == [2, 2], processes.outputs()
    for i in range(2):
        line = processes.output(i).splitlines()[-1]
        assert line == (
            "rnnscale: error: the processes disagree on dim: process 0 has 8, process 1 has 9; "
            "start them all alike"
        )
    assert not (tmp_path / "run").exists()


def test_a_users_script_runs_in_several_processes(
    group: Callable[[], Group],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    """The same numbers on 8 devices, and on 4 in each of 2 processes that SLURM started."""

    def losses(printed: str) -> list[float]:
        return [float(each) for each in re.findall(r"'loss': ([\d.]+)", printed)]

    command = [str(TRAIN_SCRIPT), str(tmp_path / "shared"), "10", "2"]
    two = group()
    slurm = {**SLURM, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    port = str(free_port())
    for i in range(2):
        own = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_NUM_CPU_DEVICES": "4"}
        two.start(command, **{**slurm, **own, "JAX_COORDINATOR_PORT": port})
    monkeypatch.setattr(sys, "argv", [str(TRAIN_SCRIPT), str(tmp_path / "alone"), "10", "1"])
    runpy.run_path(str(TRAIN_SCRIPT))
    expected = losses(capsys.readouterr().out)  # of step 10, and of the test set
    assert two.wait() == [0, 0], two.outputs()
    assert len(expected) == 2
    assert losses(two.output(0)) == pytest.approx(expected, rel=1e-5)
    # Only process 0 writes the log.
    assert losses(two.output(1)) == pytest.approx(expected[1:], rel=1e-5)


SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "gpu[07,09-11],cpu3",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "run-0.run:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


@pytest.mark.parametrize(
    "environment, expected",
    [
        (SLURM, ("gpu07:61809", 4, 2)),
        ({**SLURM, "JAX_COORDINATOR_PORT": "1234"}, ("gpu07:1234", 4, 2)),
        (OPEN_MPI, ("10.96.0.1:62624", 8, 5)),
        (VARIABLES, ("run-0.run:1234", 2, 1)),
        ({**SLURM, **VARIABLES}, ("run-0.run:1234", 2, 1)),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        # A batch script of SLURM without srun, and a pod that is alone.
        ({"SLURM_JOB_ID": "70001", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({}, None),
    ],
)
def test_finds_out_what_it_is_part_of(
    environment: dict[str, str], expected: Any, monkeypatch: pytest.MonkeyPatch
):
    found = detected(monkeypatch, environment)
    assert found[:1] == ([expected] if expected else [])


def test_an_indexed_job_of_kubernetes(monkeypatch: pytest.MonkeyPatch):
    """With jax's own detection; the answers of the cluster are patched."""
    monkeypatch.setattr(K8sCluster, "is_env_present", classmethod(lambda cls: True))
    monkeypatch.setattr(K8sCluster, "get_process_count", classmethod(lambda cls: 4))
    monkeypatch.setattr(
        K8sCluster, "get_coordinator_address", classmethod(lambda cls, **_: "run-0.run:55527")
    )
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
    assert detected(monkeypatch, environment) == [("run-0.run:55527", 4, 3)]


def test_open_mpi_5_without_what_jax_needs_for_it(monkeypatch: pytest.MonkeyPatch):
    environment = {**OPEN_MPI, "OMPI_VERSION": "5.0.1"}
    del environment["OMPI_MCA_orte_hnp_uri"]
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match="seems to be part of a cluster.*requires mpi4py"):
        detected(monkeypatch, environment)


def test_one_process_can_be_alone_in_a_cluster(monkeypatch: pytest.MonkeyPatch):
    assert detected(monkeypatch, SLURM, processes=1) == []


@pytest.mark.parametrize("missing", VARIABLES)
def test_variables_that_are_incomplete(missing: str, monkeypatch: pytest.MonkeyPatch):
    environment = {name: value for name, value in VARIABLES.items() if name != missing}
    with pytest.raises(ValueError, match="go together"):
        detected(monkeypatch, environment)


def detected(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], **given: Any) -> list:
    """The arguments that jax would be started with in this environment."""
    others = "OMPI_VERSION JAX_COORDINATOR_PORT KUBERNETES_SERVICE_HOST JOB_COMPLETION_INDEX"
    for name in (*SLURM, *OPEN_MPI, *VARIABLES, *others.split()):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started = []
    monkeypatch.setattr(_connect, "_wait_for", lambda *_: None)
    monkeypatch.setattr(_connect.xla_bridge, "backends_are_initialized", lambda: False)
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **_: started.append(args))
    connect(**given)
    return started
