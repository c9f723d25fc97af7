"""Checks what importing `rnnscale` and its names costs and changes, in fresh interpreters; and the
version."""

import json
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import rnnscale

HEAVY = {
    *("optax", "grain", "orbax", "rich", "matplotlib", "scipy", "sklearn", "mlxtend"),
    *("reservoirpy", "safetensors", "tokenizers"),
}
KERNEL_BACKENDS = {"jax.experimental.mosaic", "jax.experimental.pallas", "jax_triton", "triton"}


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """What the import of all names changed in a fresh interpreter. It also writes the bytecode."""
    return json.loads(
        _python("""
import json, logging, os, sys, warnings
import equinox, jax, numpy

def settings():
    return {
        **jax.config.values,
        "numpy": numpy.geterr(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers)),
    }

modules, before = set(sys.modules), settings()
import rnnscale
for name in rnnscale.__all__:
    getattr(rnnscale, name)
after = settings()
# An import may declare new options of jax. That changes no option that exists.
changed = [name for name, value in before.items() if after[name] != value]
loaded = sorted(set(sys.modules) - modules)
# jax refuses these settings once it has started a backend.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 3)
print(json.dumps({"loaded": loaded, "changed": changed, "devices": jax.device_count()}))
""")
    )


def test_import_loads_nothing_heavy(imported: dict[str, Any]) -> None:
    assert not (HEAVY | KERNEL_BACKENDS).intersection(imported["loaded"])


def test_import_changes_no_setting(imported: dict[str, Any]) -> None:
    assert imported["changed"] == []


def test_import_starts_no_backend(imported: dict[str, Any]) -> None:
    assert imported["devices"] == 3


def test_names_are_imported_when_they_are_used() -> None:
    code = """
import sys
import rnnscale
rnnscale.tasks.TASKS
rnnscale.runs.TrainConfig.for_task("digits", out="runs/digits", mesh={"data": 4})
print([name for name in ("jax", "grain", "rnnscale.cells._gru") if name in sys.modules])
rnnscale.GatedRecurrentUnitCell
print("rnnscale.cells._gru" in sys.modules, "rnnscale.cells._lstm" in sys.modules)
"""
    assert _python(code).split("\n") == ["[]", "True False", ""]


def test_import_is_fast(imported: dict[str, Any]) -> None:
    # In processor time, relative to jax's own: machines differ, and tests run side by side. The
    # star loads every class, about 2 ms for each: 0.17 with those of attention, 0.14 before.
    code = """
import time
start = time.process_time()
import equinox, jax
others = time.process_time()
from rnnscale import *
print((time.process_time() - others) / (others - start))
"""
    ratio = statistics.median(float(_python(code)) for _ in range(3))
    assert ratio <= 0.2, f"import rnnscale takes {ratio:.0%} of the time of jax and equinox"


def test_the_version_is_that_of_the_package() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert rnnscale.__version__ == tomllib.loads(project.read_text())["project"]["version"]
    with pytest.raises(AttributeError, match="No rnnscale attribute versions"):
        _ = rnnscale.versions  # pyright: ignore[reportAttributeAccessIssue]
