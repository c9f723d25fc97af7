"""What test_processes.py runs in several processes: `processes_script.py WHAT [ARGUMENT]`."""

import dataclasses
import hashlib
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from rnnscale.distributed import Watchdog, connect, process_count, process_index
from rnnscale.distributed._collectives import all_reduce, barrier, check_same, on_process_0
from rnnscale.distributed._event import Event
from rnnscale.distributed._store import get, put
from rnnscale.runs import RunFolder, TrainConfig, run, set_up
from rnnscale.sharding import make_mesh
from rnnscale.tasks import load_task
from rnnscale.training import Checkpointer

HERE = Path("here")  # each process is in a folder of its own


def environment(_: str) -> None:
    print("process", process_index(), "of", process_count())


def together(folder: str) -> None:
    """All collectives of the host, one after the other."""
    count, here = process_count(), process_index()
    print("first:", on_process_0(lambda: [process_index()]))
    print("sum:", all_reduce(here, sum))
    told("error", lambda: on_process_0(lambda: RunFolder(__file__).check(resume=False)))
    told("other error", lambda: on_process_0(lambda: 1 // 0))
    put(f"at once/{here}", {})
    print("at once:", [get(f"at once/{here}", 0.0) for _ in range(200)] == [{}] * 200)
    check_same({"batch_size": 8, "mesh": {"data": 2}})
    told("options", lambda: check_same({"batch_size": 8, "seed": min(here, 1), "depth": here}))
    RunFolder(folder).check_shared()
    told("folder", lambda: RunFolder(HERE).check_shared(seconds=0.5))

    # The calls of each process have their own pace. The last asks at once, the one before when what
    # the last asked for has come; there is time for more to come than that.
    something = Event()
    came = []
    for call in range(1, 5001):
        if (here == count - 1 and call == 30) or (here == count - 2 and came == [call - 10]):
            something.request()
        if something.has_occurred():
            came.append(call)
        if len(came) == 2 and call == came[1] + 50:
            break
        time.sleep(0.002 * (1 + here))
    barrier()
    something.close()
    print("came:", len(came), came)

    if here == 1:
        time.sleep(4)
    told("late", lambda: barrier(minutes=0.03))


def told(what: str, action) -> None:
    try:
        action()
    except (ValueError, TimeoutError, RuntimeError, ZeroDivisionError) as error:
        print(f"{what}: {type(error).__name__}: {error}")


def failing(_: str) -> None:
    with Watchdog(minutes=1):
        if process_index() == 1:
            raise ValueError("the disk is full")
        time.sleep(60)


def failing_alike(_: str) -> None:
    with Watchdog(minutes=1):
        time.sleep(process_index())
        raise ValueError("the disk is full")


def stuck(_: str) -> None:
    with Watchdog(minutes=0.01) as watchdog:
        for step in range(1, 8):
            watchdog.finished(step)
            time.sleep(0.05)
        time.sleep(60)


def stuck_in_training(out: str) -> None:
    """The data of one process do not come any more, after a few steps."""
    task = load_task("adding", seq_len=8)

    class Slow:
        def __len__(self) -> int:
            return len(task.train)

        def __getitem__(self, index: int):
            self.taken = getattr(self, "taken", 0) + 1
            if process_index() == 1 and self.taken > 80:
                time.sleep(600)
            return task.train[index]

    def load(*_, **__):
        return dataclasses.replace(task, train=Slow())

    sys.modules["rnnscale.runs._setup"].load_task = load
    options = {"dim": 8, "depth": 1, "batch_size": 8, "stuck_minutes": 0.05, "log_every": 1}
    run(TrainConfig.for_task("adding", model="indrnn", out=out, seq_len=8, **options))


def digest(out: str) -> None:
    """A hash of all arrays of the newest checkpoint, restored on the devices that there are."""
    print("digest:", digest_of(RunFolder(out)))


def digest_of(folder: RunFolder) -> str:
    config = TrainConfig(**folder.config())
    mesh = make_mesh(**(config.mesh or {}))
    like = set_up(config, load_task(config.task), mesh).abstract_state()
    with jax.set_mesh(mesh), Checkpointer(folder.checkpoints) as checkpoints:
        restored = checkpoints.restore(like, jax.tree.map(lambda x: x.sharding, like))
    assert restored is not None
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(restored[0])
    ]
    whole = [np.asarray(multihost_utils.process_allgather(x, tiled=True)) for x in leaves]
    return hashlib.sha256(b"".join(x.tobytes() for x in whole)).hexdigest()


if __name__ == "__main__":
    what, argument = sys.argv[1], "".join(sys.argv[2:3])
    connect(minutes=1)
    globals()[what](argument)
    print("done")
