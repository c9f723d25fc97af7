"""Collectives between processes on the host: all processes call them in the same order. They have a
time limit, and say which process is missing."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from time import monotonic
from typing import Any

from rnnscale._errors import ProcessMissingError, RunFailedError, UserError
from rnnscale.distributed._connect import process_count, process_index
from rnnscale.distributed._store import get, new_key, put

_PACKAGES = ("rnnscale", "jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint")


def on_process_0[T](action: Callable[[], T], *, minutes: float = 60.0, key: str | None = None) -> T:
    """Does something in process 0 only, and broadcasts its result or its error.

    **Arguments:**

    - `action`: what to do. Its result must be something that JSON can hold.
    - `minutes`: how long the other processes wait for the result.
    - `key`: the key in the store; by default a new one, which only the main thread may take.

    **Returns:** the result, in all processes.

    **Raises:** what `action` raises. In the other processes that is a `UserError` or
    `ProcessMissingError` with the same message, and for all other errors a `RunFailedError`.
    """
    if process_count() == 1:
        return action()
    key = key or new_key()
    if process_index() == 0:
        try:
            result = action()
        except Exception as error:
            put(key, _described(error))
            raise
        put(key, {"result": result})
        return result
    answer = get(key, 60 * minutes)
    if answer is None:
        raise ProcessMissingError(
            f"process {process_index()} waited {minutes:g} minutes for process 0, which did not "
            "answer; look at its log"
        )
    if "result" in answer:
        return answer["result"]
    raise _ERRORS[answer["kind"]](answer["error"])


def all_reduce[T](
    value: Any,
    combine: Callable[[list[Any]], T],
    *,
    minutes: float = 5.0,
    key: str | None = None,
) -> T:
    """Gathers a value from every process in process 0, combines them there, and broadcasts the
    result.

    **Arguments:**

    - `value`: the value of this process; anything that JSON can hold.
    - `combine`: from the values of all processes, in the order of their numbers, to the result.
    - `minutes`: how long process 0 waits for the values.
    - `key`: see `on_process_0`.

    **Returns:** the result, in all processes.

    **Raises:** what `combine` raises, as in `on_process_0`; and `ProcessMissingError`, which names
    the processes whose value did not come.
    """
    if process_count() == 1:
        return combine([value])
    key = key or new_key()
    put(f"{key}/{process_index()}", {"value": value})

    def gather() -> T:
        until = monotonic() + 60 * minutes
        found = [get(f"{key}/{i}", until - monotonic()) for i in range(process_count())]
        missing = [str(i) for i, each in enumerate(found) if each is None]
        if missing:
            raise ProcessMissingError(
                f"of {process_count()} processes, these did not come within {minutes:g} minutes: "
                f"{', '.join(missing)}"
            )
        return combine([each["value"] for each in found if each is not None])

    return on_process_0(gather, minutes=minutes + 1, key=f"{key}/result")


def barrier(*, minutes: float = 5.0) -> None:
    """Waits until all processes are here.

    **Raises:** `ProcessMissingError`, in all processes, if one does not come within `minutes`.
    """
    all_reduce(None, lambda _: None, minutes=minutes)


def check_same(options: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same options and versions of packages.

    **Raises:** `UserError`, in all processes, which names the first option that differs and both of
    its values.
    """

    def compare(options: list[dict[str, Any]]) -> None:
        first = options[0]
        for process, other in enumerate(options):
            for name in {**first, **other}:
                if first.get(name) != other.get(name):
                    raise UserError(
                        f"the processes disagree on {name}: process 0 has {first.get(name)!r}, "
                        f"process {process} has {other.get(name)!r}; start them all alike"
                    )

    if process_count() > 1:
        versions = {f"the version of {name}": version(name) for name in _PACKAGES}
        all_reduce({**versions, **options}, compare)


_ERRORS = {"user": UserError, "missing": ProcessMissingError, "other": RunFailedError}


def _described(error: Exception) -> dict[str, str]:
    """What the other processes need to raise an error of process 0."""
    if isinstance(error, UserError):
        return {"kind": "user", "error": str(error)}
    if isinstance(error, ProcessMissingError):
        return {"kind": "missing", "error": str(error)}
    return {"kind": "other", "error": f"process 0 failed with {type(error).__name__}: {error}"}
