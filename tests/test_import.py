"""What `import rnnscale` costs and touches, each seen from a fresh interpreter."""

import statistics
import subprocess
import sys

HEAVY = {
    "optax",
    "grain",
    "orbax",
    "rich",
    "matplotlib",
    "scipy",
    "sklearn",
    "mlxtend",
    "reservoirpy",
}
KERNEL_BACKENDS = {"jax.experimental.mosaic", "jax.experimental.pallas", "jax_triton", "triton"}


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_is_fast() -> None:
    # In processor time, beside jax's own: machines differ, and tests run side by side.
    code = """
import time
start = time.process_time()
import equinox, jax
others = time.process_time()
import rnnscale
print((time.process_time() - others) / (others - start))
"""
    _python(code)  # writes the bytecode
    ratio = statistics.median(float(_python(code)) for _ in range(5))
    assert ratio <= 0.15, f"import rnnscale takes {ratio:.0%} of the time of jax and equinox"


def test_import_loads_nothing_heavy() -> None:
    code = "import equinox, jax, sys; before = set(sys.modules)"
    loaded = _python(f"{code}; import rnnscale; print(*(set(sys.modules) - before))").split()
    assert not (HEAVY | KERNEL_BACKENDS).intersection(loaded)


def test_import_changes_no_setting() -> None:
    _python("""
import logging, os, sys, warnings
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

before = settings()
import rnnscale
after = settings()
# An import may declare new options of jax, which is no change to those that are there.
changed = {name: (value, after[name]) for name, value in before.items() if after[name] != value}
assert not changed, changed
""")


def test_import_starts_no_backend() -> None:
    # jax refuses this setting once it has started.
    _python("""
import rnnscale, jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 3)
assert jax.device_count() == 3
""")
