"""The compiled programs that JAX keeps in the folder of a run or an experiment, so that a run which
is resumed does not compile them again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax._src.compilation_cache import decompress_executable  # has no public name
from jax.experimental.compilation_cache import compilation_cache

from rnnscale.distributed import on_process_0


@contextmanager
def kept_programs(folder: Path) -> Iterator[None]:
    """Inside the `with`, JAX keeps each program that it compiles in a folder, and loads those that
    are there. All processes enter it; process 0 writes. Runs within it use that folder too.

    JAX's own settings go first: with `JAX_COMPILATION_CACHE_DIR` the programs are kept there, and
    with `JAX_ENABLE_COMPILATION_CACHE=false` nowhere.
    """
    if not jax.config.jax_enable_compilation_cache or jax.config.jax_compilation_cache_dir:
        yield
        return
    on_process_0(lambda: _remove_torn(folder))
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    _set(folder.absolute(), 0.0)
    try:
        yield
    finally:
        _set(None, least)


def _set(folder: Path | None, least_seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()  # or JAX goes on with the folder that it has opened


def _remove_torn(folder: Path) -> None:
    """Removes programs that are not whole, since the process that wrote them was killed. JAX would
    compile them in each session, with a warning, and never replace them."""
    for file in folder.glob("*-cache"):
        try:
            decompress_executable(file.read_bytes())
        except Exception:  # each format of compression has its own
            file.unlink(missing_ok=True)  # another process may have done so
