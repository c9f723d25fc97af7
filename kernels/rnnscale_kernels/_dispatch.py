"""The choice of the code that runs an operation, made when the operation is lowered."""

import logging
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax

from ._target import Target

_logger = logging.getLogger("rnnscale_kernels")


def _no_reason(*_) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation.

    - `forward(primals, *, target, **static)` gives the operation's outputs, and
        `transpose(primals, outputs, cotangents, *, target, **static)` the cotangents of the primals
        (see `Operation`).
    - `totals` and `transpose_totals`: the code of the reductions of the operation (see
        `RecurrentOp`), if it is less work than the two functions above; else `None`.
    - `unavailable(target)`: why it cannot run on the target at all, or `None`.
    - `unsupported(spec)`: why it cannot take these arguments, or `None`.
    - `unsuited(target, spec)`: why it is not chosen for them although it could run, or `None`.
    """

    name: str
    forward: Callable[..., Any]
    transpose: Callable[..., Any]
    totals: Callable[..., Any] | None = None
    transpose_totals: Callable[..., Any] | None = None
    unavailable: Callable[[Target], str | None] = _no_reason
    unsupported: Callable[[Any], str | None] = _no_reason
    unsuited: Callable[[Target, Any], str | None] = _no_reason

    def interpreted(self, target: Target, threads: int = 1) -> "Implementation":
        """The same kernels for `target`, run on a CPU by the interpreter of their toolchain.

        They are slow, and meant for checks on machines without such a device. The interpreter
        needs `threads` of JAX's threads at the same time, because they wait for one another.
        """
        target = replace(target, interpret=True)

        def only_on_cpu(here: Target) -> str | None:
            if here.platform != "cpu":
                return "it interprets kernels on a CPU"
            if jax.sharding.get_abstract_mesh().manual_axes:
                # The callbacks of the devices would wait for one another.
                return "it interprets kernels for one device, not inside shard_map"
            # JAX has a thread for each processor, or for each device if there are more of these.
            if max(os.cpu_count() or 1, jax.local_device_count("cpu")) < threads:
                return f"its interpreter needs {threads} threads: set JAX_NUM_CPU_DEVICES={threads}"
            return self.unavailable(target)

        return replace(
            self,
            name=f"{self.name}_interpreted",
            forward=_on_host(self.forward, target),
            transpose=_on_host(self.transpose, target),
            totals=_on_host(self.totals, target),
            transpose_totals=_on_host(self.transpose_totals, target),
            unavailable=only_on_cpu,
        )


def _on_host(run: Callable[..., Any] | None, interpreted: Target) -> Any:
    """`run` as a host callback: interpreters need ordered effects, a lowering has none."""
    if run is None:
        return None

    def run_on_host(*arguments, target, **static):
        run_interpreted = partial(run, target=interpreted, **static)
        shapes = jax.eval_shape(run_interpreted, *arguments)
        return jax.pure_callback(run_interpreted, shapes, *arguments)

    return run_on_host


@dataclass(frozen=True)
class Dispatch:
    """The implementations of one operation.

    - `operation`: its name.
    - `spec(primals, **static)`: the static properties of a call, on which the choice depends.
    - `implementations`: all of them.
    - `order`: for each platform, the names of those that are tried by default, fastest first. The
        last one takes all arguments.
    """

    operation: str
    spec: Callable[..., Hashable]
    implementations: tuple[Implementation, ...]
    order: Mapping[str, tuple[str, ...]]
    _logged: set[Hashable] = field(default_factory=set, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def _by_name(self) -> dict[str, Implementation]:
        return {each.name: each for each in self.implementations}

    def describe(self, platform: str) -> list[tuple[str, bool, str]]:
        """For every implementation: its name, whether it can be used on the platform's device, and
        if not, why. Those that are tried by default come first, in their order."""
        if not isinstance(platform, str) or platform not in self.order:
            raise ValueError(f"platform must be one of {list(self.order)}, got {platform!r}")
        target = Target.of(platform)
        names = dict.fromkeys((*self.order[platform], *self.names))
        reasons = [(name, self._by_name[name].unavailable(target)) for name in names]
        return [(name, reason is None, reason or "") for name, reason in reasons]

    def run(self, stage: Callable[[Implementation], Callable[..., Any]]) -> Callable[..., Any]:
        """The code of a stage, to be lowered: `stage(chosen)` for the implementation chosen."""

        def run_chosen(primals, *others, target: Target, implementation: str | None, **static):
            chosen = self.choose(target, self.spec(primals, **static), implementation)
            return stage(chosen)(primals, *others, target=target, **static)

        return run_chosen

    def choose(self, target: Target, spec: Hashable, named: str | None) -> Implementation:
        """The implementation named, or the fastest that takes arguments such as `spec`.

        The choice of the fastest is logged, once for each target and spec.

        **Raises:** `NotImplementedError` if the implementation named cannot run on the target or
        cannot take the arguments.
        """
        if named is not None:
            chosen = self._by_name[named]
            reason = _cannot(chosen, target, spec)
            if reason is not None:
                usable = [x.name for x in self.implementations if not _cannot(x, target, spec)]
                raise NotImplementedError(
                    f"{self.operation}(implementation={named!r}) cannot run on {target} with "
                    f"{spec}: {reason}. Usable there: {', '.join(usable)}, or None for the fastest."
                )
            return chosen
        fastest, passed_over = self._fastest(target, spec)
        if (target, spec) not in self._logged:
            self._logged.add((target, spec))
            _logger.info(
                "%s on %s runs as %s for %s%s",
                self.operation, target, fastest.name, spec, "".join(passed_over),
            )  # fmt: skip
        return fastest

    def has_kernel(self, target: Target, spec: Hashable) -> bool:
        """Whether an implementation other than the last resort of the platform would be chosen."""
        return self._fastest(target, spec)[0].name != self.order[target.platform][-1]

    def _fastest(self, target: Target, spec: Hashable) -> tuple[Implementation, list[str]]:
        passed_over = []
        *preferred, last = (self._by_name[name] for name in self.order[target.platform])
        for candidate in preferred:
            reason = _cannot(candidate, target, spec) or candidate.unsuited(target, spec)
            if reason is None:
                return candidate, passed_over
            passed_over.append(f"; {candidate.name} passed over: {reason}")
        return last, passed_over


def _cannot(implementation: Implementation, target: Target, spec: Any) -> str | None:
    return implementation.unavailable(target) or implementation.unsupported(spec)
