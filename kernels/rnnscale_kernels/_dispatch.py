"""Which code runs an operation: the choice made when lowering, and why others were passed over."""

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

_logger = logging.getLogger("rnnscale_kernels")


def _no_reason(*_) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation.

    - `forward(primals, **static)` gives the operation's outputs, and `transpose(primals, outputs,
        cotangents, **static)` the cotangents of the primals (see `Operation`).
    - `unavailable(platform)`: why it cannot run there at all, or `None`.
    - `unsuited(platform, spec)`: why it is not chosen for these arguments, or `None`.
    """

    name: str
    forward: Callable[..., Any]
    transpose: Callable[..., Any]
    unavailable: Callable[[str], str | None] = _no_reason
    unsuited: Callable[[str, Any], str | None] = _no_reason


@dataclass(frozen=True)
class Dispatch:
    """The implementations of one operation and, for each platform, their order: fastest first.

    The last one of every order takes all arguments.
    """

    operation: str
    implementations: tuple[Implementation, ...]
    order: Mapping[str, tuple[str, ...]]
    _logged: set[Hashable] = field(default_factory=set, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.implementations)

    def choose(self, platform: str, spec: Hashable, named: str | None) -> Implementation:
        """The named implementation, or the fastest that takes arguments such as `spec`.

        **Raises:** `NotImplementedError` where the one named cannot run on the platform.
        """
        by_name = dict(zip(self.names, self.implementations, strict=True))
        if named is not None:
            reason = by_name[named].unavailable(platform)
            if reason is not None:
                usable = [x.name for x in self.implementations if x.unavailable(platform) is None]
                raise NotImplementedError(
                    f"{self.operation}(implementation={named!r}) cannot run on {platform}: "
                    f"{reason}. Usable there: {', '.join(usable)}, or None for the fastest."
                )
            return by_name[named]
        passed_over = []
        *preferred, last = (by_name[name] for name in self.order[platform])
        for candidate in preferred:
            reason = candidate.unavailable(platform) or candidate.unsuited(platform, spec)
            if reason is None:
                break
            passed_over.append(f"; {candidate.name} passed over: {reason}")
        else:
            candidate = last
        if (platform, spec) not in self._logged:
            self._logged.add((platform, spec))
            _logger.info(
                "%s on %s runs as %s for %s%s",
                self.operation, platform, candidate.name, spec, "".join(passed_over),
            )  # fmt: skip
        return candidate
