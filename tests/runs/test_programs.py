"""The compiled programs that a run keeps: one that is resumed compiles nothing."""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rnnscale.runs import RunFolder, TrainConfig, kept_programs, run


def config(out: Path) -> TrainConfig:
    return TrainConfig.for_task(
        "adding", out=str(out), model="indrnn", seq_len=8, dim=8, batch_size=8, steps=4,
        save_every=2, log_every=1,
    )  # fmt: skip


@contextmanager
def using(**settings: Any) -> Iterator[None]:
    def use(values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    before = {name: jax.config.values[name] for name in settings}
    use(settings)
    yield
    use(before)


@pytest.fixture(scope="module")
def cache() -> Iterator[None]:
    """As users have it; the other tests run without it."""
    with using(jax_enable_compilation_cache=True):
        yield


@pytest.fixture(scope="module")
def finished(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    jax.clear_caches()
    out = tmp_path_factory.mktemp("programs") / "run"
    run(config(out))
    return out


@pytest.fixture
def events() -> Iterator[Counter[str]]:
    """What JAX's cache reports from here on, as in a new process: nothing is compiled yet."""
    jax.clear_caches()
    found: Counter[str] = Counter()

    def count(event: str, **_: object) -> None:
        found[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(count)
    yield found
    jax.monitoring.unregister_event_listener(count)


def interrupted(finished: Path, folder: Path) -> Path:
    """The run as it was when a kill came after its first checkpoint."""
    out = shutil.copytree(finished, folder / "run")
    shutil.rmtree(out / "checkpoints" / "4")
    (out / "summary.json").unlink()
    return out


def test_a_resumed_run_compiles_nothing(finished: Path, tmp_path: Path, events: Counter[str]):
    out = interrupted(finished, tmp_path)
    run(config(out), resume=True)
    assert events["compile_requests_use_cache"] == events["cache_hits"] >= 2
    assert events["cache_misses"] == 0
    first, second = (
        [(row["step"], row["loss"]) for row in RunFolder(each).rows()] for each in (finished, out)
    )
    assert first == second
    assert jax.config.jax_compilation_cache_dir is None  # as before the run


def compile_something() -> None:
    jax.clear_caches()
    jax.jit(lambda x: 2 * x)(1.0)


def test_a_program_that_was_cut_off_is_written_again(
    cache: None, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    with kept_programs(tmp_path):
        compile_something()
    (program,) = tmp_path.iterdir()
    whole = program.stat().st_size
    program.write_bytes(program.read_bytes()[: whole // 2])
    with kept_programs(tmp_path):
        compile_something()
    assert program.stat().st_size > 0.9 * whole
    assert not [w for w in recwarn if "persistent compilation cache" in str(w.message)]


def test_the_settings_of_jax_go_first(cache: None, tmp_path: Path):
    with kept_programs(tmp_path / "run"):
        compile_something()
    assert len(list((tmp_path / "run").iterdir())) == 1
    with using(jax_compilation_cache_dir=str(tmp_path / "mine")), kept_programs(tmp_path / "other"):
        compile_something()
    with using(jax_enable_compilation_cache=False), kept_programs(tmp_path / "off"):
        compile_something()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "mine"}
