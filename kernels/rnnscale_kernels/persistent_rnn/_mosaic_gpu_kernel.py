"""One program of the kernels: a warpgroup that has some units of some rows, and walks over time.

Arrays in registers are "unit row", all in the layout of a tensor core's accumulator. A product has
the rows of one gate after another, each gate as tall as the program has units, so that all gates of
a unit are in the same thread.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ._mosaic_gpu_exchange import AXIS, Exchange
from ._plan import Plan
from ._pointwise import Planes, Pointwise

_LAYOUT = plgpu.Layout.WGMMA


class Program(NamedTuple):
    """A program, with the units and rows that the axes of the launch give it.

    Arrays in device memory are "... unit row", and flags "time row".

    - `time`: the number of steps; with `reverse` the first of them is the last in memory.
    - `given`, `results`: references to device memory; see the methods.
    - `scratch`: `matrix`, the program's rows of it, gate after gate; `fetched`, the barrier at
        which the first copies arrive; in the backward pass `gates`, the cotangents of its gates.
    """

    plan: Plan
    time: int
    reverse: bool
    pointwise: Pointwise
    exchange: Exchange
    given: dict[str, Any]
    results: dict[str, Any]
    scratch: dict[str, Any]

    def forward(self) -> None:
        """Walks over time, from the first step to the last.

        - `given`: `matrix`, "gate unit unit"; `drive` and `extras`, "time gate unit row"; `state`,
            the states before the first step, and `h0`, the first of them in 16 bits; with resets
            `restart`, whether the step after this one starts from `fresh`; with lengths `valid`.
        - `results`: `states` after every step, and the `last`; `gates`, the pre-activations.
        """
        plan, given, results, exchange = self.plan, self.given, self.results, self.exchange
        self._fetch_matrix()
        for sender in range(plan.cluster):
            source = given["h0"].at[self._units(sender), self._rows()]
            plgpu.copy_gmem_to_smem(source, exchange.inbox.at[0, sender], self.scratch["fetched"])
        before = tuple(self._load(ref) for ref in given["state"])
        fresh = tuple(self._load(ref) for ref in given.get("fresh", ()))
        plgpu.barrier_wait(self.scratch["fetched"])

        def fetch(i):
            time = self._time_of(lax.min(i, self.time - 1))
            return {
                "drive": self._load_all("drive", time, plan.gates),
                "extras": self._load_all("extras", time, plan.extras),
            }

        def turn(i, carry):
            before, here = carry
            time, here = self._time_of(i), _wide(here)
            # 1. Tensor cores multiply the program's rows of the matrix and the states of all units.
            product = self._rows_times(exchange.inbox.at[exchange.slot(i)])
            exchange.release()
            # 2. Each thread takes its units a step on.
            gates = tuple(x + y for x, y in zip(product, here["drive"], strict=True))
            after = self.pointwise.advance(before, gates, here["extras"])
            if (counts := self._counts(time)) is not None:
                after = _choose(counts, after, before)
            before = after
            if "restart" in given:
                before = _choose(self._flags("restart", time), fresh, after)
            # 3. The new states go to all programs; meanwhile results are written, and what the next
            # step takes is read.
            exchange.send(i + 1, [before[0].astype(exchange.inbox.dtype)] * plan.cluster)
            for ref, value in zip(results["states"], after, strict=True):
                self._store(ref, value, time)
            for n, gate in enumerate(gates):
                self._store(results["gates"], gate, time, n)
            following = fetch(i + 1)
            exchange.receive(i + 1)
            return _held(before), following

        before, _ = lax.fori_loop(0, self.time, turn, (before, fetch(0)))
        for ref, value in zip(results["last"], before, strict=True):
            self._store(ref, value)

    def backward(self) -> None:
        """Walks back over time, from the last step to the first.

        - `given`: `matrix`, `extras` and `valid` as in the forward pass; `gates`, the
            pre-activations; `before`, by their numbers, the states before every step that a step
            reads; `g`, the cotangent of the first state after every step, and `g_last`, those of
            all states after the last step; with resets `start`, whether a step starts from `fresh`.
        - `results`: the cotangents of the `gates`, the `extras`, the `first` states and, with
            resets, the `fresh` ones.
        """
        self._fetch_matrix()
        g = tuple(self._load(ref) for ref in self.given["g_last"])
        g_fresh = ()
        if "start" in self.given:
            g_fresh = _held(tuple(jnp.zeros_like(x) for x in g))
        plgpu.barrier_wait(self.scratch["fetched"])
        self.exchange.release()

        def turn(j, carry):
            g, g_fresh, here = carry
            time = self._time_of(self.time - 1 - j)
            g, g_fresh, following = self._back(j, time, g, g_fresh, _wide(here))
            return _held(g), g_fresh, following

        carry = g, g_fresh, self._fetch_back(0)
        g, g_fresh, _ = lax.fori_loop(0, self.time, turn, carry)
        self.exchange.close()
        for name, values in (("first", g), ("fresh", g_fresh)):
            for ref, value in zip(self.results.get(name, ()), values, strict=True):
                self._store(ref, value)

    def _fetch_back(self, j) -> dict[str, Any]:
        """What the backward pass takes of the step that it takes as number `j`."""
        plan, time = self.plan, self._time_of(lax.max(self.time - 1 - j, 0))
        return {
            "gates": self._load_all("gates", time, plan.gates),
            "extras": self._load_all("extras", time, plan.extras),
            "before": {n: self._load(ref, time) for n, ref in self.given["before"].items()},
            "g": self._load(self.given["g"], time),
        }

    def _back(self, j, time, g: Planes, g_fresh: Planes, here: dict[str, Any]) -> tuple:
        """From the cotangents of the states after a step to those of the states before it."""
        plan, exchange = self.plan, self.exchange
        zero = jnp.zeros_like(g[0])
        # 1. Each thread finds the cotangents of the gates of its units.
        g = (g[0] + here["g"], *g[1:])
        counts = self._counts(time)
        g_after = g if counts is None else tuple(jnp.where(counts, x, zero) for x in g)
        before = tuple(here["before"].get(n, zero) for n in range(plan.states))
        g_before, g_gates, g_extras = self.pointwise.pull_back(
            before, here["gates"], here["extras"], g_after
        )
        if counts is not None:
            # Selected, and not multiplied: what stands beyond a row's length may be NaN.
            g_before = _choose(counts, g_before, g)
            g_gates, g_extras = (
                tuple(jnp.where(counts, x, zero) for x in planes) for planes in (g_gates, g_extras)
            )
        narrow = self.scratch["gates"]
        for n, x in enumerate(g_gates):
            narrow[pl.ds(n * plan.units, plan.units)] = x.astype(narrow.dtype)
        plgpu.commit_smem()
        # 2. Tensor cores multiply them by the transpose of the program's rows, for the units of all
        # programs; meanwhile results are written, and what the next step takes is read.
        exchange.send(j, self._transpose_times(narrow))
        for name, planes in (("gates", g_gates), ("extras", g_extras)):
            for n, x in enumerate(planes):
                self._store(self.results[name], x, time, n)
        following = self._fetch_back(j + 1)
        exchange.receive(j)
        # 3. The parts from all programs add up to the cotangent of the program's own states.
        first, slot = g_before[0], exchange.slot(j)
        for sender in range(plan.cluster):
            first += plgpu.load(exchange.inbox.at[slot, sender], layout=_LAYOUT, optimized=False)
        exchange.release()
        g_before = (first, *g_before[1:])
        if "start" in self.given:
            start = self._flags("start", time)
            restarted = tuple(jnp.where(start, x, zero) for x in g_before)
            g_fresh = tuple(x + y for x, y in zip(g_fresh, restarted, strict=True))
            g_before = tuple(jnp.where(start, zero, x) for x in g_before)
        return g_before, g_fresh, following

    def _rows_times(self, states) -> Planes:
        """The program's rows of the matrix times all states, "program unit row", gate by gate."""
        plan, matrix = self.plan, self.scratch["matrix"]

        def run(acc):
            for sender in range(plan.cluster):
                columns = matrix.at[:, pl.ds(sender * plan.units, plan.units)]
                plgpu.wgmma(acc, columns, states.at[sender])
            return acc[...]

        return self._product(run, plan.gates)

    def _transpose_times(self, gates) -> list:
        """The transpose of the program's rows times its gates: an array for each program."""
        plan, matrix = self.plan, self.scratch["matrix"]
        pieces: list = []
        while (first := len(pieces)) < plan.cluster:
            count = min(plan.peers_at_once, plan.cluster - first)

            def run(acc, first=first, count=count):
                columns = pl.ds(first * plan.units, count * plan.units)

                # A loop, because the compiler would keep the addresses of all operands in
                # registers.
                @pl.loop(0, plan.gates)
                def _(gate):
                    rows = pl.ds(gate * plan.units, plan.units)
                    part = matrix.at[rows, columns].transpose((1, 0))
                    plgpu.wgmma(acc, part, gates.at[rows])

                return acc[...]

            pieces += self._product(run, count)
        return pieces

    def _product(self, run, count: int) -> Planes:
        """The result of `run`, which fills an accumulator, as `count` arrays."""
        units, columns = self.plan.units, self.plan.columns
        shape = count * units, columns
        product = pl.run_scoped(run, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))
        return tuple(product[n * units : (n + 1) * units] for n in range(count))

    def _fetch_matrix(self) -> None:
        units = self.plan.units
        for gate in range(self.plan.gates):
            rows = self.scratch["matrix"].at[pl.ds(gate * units, units)]
            source = self.given["matrix"].at[gate, self._units()]
            plgpu.copy_gmem_to_smem(source, rows, self.scratch["fetched"])

    def _time_of(self, i):
        """The time of the step that the forward pass takes as number `i`."""
        return self.time - 1 - i if self.reverse else i

    def _units(self, program=None):
        program = lax.axis_index(AXIS) if program is None else program
        return pl.ds(program * self.plan.units, self.plan.units)

    def _rows(self):
        return pl.ds(lax.axis_index("rnnscale_slice") * self.plan.columns, self.plan.columns)

    def _load(self, ref, *index):
        window = ref.at[(*index, self._units(), self._rows())]
        return plgpu.load(window, layout=_LAYOUT, optimized=False)

    def _load_all(self, name: str, time, count: int) -> Planes:
        return tuple(self._load(self.given[name], time, n) for n in range(count))

    def _store(self, ref, value, *index) -> None:
        ref[(*index, self._units(), self._rows())] = value.astype(ref.dtype)

    def _counts(self, time):
        """Which units of which rows take a step: not those that pad the network, where a step may
        give NaN for zeros, and not beyond a row's length. `None` if all do."""
        counts = self._flags("valid", time) if "valid" in self.given else None
        if not self.plan.missing:
            return counts
        shape = self.plan.units, self.plan.columns
        unit = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=_LAYOUT)
        first = lax.axis_index(AXIS) * self.plan.units
        exists = unit < self.plan.hdim - self.plan.missing - first
        return exists if counts is None else counts & exists

    def _flags(self, name: str, time):
        """For all units whether the flag of each row is above zero."""
        window = self.given[name].at[time, self._rows()]
        flags = plgpu.load(window, layout=_LAYOUT.reduce(0), optimized=False)
        return lax.broadcast_in_dim(flags, (self.plan.units, self.plan.columns), (1,)) > 0


def _wide(tree: Any) -> Any:
    """Arrays that were read in 16 bits in float32, when they are used."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _held(arrays: Planes) -> Planes:
    """The arrays as a loop carries them, even those that are constant."""
    return tuple(plgpu.layout_cast(x, _LAYOUT) for x in arrays)


def _choose(condition, x: Planes, y: Planes) -> Planes:
    return tuple(jnp.where(condition, a, b) for a, b in zip(x, y, strict=True))
