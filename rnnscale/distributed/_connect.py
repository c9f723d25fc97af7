"""Connecting the processes of a program, from arguments or from what the environment says, with
errors in one line where jax alone would wait for long or abort."""

import os
import socket
import sys
import threading
from time import monotonic, sleep
from typing import NoReturn

import jax

# Not public, but jax has no public way to ask for any of this.
from jax._src import distributed, xla_bridge
from jax._src.clusters import ClusterEnv, K8sCluster

from rnnscale._errors import UserError

# jax ends all processes when one of them has not reported for this long.
_HEARTBEAT_SECONDS = 20
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

# The coordinator's address, the number of processes, and the number of this one.
type _Place = tuple[str | None, int | None, int | None]
_NOWHERE: _Place = (None, None, None)


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    minutes: float = 5.0,
) -> None:
    """Makes this process one of several that run the same program on the devices of them all.

    Call it at the beginning of a program, before anything uses a device. Without arguments, the
    environment decides:

    - the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, which are
        the three arguments;
    - otherwise what jax finds: SLURM (`srun`), Open MPI (`mpirun`; from version 5 on with `mpi4py`
        installed), TPU pods, and indexed jobs of Kubernetes with `kubernetes` installed.

    If the environment names no other process, this does nothing. Nor does a second call.

    **Arguments:**

    - `coordinator`: `HOST:PORT` at which process 0 can be reached from all others. It listens
        there.
    - `processes`: number of processes, at least 1. With 1, the environment is ignored.
    - `process`: the number of this process, 0 to `processes - 1`.
    - `minutes`: how long to wait for the other processes.

    **Raises:** `ValueError` if arguments or variables are incomplete or out of range, if jax is
    running already, or if nothing answers at the coordinator's address in time. If the coordinator
    answers, but not all processes come, this process ends with a message and exit code 2, since
    nothing can interrupt jax while it waits for them.
    """
    if jax.distributed.is_initialized() or (processes == 1 and coordinator is None):
        return
    place = coordinator, processes, process
    if place == _NOWHERE:
        place = _from_variables()
    detection = "deactivate"
    if place == _NOWHERE:
        place = _from_cluster(minutes)
        detection = None  # SLURM and MPI start a process for each GPU, and jax gives it that one
    if place == _NOWHERE:
        return
    coordinator, processes, process = _complete(*place)
    if processes > 1:
        _initialize(coordinator, processes, process, minutes, detection)


def process_count() -> int:
    """The number of processes that run this program. Unlike jax's own function, this starts no
    devices."""
    return distributed.global_state.num_processes


def process_index() -> int:
    """The number of this process, from 0. Unlike jax's own function, this starts no devices."""
    return distributed.global_state.process_id


def end(message: str, code: int) -> NoReturn:
    """Ends the process from any thread, with a message and an exit code, without waiting for the
    others."""
    print(f"rnnscale: error: {message}", file=sys.stderr, flush=True)
    os._exit(code)


def _initialize(
    coordinator: str, processes: int, process: int, minutes: float, detection: str | None
) -> None:
    if xla_bridge.backends_are_initialized():
        raise UserError(
            "connect comes too late: jax is running already; call it before anything uses a device"
        )
    start = monotonic()
    if process:
        _wait_for(coordinator, 60 * minutes)
    missing = threading.Timer(
        60 * minutes - (monotonic() - start),
        end,
        args=(
            f"process {process} reached {coordinator}, but not all {processes} processes did within"
            f" {minutes:g} minutes; start them all, each with a number of its own",
            2,
        ),
    )
    missing.daemon = True
    missing.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=detection,
            # Longer than our own limit, since jax's ends the process with a stack of C++ calls.
            initialization_timeout=int(60 * minutes) + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"process {process} can't start at {coordinator}: {error}; is the port free?"
        ) from error
    finally:
        missing.cancel()


def _from_variables() -> _Place:
    values = [os.environ.get(name) for name in _VARIABLES]
    if values == [None, None, None]:
        return _NOWHERE
    address, processes, process = values
    if processes is None or process is None or not (processes + process).isdecimal():
        given = ", ".join(f"{n}={v}" for n, v in zip(_VARIABLES, values, strict=True))
        raise UserError(f"{', '.join(_VARIABLES)} go together, and two are numbers; got {given}")
    return address, int(processes), int(process)


def _from_cluster(minutes: float) -> _Place:
    """What jax finds out from the cluster that this process runs on."""
    for cluster in ClusterEnv._cluster_types:
        if cluster.opt_in_only_method:
            continue
        # Every pod is in Kubernetes, but only those of an indexed job belong together.
        if cluster is K8sCluster and "JOB_COMPLETION_INDEX" not in os.environ:
            continue
        if not cluster.is_env_present():
            continue
        try:
            processes = cluster.get_process_count()
            if processes == 1:
                return _NOWHERE
            address = cluster.get_coordinator_address(
                timeout_secs=int(60 * minutes),
                override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
            )
            return address, processes, cluster.get_process_id()
        except RuntimeError as error:
            raise UserError(
                f"this process seems to be part of a cluster, but jax can't say which part: {error}"
                " Give coordinator, processes and process, or processes=1 for this one alone"
            ) from error
    return _NOWHERE


def _complete(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int]:
    if coordinator is None or processes is None or process is None:
        raise UserError(
            f"coordinator, processes and process go together, got {coordinator!r}, {processes} and "
            f"{process}; give all three, or none to look at the environment"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"coordinator must be HOST:PORT, got {coordinator!r}")
    if processes < 1:
        raise UserError(f"processes must be at least 1, got {processes}")
    if not 0 <= process < processes:
        raise UserError(f"process must be 0 to {processes - 1} of {processes}, got {process}")
    return coordinator, processes, process


def _wait_for(coordinator: str, seconds: float) -> None:
    """Waits until something answers at the address. jax's own attempt would end in an abort."""
    host, _, port = coordinator.rpartition(":")
    until = monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if monotonic() > until:
                raise UserError(
                    f"the coordinator {coordinator} can't be reached after {seconds / 60:g} minutes"
                    f" ({error}); start process 0 there, and open the port"
                ) from error
        sleep(0.5)
