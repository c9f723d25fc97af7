"""The exchange of arrays among the programs of a cluster, one in each step.

Every program sends an array to each program of its cluster, itself included, and finds in its inbox
what the others have sent to it. The exchange also keeps the programs at the same step.
"""

from abc import ABC, abstractmethod
from typing import Any

from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._cluster import cluster_arrive, cluster_wait

AXIS = "rnnscale_program"
"""The axis of the cluster."""


class Exchange(ABC):
    """What arrives in shared memory, `inbox`, with the axes "slot sender unit row".

    A step calls `send`, does what it can without the others, calls `receive`, reads, and calls
    `release`.
    """

    def __init__(self, inbox: Any):
        self.inbox = inbox
        self.slots = inbox.shape[0]

    def slot(self, i):
        """The slot of step `i`."""
        return lax.rem(i, self.inbox.shape[0])

    @abstractmethod
    def send(self, i, pieces: list) -> None:
        """Sends `pieces[p]` to program `p`, for step `i`."""

    @abstractmethod
    def receive(self, i) -> None:
        """Waits until all pieces of step `i` have come, for threads and tensor cores to read."""

    @abstractmethod
    def release(self) -> None:
        """Marks the end of all reads of a slot. If there is only one slot, `send` waits for it."""

    @abstractmethod
    def close(self) -> None:
        """Waits for the others' last `release`, if nothing is sent after it."""


class Alone(Exchange):
    """One program, which has all units."""

    def send(self, i, pieces: list) -> None:
        plgpu.commit_smem()  # all threads have read the last piece
        self.inbox[0, 0] = pieces[0]

    def receive(self, i) -> None:
        plgpu.commit_smem()

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


class ThroughSharedMemory(Exchange):
    """Programs write to each other's shared memory, and meet at the barrier of the cluster.

    The writes of all threads are released to the cluster as they arrive at the barrier, and are
    acquired as they leave it.
    """

    def send(self, i, pieces: list) -> None:
        if self.slots == 1:
            cluster_wait()
        me = lax.axis_index(AXIS)
        for p, piece in enumerate(pieces):
            plgpu.cluster_ref(self.inbox, {AXIS: p}).at[self.slot(i), me][...] = piece
        cluster_arrive()

    def receive(self, i) -> None:
        cluster_wait()
        plgpu.commit_smem()  # tensor cores see what threads have written

    def release(self) -> None:
        if self.slots == 1:
            cluster_arrive()

    def close(self) -> None:
        if self.slots == 1:
            cluster_wait()


class ThroughMemory(Exchange):
    """The same through device memory, for the interpreter, which has no shared memory of others.

    - `mailbox`: "slot receiver sender unit row".
    - `met`: a barrier of the cluster; `arrived`: one for copies.
    """

    def __init__(self, inbox: Any, mailbox: Any, met: Any, arrived: Any):
        super().__init__(inbox)
        self.mailbox, self.met, self.arrived = mailbox, met, arrived

    def send(self, i, pieces: list) -> None:
        if self.slots == 1:
            plgpu.barrier_wait(self.met)
        me = lax.axis_index(AXIS)
        for p, piece in enumerate(pieces):
            self.mailbox[self.slot(i), p, me] = piece
        plgpu.barrier_arrive(self.met)

    def receive(self, i) -> None:
        plgpu.barrier_wait(self.met)
        slot = self.slot(i)
        source = self.mailbox.at[slot, lax.axis_index(AXIS)]
        plgpu.copy_gmem_to_smem(source, self.inbox.at[slot], self.arrived)
        plgpu.barrier_wait(self.arrived)

    def release(self) -> None:
        if self.slots == 1:
            plgpu.barrier_arrive(self.met)

    def close(self) -> None:
        if self.slots == 1:
            plgpu.barrier_wait(self.met)
