"""What all tests share: compiler options, virtual devices, random keys, a check of bad input."""

import os
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

# Before jax starts, and in the environment, so that the processes that tests start see it too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most programs here run once or twice, and making their machine code is most of the time they take:
# unoptimised, and fused loops by XLA's older emitter, it is made several times as fast. XLA's own
# passes, which move numbers and collectives about, are as always. `XLA_FLAGS= make test` tests what
# users run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
# A process that a test starts finds the packages where this one found them.
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
# What a test compiles, and how often, must not depend on an earlier run.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

MAPPINGS = Path("/proc/self/maps")

# Examples compile, so a deadline says nothing and a hundred of them take minutes.
hypothesis.settings.register_profile(
    "rnnscale", deadline=None, max_examples=20, derandomize="CI" in os.environ
)
# By hand, with `--hypothesis-profile=thorough`.
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile("rnnscale")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="seed of the key and getkey fixtures")


def pytest_report_header(config: pytest.Config) -> str:
    return f"rnnscale: --seed={config.option.seed}, jax {jax.__version__}"


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A key of the test's own: the same in every run with the same --seed."""
    base = jax.random.key(request.config.option.seed)
    return jax.random.fold_in(base, zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def getkey(key: jax.Array) -> Callable[[], jax.Array]:
    """Returns a new key at every call."""
    count = 0

    def next_key() -> jax.Array:
        nonlocal count
        count += 1
        return jax.random.fold_in(key, count)

    return next_key


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules that compile much and compute little."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def error_line(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that a user got wrong, checks that it exits with 2 and prints one line, apart
    from the log, and returns that line."""
    from rnnscale.cli import main

    def run(*arguments: str) -> str:
        capsys.readouterr()
        try:
            code: object = main(arguments)
        except SystemExit as left:  # from the parser
            code = left.code
        *before, line = capsys.readouterr().err.splitlines()
        assert code == 2 and line.startswith("rnnscale: error: ")
        assert all(re.match("rnnscale: (?!error: )", each) for each in before)
        return line

    return run


@pytest.fixture(autouse=True)
def few_programs():
    """Forgets compiled programs in time: each is some ten mappings, of 65530 a process may have."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()
