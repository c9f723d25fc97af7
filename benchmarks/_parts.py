"""Parts of a benchmark in processes of their own, whose rows are read while they run.

If a kernel hangs, faults or kills its process, the rows that were written before are kept, and the
other parts go on. An error of a GPU that has faulted stays with its process, so no other part can
meet it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ._benchmark import Row

ROOT = Path(__file__).parents[1]

SHORTEST = 10
"""The fewest seconds that must be left to start a part."""

FAULTS = ("raise", "exit", "abort", "hang")
"""What a part can be made to do, to see that the others go on."""

# A part gets this share of its seconds for its work, so that it can stop by itself before it is
# killed. A killed process that holds a device may take a while to end.
_OWN_SHARE, _SECONDS_TO_END, _POLL = 0.9, 10, 0.1


@dataclass(frozen=True)
class Part:
    """A part: `words` for its command line, and `about`, which all its rows have."""

    words: tuple[str, ...]
    about: Row

    def __str__(self) -> str:
        return " ".join(self.words)


REHEARSAL = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
"""The environment of parts on a CPU: some interpreters need the threads of several devices."""

DEVICE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_PLATFORMS": ""}
"""The environment of parts on a device. A killed process may hold its memory for a while; and the
bytes of a program are counted by the model of the CPU's compiler, which has to be there too."""


def run_part(
    part: Part,
    module: str,
    options: Sequence[str],
    seconds: float,
    environment: Mapping[str, str],
    fault: str | None = None,
) -> Iterator[Row]:
    """Runs `python -m MODULE WORDS OPTIONS` and yields each row when it has been written.

    If the process fails or does not end within `seconds`, the last row has an `error`, and `ended`,
    which says how.
    """
    if seconds < SHORTEST:
        yield {**part.about, "dropped": "all"}
        return
    begin, count, failed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        lines, log = Path(folder, "lines"), Path(folder, "log")
        lines.touch()
        command = [sys.executable, "-m", module, *part.words, *options, "--lines", str(lines)]
        command += ["--seconds", str(_OWN_SHARE * seconds), *(["--fault", fault] if fault else [])]
        with log.open("w") as output, lines.open() as written:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip
            try:
                for row in _follow(written, process, begin + seconds):
                    count, failed = count + 1, failed + ("error" in row)
                    yield {**part.about, **row}
            finally:
                end = _end(process, seconds)
        if end is not None:
            said = log.read_text(errors="replace").strip()[-1500:]
            failed += 1
            yield {**part.about, "ended": end, "error": f"{end} after {count} rows; {said}"}
    taken = time.monotonic() - begin
    print(f"{part}: {count} rows, {failed} failed, {taken:.0f} s", flush=True)


def _follow(written: Iterable[str], process: subprocess.Popen, until: float) -> Iterator[Row]:
    """The rows of the lines that the process writes, until it ends or its time is over."""
    partial = ""
    while True:
        ended = process.poll() is not None or time.monotonic() > until
        for text in written:
            partial += text
            if partial.endswith("\n"):
                yield json.loads(partial)
                partial = ""
        if ended:
            return
        time.sleep(_POLL)


def _end(process: subprocess.Popen, seconds: float) -> str | None:
    """Ends the process if it still runs. Returns how it ended, or `None` if it ended well."""
    if (code := process.poll()) is not None:
        return f"exit code {code}" if code else None
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        return f"no end after {seconds:.0f} s, and it cannot be killed"
    return f"no end after {seconds:.0f} s"


def write_rows(rows: Iterable[Row], file: Path, fault: str | None) -> None:
    """What a part does in its process: writes each row as a line at once.

    A `fault` happens after the first row.
    """
    with file.open("a") as lines:
        for row in rows:
            print(json.dumps(row), file=lines, flush=True)
            if fault is not None:
                _FAULTS[fault]()


def _raise() -> None:
    raise RuntimeError("a fault that was asked for")


def _hang() -> None:
    while True:
        time.sleep(60)


_FAULTS: dict[str, Callable[[], None]] = dict(
    zip(FAULTS, (_raise, lambda: sys.exit(7), os.abort, _hang), strict=True)
)
