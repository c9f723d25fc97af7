"""Shape annotations are true: every class is built and called under jaxtyping's import hook.

The hook has to be installed before `rnnscale` is imported, so this file is also the program that a
process of its own runs, once for all classes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest

HOOKED = [
    "planted",
    "rnnscale_kernels",
    *(
        f"rnnscale.{part}"
        for part in "_base _fields _over_time sharding cells ssm layers attention models".split()
    ),
]

# Two layers, the second of which says that its output has more features than it has.
PLANTED = """
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from rnnscale import CausalLayer

class Planted(CausalLayer):
    scale: Float[Array, "idim"]
    idim: int = eqx.field(static=True, default=3)
    odim: int = eqx.field(static=True, default=3)

    def __init__(self, key: PRNGKeyArray):
        self.scale = jnp.ones(3)

    def __call__(self, xs, state=None, *, reset=None, lengths=None, key=None):
        return self.init_state(xs.shape[:-2]), self.scaled(xs)

    def step(self, x, state, *, key=None):
        return state, self.scaled(x)

    def init_state(self, batch_shape=(), dtype=None):
        return jnp.zeros(batch_shape)

class Correct(Planted):
    def scaled(self, x: Float[Array, "*axes idim"]) -> Float[Array, "*axes idim"]:
        return self.scale * x

class Wrong(Planted):
    def scaled(self, x: Float[Array, "*axes idim"]) -> Float[Array, "*axes idim+2"]:
        return self.scale * x
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.py").write_text(PLANTED)
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_class_passes(report: dict[str, Any]) -> None:
    wrong = {name: error for name, error in report["classes"].items() if error}
    assert not wrong, "\n\n".join(f"{name}: {error}" for name, error in wrong.items())
    assert len(report["classes"]) >= 43


def test_a_wrong_annotation_fails(report: dict[str, Any]) -> None:
    assert report["planted"]["Correct"] == ""
    assert "planted.Wrong.scaled" in report["planted"]["Wrong"]


def main() -> None:
    """Prints as JSON the error of each class, which is empty if there is none."""
    with jaxtyping.install_import_hook(HOOKED, "beartype.beartype"):
        from planted import Correct, Wrong  # pyright: ignore[reportMissingImports]

        from rnnscale import has_step
        from rnnscale.layers import RecurrentNetwork
        from rnnscale.verify import CELLS, LAYERS, MODELS, NETWORKS, sample_inputs

    import equinox as eqx
    import jax
    import jax.numpy as jnp

    def call_cell(cell: Any, axes: tuple[int, ...], key: Any) -> Any:
        x = jax.random.normal(key, (*axes, cell.idim))
        return cell(x, cell.init_state(axes))[1]

    def call_model(model: Any, axes: tuple[int, ...], key: Any) -> Any:
        xs = sample_inputs(model, (*axes, 4), key)
        options = {"reset": jnp.zeros((*axes, 4), bool), "lengths": jnp.full(axes, 3), "key": key}
        outputs = model(xs, **options)[0 if isinstance(model, RecurrentNetwork) else 1]
        if has_step(model):
            x = jnp.take(xs, 0, axis=len(axes))
            model.step(x, model.init_state(axes))
        return outputs

    def error_of(build: Callable[[Any], Any], call: Callable[..., Any]) -> str:
        def run(key: Any) -> Any:
            model = build(key)
            for axes in ((), (2,)):
                # The gradient too, which has rules of its own; only its shapes are computed.
                eqx.filter_grad(lambda model, axes=axes: jnp.sum(call(model, axes, key)))(model)

        try:
            jax.eval_shape(run, jax.random.key(0))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    subjects = [(subject.name, subject.build, call_cell) for subject in CELLS]
    subjects += [(name, build, call_model) for name, build in [*LAYERS, *MODELS, *NETWORKS]]
    classes = {name: error_of(build, call) for name, build, call in subjects}
    planted = {each.__name__: error_of(each, call_model) for each in (Correct, Wrong)}
    print(json.dumps({"classes": classes, "planted": planted}))


if __name__ == "__main__":
    main()
