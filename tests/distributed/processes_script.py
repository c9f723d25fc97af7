"""What test_processes.py runs in several processes: `processes_script.py WHAT [ARGUMENT]`."""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from rnnscale._errors import RunFailedError, UserError
from rnnscale.distributed import (
    Event,
    Watchdog,
    all_reduce,
    barrier,
    check_same,
    connect,
    on_process_0,
    process_count,
    process_index,
)
from rnnscale.distributed._store import get, put

HERE = Path("here")  # each process is in a folder of its own


def wait(folder: str) -> None:
    """Nothing but to connect."""


def everything(folders: str) -> None:
    """All that processes do together without training, one thing after the other, until some of
    them fail."""
    shared, run = folders.split(",")
    collectives(shared)
    event()
    from rnnscale.runs import RunFolder

    print("digest:", digest_of(RunFolder(run)))
    barrier()
    if process_index() == 1:
        time.sleep(6)
    report("late", lambda: barrier(minutes=0.05))
    fail()


def collectives(folder: str) -> None:
    from rnnscale.runs import RunFolder

    here = process_index()
    print("first:", on_process_0(lambda: [process_index()]))
    print("sum:", all_reduce(here, sum))
    report("error", lambda: on_process_0(lambda: RunFolder(__file__).check(resume=False)))
    report("other error", lambda: on_process_0(lambda: 1 // 0))
    put(f"at once/{here}", {})
    print("at once:", [get(f"at once/{here}", 0.0) for _ in range(200)] == [{}] * 200)
    check_same({"batch_size": 8, "mesh": {"data": 2}})
    report("options", lambda: check_same({"batch_size": 8, "seed": min(here, 1), "depth": here}))
    RunFolder(folder).check_shared()
    report("folder", lambda: RunFolder(HERE).check_shared(seconds=0.5))


def event() -> None:
    """Each process makes its calls at its own pace. The last process requests the event early, the
    one before when the first event has occurred; there is time for more to occur than that."""
    count, here = process_count(), process_index()
    something = Event()
    occurred = []
    for call in range(1, 5001):
        if (here == count - 1 and call == 30) or (here == count - 2 and occurred == [call - 10]):
            something.request()
        if something.has_occurred():
            occurred.append(call)
        if len(occurred) == 2 and call == occurred[1] + 50:
            break
        time.sleep(0.002 * (1 + here))
    barrier()
    something.close()
    print("occurred:", len(occurred), occurred)


def report(what: str, action: Callable[[], Any]) -> None:
    try:
        action()
    except (UserError, RunFailedError, ZeroDivisionError) as error:
        print(f"{what}: {type(error).__name__}: {error}", flush=True)


def fail() -> None:
    """Processes 1 and 2 fail by themselves, the others would sleep for long."""
    with Watchdog(minutes=5):
        if process_index() not in (1, 2):
            time.sleep(240)
        time.sleep(process_index() - 1)
        raise ValueError("the disk is full")


def stuck_in_training(out: str) -> None:
    """One process takes longer to compile than all limits: that of a step, that of everything else,
    and the 20 seconds of jax's heartbeat. After a few steps, no more data come for it."""
    from rnnscale.runs import TrainConfig, _setup, run
    from rnnscale.tasks import load_task

    task = load_task("adding", seq_len=8)

    class Slow:
        taken = 0

        def __len__(self) -> int:
            return len(task.train)

        def __getitem__(self, index: int):
            self.taken += 1
            if process_index() == 1 and self.taken > 80:
                time.sleep(600)
            return task.train[index]

    make_loss = _setup.make_loss

    def make_slow_loss(*arguments: Any) -> Callable[..., Any]:
        loss = make_loss(*arguments)

        def slow(*arguments: Any) -> Any:
            if process_index() == 1:
                time.sleep(25)
            return loss(*arguments)

        return slow

    _setup.make_loss = make_slow_loss
    _setup.load_task = lambda *_, **__: dataclasses.replace(task, train=Slow())
    run(
        TrainConfig.for_task(
            "adding", model="indrnn", out=out, seq_len=8, dim=8, depth=1, batch_size=8,
            stuck_minutes=0.06, log_every=1,
        )
    )  # fmt: skip


def digest_of(folder: Any) -> str:
    """A hash of all arrays of the newest checkpoint, restored on the devices that there are."""
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils

    from rnnscale.runs import TrainConfig, set_up
    from rnnscale.runs._setup import load_task_of, make_run_mesh
    from rnnscale.training import Checkpointer

    config = TrainConfig(**folder.config())
    mesh = make_run_mesh(config.mesh)
    like = set_up(config, load_task_of(config), mesh).abstract_state()
    with jax.set_mesh(mesh), Checkpointer(folder.checkpoints) as checkpoints:
        restored = checkpoints.restore(like, jax.tree.map(lambda x: x.sharding, like))
    assert restored is not None
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(restored[0])
    ]
    gathered = [np.asarray(multihost_utils.process_allgather(x, tiled=True)) for x in leaves]
    return hashlib.sha256(b"".join(x.tobytes() for x in gathered)).hexdigest()


if __name__ == "__main__":
    what, argument = sys.argv[1], "".join(sys.argv[2:3])
    connect(minutes=5 if what != "wait" else 0.03)
    {"wait": wait, "everything": everything, "stuck_in_training": stuck_in_training}[what](argument)
    print("done")
