"""The exchange of totals among the threads that take parts of time of the same channel.

In one turn, a team takes parts that follow one another in time. A thread knows the total of its
part, and needs the state that enters the part. Totals are exchanged in two stages: among the
threads of a program through its shared memory, and among the programs of a cluster, which a GPU
runs at the same time, through the shared memory of each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .._cluster import cluster_arrive, cluster_wait
from ._mosaic_gpu_plan import Division
from ._steps import Linear, Total, compose
from ._tma_pipeline import WARPGROUP, Tiles, one_a_thread

MEMBER = "rnnscale_member"
"""The axis of a kernel along which the programs of a cluster are numbered."""


class Team(NamedTuple):
    """The threads that share a row and its channels.

    - `division`: programs in the cluster, and warpgroups in a program.
    - `member`, `warpgroup`: the number of this program in the cluster, and of this warpgroup in the
        program.
    - `tiles`: the tiles that this warpgroup takes.
    """

    division: Division
    member: Any
    warpgroup: Any
    tiles: Tiles


Share = Callable[[Any, Total, Any], tuple[Any, Any]]
"""`(entering, after) = share(i, total, carry)`, called by all threads in every turn `i`: the carry
that enters the part of this thread, and the carry after all parts, if `carry` enters the first."""


def exchanging(run: Callable[[Share], None], team: Team, linear: Linear, fields: int, between):
    """Calls `run` with the function by which the team exchanges totals of `fields` numbers.

    Buffers are used in turns. A thread writes to a buffer again only after a later exchange, and
    all threads have read the buffer before they take part in that one.

    `between` is a list with an array in device memory, which takes the place of the shared memory
    of a cluster in the interpreter; on a GPU it is empty.
    """
    division = team.division
    parts, lanes = team.tiles.shape

    def scoped(within, among, within_done, among_done):
        run(partial(_share, team, linear, within, among, within_done, among_done, between))
        if division.cluster > 1:
            _meet(among_done)  # no program ends while another one reads its shared memory

    pl.run_scoped(
        scoped,
        # A total is stored once for each part, so that the threads of each part can read all.
        plgpu.SMEM(
            (division.within, fields, division.warpgroups, parts, parts, lanes), jnp.float32
        ),
        plgpu.SMEM((2, fields, parts, lanes), jnp.float32) if division.cluster > 1 else None,
        plgpu.Barrier(num_arrivals=division.warpgroups),
        plgpu.ClusterBarrier(collective_axes=(MEMBER,), num_arrivals=division.warpgroups)
        if between
        else None,
        collective_axes=WARPGROUP,
    )


def _share(
    team: Team, linear: Linear, within, among, within_done, among_done, between, i, total, carry
):
    tiles, division = team.tiles, team.division
    threads = division.warpgroups * tiles.parts
    mine = team.warpgroup * tiles.parts + tiles.part()
    leaves, structure = jax.tree.flatten(total)

    def read(refs):
        return jax.tree.unflatten(structure, [one_a_thread(ref[...]) for ref in refs])

    # 1. The total of the program, and that of the parts before this one.
    before = total
    if threads > 1:
        slot = lax.rem(i, division.within)
        for field, x in enumerate(leaves):
            for copy in range(tiles.parts):
                within[slot, field, team.warpgroup, copy] = x
        plgpu.barrier_arrive(within_done)
        plgpu.barrier_wait(within_done)
        for n in range(threads):
            warpgroup, part = divmod(n, tiles.parts)
            part = tiles.parts - 1 - part if tiles.descending else part
            one = read([within.at[slot, f, warpgroup, :, part] for f in range(len(leaves))])
            before = one if n == 0 else _where(mine == n, total, before)
            total = one if n == 0 else compose(one, total)
    # 2. The carry that enters the program, and the one after the cluster.
    entering = carry
    if division.cluster == 1:
        carry = linear.through(total, carry)
    else:
        slot = lax.rem(i, 2)
        own, of_member = _published(team, slot, among, between)

        @pl.when(team.warpgroup == 0)
        def _():
            for field, x in enumerate(jax.tree.leaves(total)):
                own[field] = x

        _meet(among_done)
        for n in range(division.cluster):
            if n > 0:
                is_next = jnp.broadcast_to(team.member == n, tiles.shape)
                entering = _where(is_next, carry, entering)
            one = read([of_member(n).at[f] for f in range(len(leaves))])
            carry = linear.through(one, carry)
    # 3. The carry that enters the part of this thread.
    if threads > 1:
        entering = _where(mine == 0, entering, linear.through(before, entering))
    return entering, carry


def _published(team: Team, slot, among, between) -> tuple[Any, Callable[[int], Any]]:
    """Where this program publishes its total, and where each member of the cluster does."""
    if between:
        (ref,) = between
        return ref.at[slot, team.member], lambda n: ref.at[slot, n]
    return among.at[slot], lambda n: plgpu.cluster_ref(among, {MEMBER: n}).at[slot]


def _meet(barrier) -> None:
    """Waits for all threads of the cluster, and makes what they wrote visible: at the barrier that
    a GPU has for it, or at the one given."""
    if barrier is None:
        cluster_arrive()
        cluster_wait()
    else:
        plgpu.commit_smem()
        plgpu.barrier_arrive(barrier)
        plgpu.barrier_wait(barrier)


def _where(condition, x, y):
    return jax.tree.map(partial(jnp.where, condition), x, y)
